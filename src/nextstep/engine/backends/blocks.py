"""Rows in blocks of one size, because matrix products choose their way of adding by it.

Legend: R rows of a block, n rows of a call.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

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
