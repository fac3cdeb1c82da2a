"""bf16 numbers in 12 bits, without loss.

The low byte of a weight is as good as random, but the high one, its sign and all of its exponent
but one bit, is nearly always one of 16: of normally distributed weights one in ten thousand is so
small that it has another (compare Zhang et al., "70% Size, 100% Accuracy", arXiv 2504.11651, who
use a code of variable length, for a GPU). So 128 numbers, four lines of 32, take 192 bytes instead
of 256:

    [2, 64]   low bytes: of the first two lines, then of the other two
    [64]      which of the 16 high bytes, in the same order: of the first 64 in the lower halves of
              the bytes, of the others in the upper

Numbers with another high byte are kept whole beside, with their place. In 64 bytes the quarters (8
numbers each) of two lines take turns, which is how vector instructions put bytes together.

A matrix that the kernels compute with in fp32 can be compressed as well when all of its numbers are
bf16, as they are where a model was released in bf16. The kernels themselves compress and read. One
that is not compressed is then stored as bf16 (`halve`), which is half of the bytes to be read.

Legend: K inputs; a block has 32 outputs, a step 1024 numbers; n numbers that are kept whole.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from nextstep.kernels import build

STEP = 1024
"""Numbers of 32 inputs in a block of 32 outputs."""
CODES = 16
"""High bytes that have a code."""
MAX_OUTLIERS = 1 / 512
"""Share of numbers that may be kept whole; with more of them compression does not pay."""


class CompressedMatrix(NamedTuple):
    """A packed matrix of `blocks` blocks in 12 bits a number.

    Attributes:
        data: uint8 [blocks, steps, 8, 192].
        high: uint8 [16]: the high bytes that have a code.
        outliers: int32 [n, 2]: place in its block and bits of every number kept whole, in order.
        first: int64 [blocks + 1]: where a block's outliers begin.
    """

    data: Tensor
    high: Tensor
    outliers: Tensor
    first: Tensor


class Bf16Compressor(ctypes.Structure):
    """`Bf16Compressor` of lossless_bf16.h."""

    _fields_ = (
        ("values", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("wide", "blocks", "count")),
        *((name, ctypes.c_void_p) for name in ("codes", "first", "data", "outliers")),
    )


def compress(data: Tensor) -> CompressedMatrix | None:
    """Compress a matrix that `packing.pack` made, or None where that loses something or costs.

    It needs the kernels.

    Args:
        data: fp32 [blocks, K, 32] or bf16 [blocks, K/32, 2, 16, 16, 2], as packed.

    Returns:
        The compressed matrix; fp32 is filled up with zeros to whole steps.
    """
    blocks, count, wide = len(data), data[0].numel(), data.dtype == torch.float32
    asked = Bf16Compressor(data.data_ptr(), wide, blocks, count)
    counts = torch.zeros(257, dtype=torch.int64)
    build.call("count_bytes", asked, counts)
    often, high = counts[:256].topk(CODES)
    missing = data.numel() - int(often.sum())
    if counts[256] or missing > MAX_OUTLIERS * data.numel():
        return None
    codes = torch.full((256,), CODES, dtype=torch.uint8)
    codes[high] = torch.arange(CODES, dtype=torch.uint8)
    result = CompressedMatrix(
        torch.empty(blocks, -(-count // STEP), 8, 192, dtype=torch.uint8),
        high.to(torch.uint8),
        torch.empty(missing, 2, dtype=torch.int32),
        torch.empty(blocks + 1, dtype=torch.int64),
    )
    asked.codes, asked.first = codes.data_ptr(), result.first.data_ptr()
    asked.data, asked.outliers = result.data.data_ptr(), result.outliers.data_ptr()
    build.call("count_outliers", asked)
    build.call("compress", asked)
    return result


def halve(data: Tensor) -> Tensor | None:
    """A packed fp32 matrix whose numbers are all bf16 in half of its memory, or None.

    Args:
        data: fp32 [blocks, K, 32].

    Returns:
        bf16 [blocks, K, 16, 2]: outputs i and i + 16 side by side, so that one word of 32 bits
        becomes two numbers by a shift and by a mask.
    """
    if bool((data.view(torch.int32) & 0xFFFF).any()):
        return None
    return data.bfloat16().unflatten(2, (2, 16)).transpose(2, 3).contiguous()


def unhalve(data: Tensor) -> Tensor:
    """What `halve` was given."""
    return data.transpose(2, 3).flatten(2).float()


def decompress(compressed: CompressedMatrix, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """What `compress` was given: a packed matrix of this shape, in fp32 or bf16."""
    blocks = len(compressed.data)
    lines = compressed.data.view(blocks, -1, 3, 64).int()
    low, both = lines[:, :, :2], lines[:, :, 2]
    codes = torch.stack((both & 15, both >> 4), 2)
    bits = compressed.high.int()[codes.long()] << 8 | low
    bits = bits.view(blocks, -1, 2, 4, 2, 8).transpose(3, 4).reshape(blocks, -1)
    place, value = compressed.outliers.long().unbind(1)
    block = torch.repeat_interleave(torch.arange(blocks), compressed.first.diff())
    bits[block, place] = value.int()
    if dtype == torch.float32:
        wide = (bits << 16).view(dtype)
        return wide[:, : shape[1:].numel()].reshape(shape)
    return bits.to(torch.int16).view(dtype).view(shape)
