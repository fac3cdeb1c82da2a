"""Samples of a prompt with everything that training on them needs.

Legend: n samples of a group, N tokens of a picture, D values per token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from torch import Tensor

from nextstep.data.documents import Document
from nextstep.engine.request import region_of_edit, with_positive
from nextstep.engine.settings import GenerationSettings
from nextstep.flow import guidance as branches
from nextstep.text import sequence as grammar
from nextstep.text.tokenizer import TextTokenizer

Grid = tuple[int, int]


@dataclass(frozen=True)
class RolloutSample:
    """One sample.

    Attributes:
        index: of its noise, beside the group's seed.
        written: ids that the model wrote: a line before the picture, or an answer.
        ended: whether it ended them itself, before the limit.
        line: what it wrote before the picture as it was read again, "" for nothing; or the answer.
        tokens: [N, D] of the picture, fp32; None where text was asked for.
        rewards: name -> value; "reward" is their weighted sum.
        image: the picture, where it is still at hand.
    """

    index: int
    written: tuple[int, ...] = ()
    ended: bool = True
    line: str = ""
    tokens: Tensor | None = None
    rewards: Mapping[str, float] = field(default_factory=dict)
    image: Image.Image | None = None

    @property
    def reward(self) -> float:
        """What it is trained by."""
        return self.rewards["reward"]


@dataclass(frozen=True)
class RolloutGroup:
    """All samples of one prompt.

    Attributes:
        key, text, facts, draws: see `RolloutPrompt`.
        seed: of the noise.
        grid: of the pictures.
        settings: as they were drawn.
        samples: n of them.
        sources: (tokens [N, D], grid) of source pictures in order of their tags.
        policy: fingerprint of the weights that drew them.
    """

    key: str
    text: str
    seed: int
    grid: Grid
    settings: GenerationSettings
    samples: tuple[RolloutSample, ...]
    sources: tuple[tuple[Tensor, Grid], ...] = ()
    draws: bool = True
    facts: Mapping[str, Any] = field(default_factory=dict)
    policy: str = ""

    def prompt_of(self, sample: RolloutSample) -> str:
        """What stood before a sample's picture, its line included."""
        if not sample.line:
            return self.text
        return grammar.with_reasoning(self.text, sample.line)

    def parts(self, sample: RolloutSample) -> list[grammar.Part]:
        """A sample in the sequence grammar, as it was drawn.

        Tokens that the line of an edit kept from its source were given, so they are not learned.
        """
        grids = [grid for _, grid in self.sources]
        if not self.draws:
            asked = self._before(self.text)
            return [*asked, grammar.Text(sample.line)]
        written = with_positive(self.prompt_of(sample), self.settings)
        if grids:
            region = region_of_edit(self.prompt_of(sample), grids, self.grid)
            return grammar.editing(written, grids, self.grid, region)
        return grammar.text_to_image(written, self.grid)

    def pictures(self, sample: RolloutSample) -> list[Tensor]:
        """Image tokens of all its pictures in reading order."""
        order = grammar.picture_order(self.text, len(self.sources)) if self.sources else []
        made = [] if sample.tokens is None else [sample.tokens]
        return [self.sources[place][0] for place in order] + made

    def _before(self, text: str) -> list[grammar.Part]:
        """Given text and pictures."""
        grids = [grid for _, grid in self.sources]
        return before_answer(text, grids)


def before_answer(text: str, grids: Sequence[Grid]) -> list[grammar.Part]:
    """Text and source pictures that stand before what a model writes."""
    if not grids:
        return [grammar.Text(text)]
    return grammar.editing(text, list(grids), (1, 1))[:-1]


def supervised_document(
    group: RolloutGroup,
    sample: RolloutSample,
    tokenizer: TextTokenizer,
    seed: int,
    branch: str = branches.CONDITIONAL,
) -> Document:
    """A sample as training data: its text and picture are learned as any other's.

    Args:
        group, sample: which.
        tokenizer: of the text.
        seed: of its draws.
        branch: of guidance; the others leave out the text, or sources too.
    """
    parts, negative = group.parts(sample), group.settings.negative_prompt
    if branch == branches.IMAGE_ONLY:
        parts = grammar.without_text(parts, negative)
    elif branch == branches.UNCONDITIONAL:
        parts = grammar.without_text_and_pictures(parts, negative)
    sequence = grammar.build_sequence(parts, tokenizer)
    every = len(group.pictures(sample))
    images = tuple(range(every - len(sequence.images), every))
    return Document(f"{group.key}/{sample.index}", sequence, images, seed)


def weighed_document(
    group: RolloutGroup,
    sample: RolloutSample,
    tokenizer: TextTokenizer,
    seed: int,
) -> Document:
    """A sample as preferences and rewards see it: of the text only what the model wrote counts.

    That includes the id that ended it. Where reading the text again spells it in other ids than
    were written, no text counts.
    """
    whole = grammar.build_sequence(group.parts(sample), tokenizer, end=group.draws)
    ids, labels = list(whole.ids), [grammar.IGNORE] * len(whole)
    first = len(before_line(group, tokenizer))
    end = first + len(sample.written)
    if sample.written and tuple(ids[first:end]) == sample.written:
        if not group.draws and sample.ended:
            ids.append(tokenizer.ids.eos)
            labels.append(grammar.IGNORE)
        last = min(end + sample.ended, len(ids))
        labels[first:last] = ids[first:last]
    sequence = grammar.Sequence(ids, labels, whole.images)
    return Document(f"{group.key}/{sample.index}", sequence, tuple(range(len(whole.images))), seed)


def before_line(group: RolloutGroup, tokenizer: TextTokenizer) -> list[int]:
    """Ids that stand before what the model writes."""
    grids = [grid for _, grid in group.sources]
    asked = grammar.with_reasoning(group.text, "") if group.draws else group.text
    return grammar.build_sequence(before_answer(asked, grids), tokenizer, end=False).ids
