"""Two-dimensional sinusoids that tell the flow head which place of the picture it draws."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def _sinusoid(positions: Tensor, size: int) -> Tensor:
    """[N] -> [N, size]: sines, then cosines."""
    omega = 1.0 / 10_000 ** (torch.arange(size // 2, dtype=torch.float64) / (size / 2))
    angles = positions.double()[:, None] * omega
    return torch.cat((angles.sin(), angles.cos()), dim=1)


@functools.lru_cache(maxsize=64)
def grid_sinusoid(grid: tuple[int, int], size: int) -> Tensor:
    """2-D sinusoid of a grid, [rows*columns, size] fp32 in raster order.

    The first half of the values encodes the column, the second the row, the order that masked
    autoencoders made common. `size` must be a multiple of 4.
    """
    rows, columns = grid
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    halves = (_sinusoid(x.reshape(-1), size // 2), _sinusoid(y.reshape(-1), size // 2))
    return torch.cat(halves, dim=1).float()
