"""Number formats of weights, and matrices in the order in which the kernels read them.

A matrix [N, K] is cut into blocks of 32 outputs, filled up with zeros. In a block

    fp32    [K, 32]
    bf16    [K/32, 2, 16, 16, 2]    step, half of the outputs, pair of inputs, output, input
    int8    [K/64, 2, 16, 16, 4]    the same with four inputs
    int4    [K/64, 2, 8, 64]        two of int8's 16 lines a byte: line i below, line i + 8 above

int8 has one scale an output; int4 one for 64 inputs of an output, kept in bf16.

Legend: N outputs, K inputs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nextstep.errors import NextStepError

FORMATS = ("fp32", "bf16", "int8", "int4")
"""In the order of the kernels' own numbers."""
WIDTH, GROUP = 32, 64


class Quantised(NamedTuple):
    """A matrix in a format, not yet in the kernels' order.

    Attributes:
        format: one of `FORMATS`.
        values: [N, K]: fp32, bf16, or int8 (also for int4, -8 to 7).
        scale: int8: fp32 [N]; int4: bf16 [N, K/64] rounded up; else empty.
    """

    format: str
    values: Tensor
    scale: Tensor

    def restored(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[N, K] as it is used."""
        if self.format == "int8":
            return (self.values.float() * self.scale[:, None]).to(dtype)
        if self.format == "int4":
            each = self.scale.float().repeat_interleave(GROUP, dim=1)[:, : self.values.shape[1]]
            return (self.values.float() * each).to(dtype)
        return self.values.to(dtype)


def check_format(name: str) -> str:
    """The name, if it is a format.

    Raises:
        NextStepError: when it is not.
    """
    if name not in FORMATS:
        raise NextStepError(f"unknown number format '{name}'; choose from {', '.join(FORMATS)}")
    return name


def quantise(weight: Tensor, format_: str) -> Quantised:
    """Round a matrix [N, K] to a format.

    int8 takes the largest of an output as 127. int4 takes the one of a group that is farthest from
    0 as -8, with its sign in the scale, because a group of 64 rarely reaches as far on both sides.
    """
    nothing = weight.new_empty(0)
    if format_ in ("fp32", "bf16"):
        dtype = torch.float32 if format_ == "fp32" else torch.bfloat16
        return Quantised(format_, weight.to(dtype), nothing)
    wide = weight.float()
    if format_ == "int8":
        # 127, not 128: the range is symmetric, so a weight and its negative round alike. An output
        # of zeros keeps a scale that can be divided by.
        scale = wide.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        return Quantised(format_, (wide / scale[:, None]).round().to(torch.int8), scale)
    N, K = wide.shape
    groups = F.pad(wide, (0, -K % GROUP)).view(N, -1, GROUP)
    farthest = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True))
    # The scale is rounded first, and the values by the rounded one, so that its error does not add.
    scale = (farthest / -8).bfloat16()
    by = torch.where(scale == 0, 1, scale.float())
    values = (groups / by).round().clamp(-8, 7).to(torch.int8)
    return Quantised(format_, values.flatten(1)[:, :K].contiguous(), scale[:, :, 0])


def pack(matrix: Quantised) -> tuple[Tensor, Tensor]:
    """(data, scale) in the kernels' order."""
    values, format_ = matrix.values, matrix.format
    N, K = values.shape
    # Inputs that one instruction takes: pairs of bf16 and quadruples of bytes, 16 deep in a tile.
    depth = {"fp32": 1, "bf16": 32}.get(format_, GROUP)
    filled = F.pad(values, (0, -K % depth, 0, -N % WIDTH))
    blocks = filled.shape[0] // WIDTH
    if format_ == "fp32":
        return filled.view(blocks, WIDTH, -1).transpose(1, 2).contiguous(), matrix.scale
    each = depth // 16
    data = filled.view(blocks, 2, 16, -1, 16, each).permute(0, 3, 1, 4, 2, 5).contiguous()
    if format_ == "bf16":
        return data, matrix.scale
    if format_ == "int8":
        return data, F.pad(matrix.scale, (0, -N % WIDTH))
    lines = data.view(blocks, -1, 2, 16, GROUP)
    # Rows i and i + 8 of a tile share their bytes: low halves and high halves.
    low, high = lines[:, :, :, :8] & 15, lines[:, :, :, 8:] << 4
    scale = F.pad(matrix.scale, (0, 0, 0, -N % WIDTH)).view(blocks, WIDTH, -1)
    # A sixteenth, exact in bf16: the kernels read the halves as the upper bits of a byte.
    return (low | high).contiguous(), (scale / 16).transpose(1, 2).contiguous()


def unpack(format_: str, data: Tensor, scale: Tensor, outputs: int, inputs: int) -> Quantised:
    """What `pack` was given."""
    blocks = len(data)
    if format_ == "fp32":
        values = data.transpose(1, 2).reshape(blocks * WIDTH, -1)
        return Quantised(format_, values[:outputs, :inputs], scale)
    if format_ == "int4":
        # Shifts of signed bytes keep the sign of both halves.
        low, high = (data << 4) >> 4, data >> 4
        data = torch.cat((low, high), dim=3).view(blocks, -1, 2, 16, 16, 4)
        scale = (scale * 16).transpose(1, 2).reshape(blocks * WIDTH, -1)
    values = data.permute(0, 2, 4, 1, 3, 5).reshape(blocks * WIDTH, -1)
    return Quantised(format_, values[:outputs, :inputs].contiguous(), scale[:outputs])
