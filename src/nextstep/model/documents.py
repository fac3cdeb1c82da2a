"""Attention inside documents that share rows.

Everything but attention works position by position, so packed rows need no padding there. For
attention the documents are taken out of their rows: on a CPU into a few groups of similar length,
in which plainly causal attention is all there is; on a GPU torch's flex attention skips the blocks
between documents. A boolean mask over whole rows is the fallback that works everywhere.

Legend: B rows, S positions, N = B*S, H query heads, G key/value heads, d head size, n documents of
a group, L their length with padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from nextstep.model.attention import attend

Way = Literal["groups", "flex", "mask"]

STEP = 16
"""Lengths of groups are multiples of this, as the tiles of matrix units are."""

SHRINK = 0.75
"""A group takes documents down to this share of its length."""


@dataclass(frozen=True)
class Group:
    """Documents of similar length.

    Attributes:
        shape: (n, L).
        sources: [n*L] flat positions; padding repeats the document's own last position, so that
            not even a number that is none can come from a neighbour.
        targets: [n*L] the same, but padding goes to N, behind all positions.
    """

    shape: tuple[int, int]
    sources: Tensor
    targets: Tensor


class Documents:
    """Where the documents of packed rows lie, and how attention keeps to them.

    Args:
        numbers: [B, S] number of the document in its row, each in one piece; -1 in padding.
        device: where attention runs; default that of `numbers`.
        way: default "groups" on a CPU and "flex" elsewhere.
    """

    def __init__(
        self,
        numbers: Tensor,
        device: torch.device | str | None = None,
        way: Way | None = None,
    ) -> None:
        self.device = numbers.device if device is None else torch.device(device)
        self.way: Way = way or ("groups" if self.device.type == "cpu" else "flex")
        self.starts, self.lengths = _runs(numbers.cpu().numpy())
        self.numbers = numbers.to(self.device)

    @property
    def looked_at(self) -> float:
        """Pairs of positions that attention is about: sum over documents of length*(length+1)/2."""
        lengths = self.lengths.astype(np.float64)
        return float((lengths * (lengths + 1)).sum() / 2)

    @cached_property
    def groups(self) -> list[Group]:
        """Documents by length, longest first."""
        order = np.argsort(-self.lengths, kind="stable")
        starts, lengths = self.starts[order], self.lengths[order]
        padded = -(-lengths // STEP) * STEP
        made, first = [], 0
        while first < len(lengths):
            L = int(padded[first])
            end = first + int(np.count_nonzero(padded[first:] >= SHRINK * L))
            made.append(self._group(starts[first:end], lengths[first:end], L))
            first = end
        return made

    def _group(self, starts: np.ndarray, lengths: np.ndarray, length: int) -> Group:
        steps = np.arange(length)
        sources = starts[:, None] + np.minimum(steps, lengths[:, None] - 1)
        targets = np.where(steps < lengths[:, None], sources, self.numbers.numel())
        return Group(
            (len(starts), length),
            torch.from_numpy(sources.ravel()).to(self.device),
            torch.from_numpy(targets.ravel()).to(self.device),
        )

    @cached_property
    def mask(self) -> Tensor:
        """bool [B, 1, S, S], True where a query may look; padding looks at padding."""
        same = self.numbers[:, :, None] == self.numbers[:, None, :]
        return same.tril()[:, None]

    @cached_property
    def block_mask(self) -> Any:
        """The same for flex attention, which skips whole blocks of it."""
        from torch.nn.attention.flex_attention import create_block_mask

        numbers = self.numbers
        B, S = numbers.shape

        def inside(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (q >= k) & (numbers[b, q] == numbers[b, k])

        return create_block_mask(inside, B, None, S, S, device=self.device)


def attend_documents(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    """Causal attention inside each document.

    Args:
        q: [B, S, H, d], positions already applied.
        k, v: [B, S, G, d].
        documents: of the rows.

    Returns:
        [B, S, H, d]; without meaning in padding, but finite.
    """
    if documents.way == "groups":
        return _in_groups(q, k, v, documents)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if documents.way == "mask":
        return attend(q, k, v, documents.mask).transpose(1, 2)
    return flex(q.device)(
        q, k, v, block_mask=documents.block_mask, enable_gqa=q.shape[1] != k.shape[1]
    ).transpose(1, 2)


_flex: dict[str, Any] = {}


def flex(device: torch.device) -> Any:
    """Flex attention, compiled where that makes it a kernel."""
    if device.type not in _flex:
        from torch.nn.attention.flex_attention import flex_attention

        on_gpu = device.type == "cuda"
        _flex[device.type] = torch.compile(flex_attention) if on_gpu else flex_attention
    return _flex[device.type]


def _in_groups(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    B, S, H, d = q.shape
    out = []
    for group in documents.groups:
        n, L = group.shape
        own_q, own_k, own_v = (
            TakeRows.apply(x.reshape(B * S, -1), group.sources, group.targets)
            .view(n, L, -1, d)
            .transpose(1, 2)
            for x in (q, k, v)
        )
        out.append(attend(own_q, own_k, own_v, None).transpose(1, 2).reshape(n * L, H * d))
    if not out:
        return torch.zeros_like(q)
    targets = torch.cat([group.targets for group in documents.groups])
    return PlaceRows.apply(torch.cat(out), targets, B * S).view(B, S, H, d)


class TakeRows(torch.autograd.Function):
    """Rows out of packed positions.

    Args of `apply`:
        x: [N, W].
        sources: [P] rows to take.
        targets: [P] where each row's gradient goes; every row of x at most once, N for nowhere.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, sources: Tensor, targets: Tensor) -> Tensor:
        """[P, W]."""
        ctx.save_for_backward(targets)
        ctx.rows = len(x)
        return x.index_select(0, sources)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """[N, W]."""
        (targets,) = ctx.saved_tensors
        return _placed(gradients[0], targets, ctx.rows), None, None


class PlaceRows(torch.autograd.Function):
    """Rows back into packed positions; zero where none goes.

    Args of `apply`:
        x: [P, W].
        targets: [P] as in `TakeRows`.
        rows: N.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, targets: Tensor, rows: int) -> Tensor:
        """[N, W]."""
        ctx.save_for_backward(targets)
        ctx.rows = rows
        return _placed(x, targets, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """[P, W]; what was placed nowhere has no part in anything."""
        (targets,) = ctx.saved_tensors
        nowhere = gradients[0].new_zeros(1, gradients[0].shape[1])
        return torch.cat((gradients[0], nowhere)).index_select(0, targets), None, None


def _placed(x: Tensor, targets: Tensor, rows: int) -> Tensor:
    out = x.new_zeros(rows + 1, x.shape[1])
    return out.index_copy_(0, targets, x)[:rows]


def _runs(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(flat starts, lengths) of the stretches of one number, without padding."""
    fresh = np.ones(numbers.shape, bool)
    fresh[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
    starts = np.flatnonzero(fresh)
    lengths = np.diff(np.append(starts, numbers.size))
    real = numbers.ravel()[starts] >= 0
    return starts[real], lengths[real]
