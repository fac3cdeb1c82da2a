"""Saying what a picture will show before drawing it.

A model may be trained on prompts and instructions that are followed by a line that describes the
result (`text.sequence.thought`). It can then write that line itself: where things will stand, or
what it recognises in the source and what becomes of it; and it draws what it named. The line
becomes part of the prompt, so a picture's record holds all that its pixels depend on.

Legend: n image tokens of a source, D values per token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from nextstep.engine.decode import Prompt
from nextstep.engine.scheduler import Limits, Scheduler
from nextstep.engine.session import greedy
from nextstep.engine.text_sequence import TextJob
from nextstep.errors import NextStepError
from nextstep.text import sequence as grammar

if TYPE_CHECKING:
    from nextstep.engine.settings import GenerationSettings
    from nextstep.model.nextstep import NextStepModel
    from nextstep.text.tokenizer import TextTokenizer

LONGEST = 96
"""Ids of a thought at most; less where the model's length leaves less beside the picture."""
AROUND = 16
"""Positions kept free for what stands around a picture's tokens."""


class Edit(NamedTuple):
    """What a thought is about.

    Attributes:
        sources: (tokens [n, D], grid) of each source picture; none of a drawing from text.
        instruction: may place them with tags.
    """

    sources: Sequence[tuple[Tensor, tuple[int, int]]]
    instruction: str


def think(
    model: NextStepModel,
    tokenizer: TextTokenizer,
    edits: Sequence[Edit],
    settings: GenerationSettings,
    grid: tuple[int, int],
) -> tuple[list[str], GenerationSettings]:
    """Instructions as they are drawn, and the settings to draw them with.

    Args:
        model, tokenizer: that belong together.
        edits: written about side by side.
        settings: with `think` the likeliest line is added to each instruction; it may be none, and
            is none where the model's length leaves no room for one.
        grid: of the results.

    Returns:
        The instructions, and the settings without `think`, which is done then.
    """
    if not settings.think:
        return [edit.instruction for edit in edits], settings
    scheduler = Scheduler(model, Limits(2**62), check=False)
    texts, tickets = [edit.instruction for edit in edits], dict[int, tuple[int, int]]()
    behind = len(tokenizer.encode(settings.positive_prompt))
    for place, edit in enumerate(edits):
        prompt = _prompt(tokenizer, edit)
        room = room_left(model, len(prompt.ids) + behind, grid)
        if room > 0:
            tickets[scheduler.submit(_job(tokenizer, prompt, min(LONGEST, room)))] = place, room
    for event in scheduler.run_until_idle():
        if event.kind == "failed":
            raise NextStepError(event.message)
        if event.kind == "finished":
            place, room = tickets[event.ticket]
            texts[place] = with_line(tokenizer, texts[place], event.ids, room)
    return texts, replace(settings, think=False)


def room_left(model: NextStepModel, before: int, grid: tuple[int, int]) -> int:
    """Ids that a line may take behind so many positions, if a picture is still to follow it."""
    return model.config.max_position_embeddings - before - math.prod(grid) - AROUND


def with_line(tokenizer: TextTokenizer, instruction: str, written: Sequence[int], room: int) -> str:
    """An instruction with the line whose ids were written.

    Without it when it is empty, or takes more than `room` ids once it is read: what was written
    need not be the shortest spelling.
    """
    # A tag would stand for a picture that nobody gave.
    line = " ".join(grammar.IMAGE_TAG.sub(" ", tokenizer.decode(list(written))).split())
    fits = line and len(tokenizer.encode(line)) <= room
    return grammar.thought(instruction, line) if fits else instruction


def _prompt(tokenizer: TextTokenizer, edit: Edit) -> Prompt:
    """What stands before the line."""
    grids = [grid for _, grid in edit.sources]
    asked = grammar.thought(edit.instruction, "")
    # Without sources a tag is plain text, as it is when the picture is drawn.
    parts = grammar.editing(asked, grids, (1, 1))[:-1] if grids else [grammar.Text(asked)]
    ids = grammar.build_sequence(parts, tokenizer, end=False).ids
    order = grammar.picture_order(asked, len(grids)) if grids else []
    return Prompt(
        list(ids), [edit.sources[k][0] for k in order], [edit.sources[k][1] for k in order]
    )


def _job(tokenizer: TextTokenizer, prompt: Prompt, longest: int) -> TextJob:
    special = tokenizer.ids
    forbidden = special.pad, special.begin_of_image, special.end_of_image, special.image_placeholder
    ends = special.image_area, special.eos
    return TextJob(prompt, longest, greedy, forbidden, ends)
