"""Encoder and decoder of the autoencoder through the kernels, in fp32.

The same bytes on every processor that has kernels, with any number of threads; torch rounds in
another order on each. Convolutions of 3x3 go by Winograd's method (`kernels/feature_map.h`), in
half of the multiplications, and a convolution behind a doubling in a quarter.

Legend: H W height and width of a map, C channels (read: I, written: O), P packed channels.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextstep.kernels import build
from nextstep.kernels.linear import MULTIPLE
from nextstep.kernels.packing import pack, quantise
from nextstep.vae.autoencoder import (
    Decoder,
    Downsample,
    Encoder,
    MidBlock,
    ResnetBlock,
    SpatialAttention,
    Upsample,
)
from nextstep.vae.config import AutoencoderConfig

POINT, SAME, DOUBLED, HALVED = range(4)
"""Kinds of convolutions, as the kernels number them."""


class ConvolutionStruct(ctypes.Structure):
    """`Convolution` of feature_map.h."""

    _fields_ = (
        *((n, ctypes.c_int64) for n in ("kind", "height", "width", "inputs", "outputs")),
        ("weights", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    )


class GroupNormStruct(ctypes.Structure):
    """`GroupNorm` of feature_map.h."""

    _fields_ = (
        *((n, ctypes.c_int64) for n in ("pixels", "channels", "groups", "silu")),
        ("eps", ctypes.c_double),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    )


def fits(config: AutoencoderConfig) -> bool:
    """Whether the kernels are there and know such a network."""
    return all(size % MULTIPLE == 0 for size in config.block_channels) and build.is_available()


class PackedConvolution:
    """A convolution, or a linear layer at every place, as the kernels read it.

    Args:
        weight: [O, I, 3, 3], or [O, I] for POINT.
        bias: [O].
        kind: one of the above.
    """

    def __init__(self, weight: Tensor, bias: Tensor, kind: int) -> None:
        missing = -weight.shape[1] % MULTIPLE, -weight.shape[0] % MULTIPLE
        taps = (0,) * 2 * (weight.dim() - 2)
        weight = F.pad(weight.detach(), (*taps, 0, missing[0], 0, missing[1]))
        self.kind, (self.outputs, self.inputs) = kind, weight.shape[:2]
        self.bias = F.pad(bias.detach().float(), (0, missing[1])).contiguous()
        packed = [pack(quantise(one, "fp32"))[0] for one in products_of(weight, kind)]
        self.weights = torch.stack(packed)

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """A map [H, W, I] to [H', W', O], with another one added to it."""
        H, W, _ = x.shape
        size = {DOUBLED: (2 * H, 2 * W), HALVED: (H // 2, W // 2)}.get(self.kind, (H, W))
        out = torch.empty(*size, self.outputs)
        own = ConvolutionStruct(
            self.kind, H, W, self.inputs, self.outputs, self.weights.data_ptr(),
            self.bias.data_ptr(),
        )  # fmt: skip
        build.call("convolve", own, x, add, out)
        return out


def products_of(weight: Tensor, kind: int) -> list[Tensor]:
    """Matrices [O, I] by which a convolution is computed, product after product.

    Sums are made of single elements in fp64, so that they are the same on every processor.
    """
    if kind == POINT:
        return [weight]
    if kind == HALVED:
        return [weight.permute(0, 2, 3, 1).flatten(1)]
    turned = [_turned(row, kind) for row in _turned(weight.double().unbind(2), kind)]
    return [one.float() for row in turned for one in row]


def _turned(taps: tuple[Tensor, ...] | Tensor, kind: int) -> list[Tensor]:
    """Three taps of one direction as factors of a tile's turned inputs."""
    first, middle, last = taps if isinstance(taps, tuple) else taps.unbind(-1)
    both = first + last
    if kind == DOUBLED:
        return [first, both + middle, last]
    return [first, (both + middle) / 2, (both - middle) / 2, last]


class PackedNorm:
    """Group norm, and SiLU behind it where asked for."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight = norm.weight.detach().float().contiguous()
        self.bias = norm.bias.detach().float().contiguous()

    def __call__(self, x: Tensor, silu: bool = True) -> Tensor:
        """A map [H, W, C] to the same shape."""
        out = torch.empty_like(x)
        own = GroupNormStruct(
            x.shape[0] * x.shape[1], x.shape[2], self.groups, silu, self.eps,
            self.weight.data_ptr(), self.bias.data_ptr(),
        )  # fmt: skip
        build.call("group_norm", own, x, out)
        return out


class KernelMaps:
    """An encoder or decoder whose `config` `fits`, with packed copies of its weights.

    Args:
        network: fp32, on the CPU.
    """

    def __init__(self, network: Encoder | Decoder) -> None:
        self.network, self._state = network, _state_of(network)
        self._packed: dict[nn.Module, PackedConvolution] = {}
        self._norms: dict[nn.Module, PackedNorm] = {}

    def stands_for(self, network: nn.Module) -> bool:
        """Whether this is that network, and its weights are as they were."""
        return self.network is network and self._state == _state_of(network)

    def __call__(self, x: Tensor) -> Tensor:
        """[B, C, H, W] as the network does, each of B alone."""
        return torch.stack([self._one(own) for own in x])

    def _one(self, x: Tensor) -> Tensor:
        """[C, H, W] through the network."""
        network, missing = self.network, -len(x) % MULTIPLE
        x = F.pad(x.float().permute(1, 2, 0), (0, missing)).contiguous()
        x = self._convolve(network.conv_in, x)
        if isinstance(network, Decoder):
            x = self._levels(network.up_blocks, self._middle(network.mid_block, x))
        else:
            x = self._middle(network.mid_block, self._levels(network.down_blocks, x))
        x = self._convolve(network.conv_out, self._norm(network.conv_norm_out, x))
        return x[..., : network.conv_out.out_channels].permute(2, 0, 1).contiguous()

    def _middle(self, block: MidBlock, x: Tensor) -> Tensor:
        (attention,) = block.attentions
        assert isinstance(attention, SpatialAttention)
        first, second = block.resnets
        x = self._attend(attention, self._block(first, x))
        return self._block(second, x)

    def _levels(self, levels: nn.ModuleList, x: Tensor) -> Tensor:
        for part in levels.modules():
            if isinstance(part, ResnetBlock):
                x = self._block(part, x)
            elif isinstance(part, Upsample | Downsample):
                x = self._convolve(part.conv, x, DOUBLED if isinstance(part, Upsample) else HALVED)
        return x

    def _block(self, block: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(block, ResnetBlock)
        y = self._convolve(block.conv1, self._norm(block.norm1, x))
        y = self._norm(block.norm2, y)
        around = block.conv_shortcut
        x = x if around is None else self._convolve(around, x, POINT)
        return self._convolve(block.conv2, y, SAME, x)

    def _attend(self, block: SpatialAttention, x: Tensor) -> Tensor:
        H, W, C = x.shape
        if block not in self._packed:
            parts = block.to_q, block.to_k, block.to_v
            weight, bias = (torch.cat([getattr(p, n) for p in parts]) for n in ("weight", "bias"))
            self._packed[block] = PackedConvolution(weight, bias, POINT)
        qkv = self._packed[block](self._norm(block.group_norm, x, silu=False))
        seen = torch.empty_like(x)
        build.call("spatial_attention", H * W, C, qkv, seen)
        (out,) = block.to_out
        assert isinstance(out, nn.Linear)
        return self._convolve(out, seen, POINT, x)

    def _convolve(
        self, part: nn.Conv2d | nn.Linear, x: Tensor, kind: int = SAME, add: Tensor | None = None
    ) -> Tensor:
        if part not in self._packed:
            assert part.bias is not None
            weight = part.weight.flatten(1) if kind == POINT else part.weight
            self._packed[part] = PackedConvolution(weight, part.bias, kind)
        return self._packed[part](x, add)

    def _norm(self, part: nn.GroupNorm, x: Tensor, silu: bool = True) -> Tensor:
        if part not in self._norms:
            self._norms[part] = PackedNorm(part)
        return self._norms[part](x, silu)


def _state_of(network: nn.Module) -> list[tuple[int, int]]:
    """What changes when a network's weights do: where they lie, and how often they were written."""
    parameters = network.parameters()
    return [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters]


def normalise_tokens(tokens: Tensor, eps: float) -> Tensor:
    """`latents.token_norm` of tokens [..., D] through the kernels; D a multiple of 16."""
    rows = tokens.float().clone(memory_format=torch.contiguous_format)
    eps_ = torch.tensor(eps, dtype=torch.float64)
    build.call("layer_norm", rows.numel() // rows.shape[-1], rows.shape[-1], eps_, rows)
    return rows
