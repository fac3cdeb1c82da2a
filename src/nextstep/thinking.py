"""Saying what a picture will show before drawing it.

A model may be trained on edits whose instruction is followed by a line that describes the result
(`text.sequence.thought`). It can then write that line itself: it names what it recognises in the
source and what becomes of it, and draws what it named. The line becomes part of the prompt, so a
picture's record holds all that its pixels depend on.

Legend: n image tokens of a source, D values per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from nextstep.engine.decode import Prompt
from nextstep.engine.scheduler import Limits, Scheduler
from nextstep.engine.session import greedy
from nextstep.engine.writing import TextJob
from nextstep.errors import NextStepError
from nextstep.text import sequence as grammar

if TYPE_CHECKING:
    from nextstep.model.nextstep import NextStepModel
    from nextstep.settings import GenerationSettings
    from nextstep.text.tokenizer import TextTokenizer

LONGEST = 64
"""Ids of a thought at most."""
ONLY_EDITS = "only edits can think first; leave 'think' out"


class Edit(NamedTuple):
    """What a thought is about.

    Attributes:
        sources: (tokens [n, D], grid) of each source picture.
        instruction: may place them with tags.
    """

    sources: Sequence[tuple[Tensor, tuple[int, int]]]
    instruction: str


def think(
    model: NextStepModel,
    tokenizer: TextTokenizer,
    edits: Sequence[Edit],
    settings: GenerationSettings,
) -> tuple[list[str], GenerationSettings]:
    """Instructions as they are drawn, and the settings to draw them with.

    Args:
        model, tokenizer: that belong together.
        edits: written about side by side.
        settings: with `think` the likeliest line is added to each instruction; it may be none.

    Returns:
        The instructions, and the settings without `think`, which is done then.

    Raises:
        NextStepError: when an instruction leaves the model no room to write.
    """
    if not settings.think:
        return [edit.instruction for edit in edits], settings
    scheduler = Scheduler(model, Limits(2**62), check=False)
    tickets = {scheduler.submit(_job(tokenizer, edit)): edit.instruction for edit in edits}
    written = dict.fromkeys(tickets, "")
    for event in scheduler.run_until_idle():
        if event.kind == "failed":
            raise NextStepError(event.message)
        if event.kind == "finished":
            # A tag would stand for a picture that nobody gave.
            line = grammar.IMAGE_TAG.sub(" ", tokenizer.decode(list(event.ids)))
            written[event.ticket] = " ".join(line.split())
    texts = [
        grammar.thought(instruction, written[ticket]) if written[ticket] else instruction
        for ticket, instruction in tickets.items()
    ]
    return texts, replace(settings, think=False)


def _job(tokenizer: TextTokenizer, edit: Edit) -> TextJob:
    grids = [grid for _, grid in edit.sources]
    asked = grammar.thought(edit.instruction, "")
    *parts, _ = grammar.editing(asked, grids, (1, 1))
    ids = grammar.build_sequence(parts, tokenizer, end=False).ids
    order = grammar.picture_order(asked, len(grids))
    special = tokenizer.ids
    forbidden = special.pad, special.begin_of_image, special.end_of_image, special.image_placeholder
    ends = special.image_area, special.eos
    prompt = Prompt(
        list(ids), [edit.sources[k][0] for k in order], [edit.sources[k][1] for k in order]
    )
    return TextJob(prompt, LONGEST, greedy, forbidden, ends)
