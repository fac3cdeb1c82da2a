"""A sum over many rows, made in parts of one size together with its gradients.

A loss is a scalar, so the gradients of a part of it can be made as soon as the part is; only they
are kept, and no activation outlives its part. That bounds the memory of a head that sees every
token at several noise levels; it keeps a part's tensors in the caches; and compiled code meets one
shape, however many rows there are.

Legend: M rows after any split into chunks, d values per row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def sum_in_parts(
    function: Callable[..., Tensor],
    rows: Sequence[tuple[Tensor, int]],
    shared: Sequence[Tensor],
    size: int,
) -> Tensor:
    """function(valid, *rows, *shared) summed over parts of the rows.

    Args:
        function: from `size` rows to the scalar sum over those where `valid`, fp32 [size], is 1;
            the others are 0.
        rows: tensors with the dimension that runs over the rows, which are as many in each and at
            least one.
        shared: tensors that every part sees whole.
        size: rows of a part.

    Returns:
        Scalar, fp32.
    """
    tensors = [tensor for tensor, _ in rows]
    dims = tuple(dim for _, dim in rows)
    if not any(x.requires_grad for x in (*tensors, *shared)):
        parts = _parts(tensors, dims, size)
        return torch.stack([function(valid, *own, *shared) for valid, own in parts]).sum()
    return _Sum.apply(function, dims, size, *tensors, *shared)


class _Sum(torch.autograd.Function):
    """The scalar sum, whose gradients are made part by part during the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        function: Callable[..., Tensor],
        dims: tuple[int, ...],
        size: int,
        *tensors: Tensor,
    ) -> Tensor:
        """Rows first, then shared tensors, as in `sum_in_parts`; a scalar, fp32."""
        count, wanted = len(dims), ctx.needs_input_grad[3:]
        fixed = [x.detach() for x in tensors[count:]]
        leaves = [x.requires_grad_(w) for x, w in zip(fixed, wanted[count:], strict=True)]
        total = torch.zeros((), device=tensors[0].device)
        pieces: list[list[Tensor]] = [[] for _ in range(sum(wanted[:count]))]
        sums = [torch.zeros_like(x, dtype=torch.float32) for x in leaves if x.requires_grad]
        for valid, parts in _parts(tensors[:count], dims, size):
            own = [x.requires_grad_(w) for x, w in zip(parts, wanted, strict=False)]
            with torch.enable_grad():
                value = function(valid, *own, *leaves)
            made = torch.autograd.grad(value, [x for x in (*own, *leaves) if x.requires_grad])
            total += value.detach()
            for kept, piece in zip(pieces, made, strict=False):
                kept.append(piece)
            for into, piece in zip(sums, made[len(pieces) :], strict=True):
                into.add_(piece)
        asked = [(x, d) for x, d, w in zip(tensors, dims, wanted, strict=False) if w]
        whole = [torch.cat(own, d) for own, (_, d) in zip(pieces, asked, strict=True)]
        whole = [g.narrow(d, 0, x.shape[d]) for g, (x, d) in zip(whole, asked, strict=True)]
        ctx.save_for_backward(*whole, *sums)
        ctx.wanted = wanted
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        """The stored gradients times that of the sum; every one has its tensor's shape."""
        saved = iter(ctx.saved_tensors)
        return None, None, None, *(next(saved) * gradients[0] if w else None for w in ctx.wanted)


def _parts(
    tensors: Sequence[Tensor], dims: tuple[int, ...], size: int
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """(valid, tensors) of each part, the last one filled up with zeros."""
    count = tensors[0].shape[dims[0]]
    for first in range(0, count, size):
        rows = min(size, count - first)
        valid = (torch.arange(size, device=tensors[0].device) < rows).float()
        parts = []
        for tensor, dim in zip(tensors, dims, strict=True):
            part = tensor.detach().narrow(dim, first, rows).contiguous()
            behind = (0, 0) * (tensor.ndim - 1 - dim)
            parts.append(F.pad(part, (*behind, 0, size - rows)) if rows < size else part)
        yield valid, parts
