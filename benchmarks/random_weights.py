"""Models of random numbers, for measuring sizes whose weights are not at hand."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nextstep.config import NextStepConfig
from nextstep.kernels import formats
from nextstep.kernels.linear import PackedLinear, release_heap
from nextstep.model.nextstep import NextStepModel
from nextstep.model.quantization import (
    MODULATION,
    OWN,
    Packer,
    is_large,
    kernels_fit,
    setattr_in,
)


class RepeatingPacker(Packer):
    """Packs one layer of each shape and copies it for the others; each has memory of its own."""

    def __init__(self, format_: str, head: str, compressed: bool = False) -> None:
        super().__init__(format_, head, compressed)
        self.known: dict[tuple[Any, ...], PackedLinear] = {}

    def repeat(self, model: nn.Module, name: str, weight: Callable[[], Tensor]) -> None:
        """`put`, whose `weight` is made for the first layer of a shape alone."""
        part = model.get_submodule(name)
        assert isinstance(part, nn.Linear)
        key = part.weight.shape, self.format_of(name, part.weight.dtype), MODULATION in name
        if key not in self.known:
            self.put(model, name, weight())
            packed = model.get_submodule(name)
            assert isinstance(packed, PackedLinear)
            self.known[key] = packed
            return
        first = self.known[key]
        again = copy.copy(first)
        again._parameters = {"bias": part.bias}
        again.data, again.scale = self.buffer.keep(first.data), self.buffer.keep(first.scale)
        if first.compressed:
            again.compressed = first.compressed._replace(data=again.data)
        again._matrix = None
        owner, _, leaf = name.rpartition(".")
        setattr_in(model.get_submodule(owner), leaf, again)


def random_model(
    config: NextStepConfig,
    dtype: torch.dtype,
    quantize: str | None,
    plain: bool,
    compressed: bool = True,
) -> NextStepModel:
    """A model of random numbers; a large one never lies in memory unpacked."""
    with torch.device("meta"):
        model = NextStepModel(config)
    own = OWN[dtype] if kernels_fit(config) and not plain else None
    asked = formats(quantize) if quantize else (own, own) if own else None
    packer = RepeatingPacker(*asked, compressed and is_large(model)) if asked else None
    # Numbers of bf16 in either dtype, as the released weights are.
    draws = torch.randn(2**22, generator=torch.Generator().manual_seed(0)) * 0.02
    pool = draws.bfloat16().to(dtype)

    def numbers(shape: torch.Size) -> Tensor:
        # Copied, because a small part would keep all of what it was taken from.
        count = shape.numel()
        return pool.repeat(-(-count // len(pool)))[:count].clone().view(shape)

    # Biases first: they go with their layers.
    parameters = sorted(model.named_parameters(), key=lambda own: own[0].endswith(".weight"))
    for name, parameter in parameters:
        owner, _, leaf = name.rpartition(".")
        if packer and leaf == "weight" and packer.takes(model, owner):
            packer.repeat(model, owner, lambda shape=parameter.shape: numbers(shape))  # type: ignore[misc]
            continue
        value = numbers(parameter.shape)
        if "norm" in owner or ("in_ln" in owner and leaf == "weight"):
            value = value + 1
        setattr(model.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
    if config.tie_word_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    release_heap()
    return model.eval()


def make_alike(model: NextStepModel) -> None:
    """Let packed layers of one place and shape share their weights, which then stay in caches."""
    first: dict[tuple[str, torch.Size], nn.Module] = {}
    for name, part in list(model.named_modules()):
        if isinstance(part, PackedLinear):
            owner, _, leaf = name.rpartition(".")
            kind = re.sub(r"\d+", "", name), part.weight.shape
            setattr_in(model.get_submodule(owner), leaf, first.setdefault(kind, part))
