"""Linear layers whose weights are packed in one of the number formats.

Legend: N outputs, K inputs.
"""

from __future__ import annotations

import ctypes
import math
import mmap

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextstep.kernels import build
from nextstep.kernels.lossless import CompressedMatrix, compress, decompress, halve, unhalve
from nextstep.kernels.packing import FORMATS, WIDTH, pack, quantise, unpack

BLOCK = 2**28
"""Bytes that packed weights are given at a time."""
AT_ONCE = 2**22
"""Numbers that are rounded at a time."""
MULTIPLE = 16
"""Every width that a kernel sees is a multiple of this."""


class Matrix(ctypes.Structure):
    """`Matrix` of lossless_bf16.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("format", "outputs", "inputs")),
        *((name, ctypes.c_void_p) for name in ("data", "scale", "bias")),
        *((name, ctypes.c_void_p) for name in ("high", "outliers", "first")),
        ("halved", ctypes.c_int64),
    )


class WeightBuffer:
    """Memory for packed weights in huge pages, where the system has them.

    With small pages a large part of the time would go into looking them up.
    """

    def __init__(self) -> None:
        self.block = torch.empty(0, dtype=torch.uint8)
        self.used = 0

    def keep(self, tensor: Tensor) -> Tensor:
        """The same tensor, in here."""
        size = tensor.numel() * tensor.element_size()
        if not size:
            return tensor
        if self.used + size > len(self.block):
            # What was needed on the way to the last block lies free in the heap, between small
            # things that keep it from shrinking: gigabytes while a large model is packed.
            release_heap()
            self.block, self.used = huge_pages(max(size, BLOCK)), 0
        place = self.block[self.used : self.used + size]
        self.used = math.ceil((self.used + size) / 64) * 64
        kept = place.view(tensor.dtype).view(tensor.shape)
        return kept.copy_(tensor)


def release_heap() -> None:
    """Hand free memory of the heap back to the system, where the C library knows how."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        return


def huge_pages(size: int) -> Tensor:
    """Memory of so many bytes, in huge pages where the system has them."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size, dtype=torch.uint8)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


class PackedLinear(nn.Module):
    """x @ weight^T + bias with packed weights, for sampling: it has no gradient.

    Through the kernels a row's result depends on that row alone. Where they are not available the
    weights are unpacked for every call, which is right, but slow.

    Args:
        weight: [N, K].
        bias: [N] or none.
        format_: one of `packing.FORMATS`.
        buffer: where packed weights are kept.
        compressed: whether bf16 numbers may take 12 bits, where the kernels are there to read them;
            nothing is lost.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        format_: str,
        buffer: WeightBuffer,
        compressed: bool = False,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.format = format_
        # Rounded in parts, because a whole large matrix takes several times its memory on the way.
        rows = max(1, AT_ONCE // (WIDTH * self.in_features)) * WIDTH
        parts = [pack(quantise(part, format_)) for part in weight.detach().split(rows)]
        data, scale = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        del parts
        self.compressed: CompressedMatrix | None = None
        if compressed and self.fits and format_ in ("fp32", "bf16"):
            self.compressed = compress(data)
        self._shape = data.shape
        self.halved = False
        if self.fits and format_ == "fp32" and self.compressed is None:
            halves = halve(data)
            self.halved, data = halves is not None, data if halves is None else halves
        self.data = buffer.keep(self.compressed.data if self.compressed else data)
        self.scale = buffer.keep(scale)
        if self.compressed:
            self.compressed = self.compressed._replace(data=self.data)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self._matrix: Matrix | None = None

    @property
    def fits(self) -> bool:
        """Whether a kernel can multiply by it."""
        widths = self.in_features % MULTIPLE == 0 and self.out_features % MULTIPLE == 0
        return widths and build.is_available()

    @property
    def matrix(self) -> Matrix:
        """What kernels are given."""
        if self._matrix is None:
            self._bias = None if self.bias is None else self.bias.float().contiguous()
            beside = self.compressed[1:] if self.compressed else ()
            addresses = [tensor.data_ptr() for tensor in beside] or [0, 0, 0]
            self._matrix = Matrix(
                FORMATS.index(self.format), self.out_features, self.in_features,
                self.data.data_ptr(), self.scale.data_ptr(),
                None if self._bias is None else self._bias.data_ptr(),
                *addresses, self.halved,
            )  # fmt: skip
        return self._matrix

    @property
    def weight(self) -> Tensor:
        """[N, K] as it is used, unpacked anew at every call, and not to be changed."""
        dtype = torch.bfloat16 if self.format == "bf16" else torch.float32
        data = decompress(self.compressed, self._shape, dtype) if self.compressed else self.data
        data = unhalve(data) if self.halved else data
        shape = self.out_features, self.in_features
        return unpack(self.format, data, self.scale, *shape).restored(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N] in the dtype of x."""
        if not self.fits:
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return F.linear(x, self.weight.to(x.dtype), bias)
        rows = x.detach().reshape(-1, self.in_features).float().contiguous()
        out = torch.empty(len(rows), self.out_features)
        build.call("linear", self.matrix, len(rows), rows, out)
        return out.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """What torch prints."""
        compressed = ", compressed" if self.compressed else ""
        return f"{self.in_features}, {self.out_features}, {self.format}{compressed}"


def packed_bytes(model: nn.Module) -> int:
    """Memory of all weights, packed or not, each counted once."""
    plain = {p.data_ptr(): p.numel() * p.element_size() for p in model.parameters()}
    packed = [part for part in model.modules() if isinstance(part, PackedLinear)]
    tensors = [t for part in packed for t in (part.data, part.scale, *(part.compressed or ())[2:])]
    return sum(plain.values()) + sum(t.numel() * t.element_size() for t in tensors)


def packed_weights(model: nn.Module) -> dict[str, Tensor]:
    """Weights of a model's packed layers by name, [N, K]."""
    found = model.named_modules()
    return {f"{name}.weight": part.weight for name, part in found if isinstance(part, PackedLinear)}
