"""What computes a step of the engine, as the scheduler sees it.

Three backends implement the protocol: `torch` (plain, on any device), `cpu_kernels` and
`cuda_graphs`. Where a library's products depend on the number of rows, rows go in blocks of one
size (`blockwise`).

Legend: n rows, b branches, S prompt positions, D values per token, E hidden size, V vocabulary, R
rows of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from nextstep.flow.solvers import SolverSettings
from nextstep.model.cache import KVCache


@dataclass(frozen=True)
class Prompt:
    """What stands before the first position that is sampled, in one branch.

    Attributes:
        ids: token ids, for a picture up to and including begin-of-image.
        image_tokens: one [n, D] tensor per source picture, in reading order.
        grids: (rows, columns) of each source picture.
    """

    ids: Sequence[int]
    image_tokens: Sequence[Tensor] = ()
    grids: Sequence[tuple[int, int]] = ()


@dataclass(eq=False)
class CacheRow:
    """One row of keys and values; a backend that moves rows changes `row`."""

    cache: KVCache
    row: int = 0


class Place(NamedTuple):
    """Where a row of a step stands: its keys and values, and the position they are stored at."""

    slot: CacheRow
    position: int


class Prefilled(NamedTuple):
    """A prompt that is read: its keys and values, and the last position's state [E]."""

    slot: CacheRow
    hidden: Tensor


class SampleRequest(NamedTuple):
    """One image token that is to be sampled.

    Attributes:
        hidden: [b, E], states of its branches.
        draws: [draws, D].
        solver, branches: how it is sampled.
        weights: of the branches for this token.
        normalise: whether the token is normalised.
    """

    hidden: Tensor
    draws: Tensor
    solver: SolverSettings
    branches: tuple[str, ...]
    weights: dict[str, float]
    normalise: bool


class Backend(Protocol):
    """Computes prompts, steps and tokens for the scheduler.

    Attributes:
        name: as pictures record it.
        block_rows: rows that products are made of, so that a row's bytes are independent of the
            other rows of a call; 0 where they are not.
    """

    name: str
    block_rows: int

    def check(self) -> None:
        """Make sure that this machine keeps rows apart, where the backend promises it.

        Raises:
            NextStepError: when it cannot.
        """

    def prefill(self, prompts: Sequence[Prompt], room: Sequence[int]) -> list[Prefilled]:
        """Read prompts; each gets its own row with `room` free positions behind it.

        Equal ones, such as those without the text, are read once.
        """

    def embed_images(self, tokens: Tensor, coordinates: Tensor) -> Tensor:
        """Input embeddings of image tokens: [n, D], [n, 2] in their pictures -> [n, E]."""

    def embed_ids(self, ids: Sequence[int]) -> Tensor:
        """Input embeddings of text ids, [n, E]."""

    def step(self, embedded: Tensor, places: Sequence[Place]) -> Tensor:
        """One position a row, [n, E] -> states [n, E]; positions of one row stand in order."""

    def sample(self, requests: Sequence[SampleRequest]) -> list[Tensor]:
        """The image token [D] of every request, fp32 on the CPU, in order."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Of the next text id: [n, E] -> [n, V]."""

    def release(self, slot: CacheRow) -> None:
        """Give a row's memory back."""


def distinct(prompts: Sequence[Prompt], room: Sequence[int]) -> tuple[list[int], list[int]]:
    """Places of the prompts that are unlike those before, and which of these each prompt is."""
    keys = [
        (tuple(prompt.ids), tuple(map(id, prompt.image_tokens)), free)
        for prompt, free in zip(prompts, room, strict=True)
    ]
    known = {key: place for place, key in reversed(list(enumerate(keys)))}
    firsts = sorted(known.values())
    return firsts, [firsts.index(known[key]) for key in keys]


def shared(read: Sequence[Prefilled], which: Sequence[int]) -> list[Prefilled]:
    """A row for every prompt: the first of its kind has the one that was read, others copies."""
    rows: list[Prefilled] = []
    for place, kind in enumerate(which):
        slot, hidden = read[kind]
        again = kind in which[:place]
        rows.append(Prefilled(CacheRow(slot.cache.copy()) if again else slot, hidden))
    return rows


ROWS = 8
"""R. Pictures are byte-equal for one R; another one gives other roundings."""


def filled(rows: Tensor, size: int = ROWS) -> Tensor:
    """Rows [n, ...] with zeros behind, up to a multiple of `size`."""
    missing = -len(rows) % size
    if not missing:
        return rows.contiguous()
    return torch.cat((rows, rows.new_zeros(missing, *rows.shape[1:])))


def blockwise(function: Callable[[Tensor], Tensor], rows: Tensor, size: int = ROWS) -> Tensor:
    """A function of [R, ...] applied to [n, ...] in blocks."""
    blocks = filled(rows, size).split(size)
    return torch.cat([function(block) for block in blocks])[: len(rows)]
