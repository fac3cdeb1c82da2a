"""Functions that every processor computes alike, because they are rounded from fp64.

torch's own exponentials, sines and powers in fp32 differ in the last bit from one instruction set
to another. Those of fp64 differ too, but 29 bits lower, where rounding hides it. What is here is
computed once a process, so that it may be slow.

Legend: P positions, d head size, M times, W head width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nextstep.kernels.linear import PackedLinear
from nextstep.model.flow_head import MAX_PERIOD, TIME_SIZE


def rotary_angles(positions: int, head_dim: int, theta: float) -> Tensor:
    """Cosines and sines of positions from 0 on, [P, 2, d]; see `model.backbone.rotary_angles`."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    frequencies = (theta**-exponent).float()
    return _waves(torch.arange(positions).float()[:, None] * frequencies).repeat(1, 1, 2)


def time_sinusoid(t: Tensor) -> Tensor:
    """[M] -> [M, 256]; see `model.flow_head.time_sinusoid`."""
    steps = torch.arange(TIME_SIZE // 2, dtype=torch.float64)
    frequencies = torch.exp(-math.log(MAX_PERIOD) * steps / (TIME_SIZE // 2)).float()
    return _waves(t.float()[:, None] * frequencies).flatten(1)


def embed_times(t: Tensor, first: PackedLinear, second: PackedLinear) -> Tensor:
    """[M] -> [M, W]: sinusoid, Linear, SiLU, Linear."""
    inner = first(time_sinusoid(t)).double()
    return second((inner / (1 + torch.exp(-inner))).float())


def _waves(angles: Tensor) -> Tensor:
    """[n, k] -> [n, 2, k]: cosines and sines."""
    return torch.stack((angles.double().cos(), angles.double().sin()), dim=1).float()
