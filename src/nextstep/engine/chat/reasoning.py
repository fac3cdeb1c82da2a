"""Reasoning: the model writes what a picture will show before it draws it.

A model may be trained on prompts and instructions that are followed by a line that describes the
result (`text.sequence.with_reasoning`). It can then write that line itself: where objects will
stand, or what it recognises in the source and what becomes of it; and it draws what it named. The
line becomes part of the prompt, so a picture's record holds all that its pixels depend on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from nextstep.engine.backends.base import Prompt
from nextstep.engine.sequence import TextSequence
from nextstep.engine.text_sampling import greedy
from nextstep.text import sequence as grammar

if TYPE_CHECKING:
    from nextstep.engine.request import Request
    from nextstep.text.tokenizer import TextTokenizer

LONGEST = 160
"""Ids of a line at most; less where the model's length leaves less beside the picture."""
AROUND = 16
"""Positions kept free for what stands around a picture's tokens."""


def reasoning_sequence(
    tokenizer: TextTokenizer, request: Request, limit: int
) -> TextSequence | None:
    """What writes a request's line, of the likeliest ids; None where there is no room for one.

    Args:
        tokenizer: gives ids.
        request: about which.
        limit: most positions the model reads.
    """
    prompt = _prompt(tokenizer, request)
    room = _room(tokenizer, request, prompt, limit)
    if room <= 0:
        return None
    special = tokenizer.ids
    forbidden = special.pad, special.begin_of_image, special.end_of_image, special.image_placeholder
    ends = special.image_area, special.eos
    return TextSequence(
        prompt, min(LONGEST, room), greedy, forbidden, ends,
        priority=request.priority, deadline=request.deadline, client=request.client,
    )  # fmt: skip


def with_reasoning(
    tokenizer: TextTokenizer, request: Request, written: Sequence[int], limit: int
) -> Request:
    """The request as it is drawn when the model has written these ids."""
    room = _room(tokenizer, request, _prompt(tokenizer, request), limit)
    return replace(
        request.without_reasoning(), prompt=with_line(tokenizer, request.prompt, written, room)
    )


def room_left(limit: int, before: int, grid: tuple[int, int]) -> int:
    """Ids that a line may take behind so many positions, if a picture is still to follow it."""
    return limit - before - math.prod(grid) - AROUND


def with_line(tokenizer: TextTokenizer, prompt: str, written: Sequence[int], room: int) -> str:
    """A prompt with the line whose ids were written.

    Without it when it is empty, or takes more than `room` ids once it is read: what was written
    need not be the shortest spelling.
    """
    # A tag would stand for a picture that nobody gave.
    line = " ".join(grammar.IMAGE_TAG.sub(" ", tokenizer.decode(list(written))).split())
    fits = line and len(tokenizer.encode(line)) <= room
    return grammar.with_reasoning(prompt, line) if fits else prompt


def _room(tokenizer: TextTokenizer, request: Request, prompt: Prompt, limit: int) -> int:
    behind = len(tokenizer.encode(request.settings.positive_prompt))
    return room_left(limit, len(prompt.ids) + behind, request.grid)


def _prompt(tokenizer: TextTokenizer, request: Request) -> Prompt:
    """What stands before the line."""
    sources = request.sources
    asked = grammar.with_reasoning(request.prompt, "")
    # Without sources a tag is plain text, as it is when the picture is drawn.
    parts: list[grammar.Part] = [grammar.Text(asked)]
    order: list[int] = []
    if sources:
        parts = grammar.editing(asked, [source.grid for source in sources], (1, 1))[:-1]
        order = grammar.picture_order(asked, len(sources))
    ids = grammar.build_sequence(parts, tokenizer, end=False).ids
    return Prompt(list(ids), [sources[k].tokens for k in order], [sources[k].grid for k in order])
