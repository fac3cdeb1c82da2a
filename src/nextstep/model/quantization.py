"""Which weights of a model are packed, and in which number format.

Projections of the layers and the blocks of the flow head take the asked format: they are what is
read for every token and step. Small ones at the ends of the head keep the model's own precision,
and so do embeddings, norms and biases.

Legend: N outputs, K inputs of a weight matrix.
"""

from __future__ import annotations

import functools
import time
import warnings
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextstep.errors import NextStepError
from nextstep.kernels import build, formats
from nextstep.kernels.linear import MULTIPLE, PackedLinear, WeightBuffer
from nextstep.kernels.packing import check_format

if TYPE_CHECKING:
    from nextstep.config import NextStepConfig
    from nextstep.model.nextstep import NextStepModel

KEPT = (
    "image_in_projector", "image_head.net.time_embed", "image_head.net.span_embed",
    "image_head.net.guidance_embed",
)  # fmt: skip
"""Parts that stay ordinary layers: they are used once a token, or once a process."""
ENDS = ("image_head.net.input_proj", "image_head.net.final_layer.linear")
"""Parts that keep the model's own precision: noise and velocity go through them."""
MODULATION = "adaLN_modulation"
"""What is read once a token, for all times together, and never compressed: many rows need it."""
LARGE = 2**26
"""Numbers of a model that come from memory, and are compressed. Those of a smaller one stay in the
caches, where unfolding them would cost more than reading them."""
HALVES = {"int8": "int8", "int4": "int8"}
"""What the language-model head takes at most: its logits are compared with each other."""
OWN = {torch.float32: "fp32", torch.bfloat16: "bf16"}


class Packer:
    """Packs a model's layers one by one.

    Args:
        format_: of the backbone.
        head: of the flow head.
        compressed: whether bf16 numbers may take 12 bits.

    Raises:
        NextStepError: for an unknown format.
    """

    def __init__(self, format_: str, head: str, compressed: bool = False) -> None:
        self.format, self.head = check_format(format_), check_format(head)
        self.compressed = compressed
        self.buffer = WeightBuffer()

    def format_of(self, name: str, dtype: torch.dtype) -> str:
        """Format of the layer of this name."""
        if name in ENDS:
            return OWN.get(dtype, "fp32")
        if name.startswith("image_head"):
            return self.head
        return HALVES.get(self.format, self.format) if name == "lm_head" else self.format

    def takes(self, model: nn.Module, name: str) -> bool:
        """Whether the layer of this name is packed."""
        part = model.get_submodule(name)
        tied = name == "lm_head" and model.config.tie_word_embeddings  # type: ignore[union-attr]
        return isinstance(part, nn.Linear) and not tied and not name.startswith(KEPT)

    def put(self, model: nn.Module, name: str, weight: Tensor) -> None:
        """Replace the layer of this name by one with `weight` packed; its bias stays."""
        owner, _, leaf = name.rpartition(".")
        part = model.get_submodule(name)
        own = self.format_of(name, weight.dtype)
        compressed = self.compressed and MODULATION not in name
        packed = PackedLinear(weight, part.bias, own, self.buffer, compressed)  # type: ignore[arg-type]
        setattr_in(model.get_submodule(owner), leaf, packed)


def setattr_in(owner: nn.Module, leaf: str, part: nn.Module) -> None:
    """Put a part in; sequences take theirs by number."""
    if isinstance(owner, nn.Sequential | nn.ModuleList):
        owner[int(leaf)] = part
    else:
        setattr(owner, leaf, part)


def pack_model(model: nn.Module, format_: str, head: str | None = None) -> None:
    """Pack a whole model in place, layer by layer; the ordinary weights are let go.

    Raises:
        NextStepError: for an unknown format, an adapter that is not merged, or another device.
    """
    packer = Packer(format_, head or format_, is_large(model))
    if any(hasattr(part, "base_layer") for part in model.modules()):
        raise NextStepError("merge the adapter into the weights before packing them")
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        raise NextStepError("weights are packed and quantised for the CPU alone")
    for name, _ in list(model.named_modules()):
        if name and packer.takes(model, name):
            packer.put(model, name, model.get_submodule(name).weight)  # type: ignore[arg-type]


def is_large(model: nn.Module) -> bool:
    """Whether a model's weights, which may be on the meta device, are more than caches hold."""
    return sum(parameter.numel() for parameter in model.parameters()) >= LARGE


def pack_for_sampling(model: NextStepModel) -> None:
    """Pack a model without loss where the kernels can run it; else it stays as it is."""
    own = OWN.get(model.embed_tokens.weight.dtype)
    if own and model.embed_tokens.weight.device.type == "cpu" and kernels_fit(model.config):
        pack_model(model, own)


def warn_without_kernels(model: NextStepModel, quantize: str) -> None:
    """Warn, once a format, where rounded weights are unpacked at every use: slower than fp32."""
    if not kernels_fit(model.config):
        for format_ in formats(quantize):
            _warn_of_unpacking(format_)


@functools.cache
def _warn_of_unpacking(format_: str) -> None:
    factor = unpacking_slowdown(format_)
    if factor > 1:
        warnings.warn(
            f"without kernels ({build.why_not() or 'of other widths'}) {format_} weights save "
            f"memory and no time: a product takes {factor:.2g} times as long as in fp32",
            stacklevel=3,
        )


@torch.inference_mode()
def unpacking_slowdown(format_: str, width: int = 1024, rows: int = 2) -> float:
    """How many times as long a product by a packed matrix takes here as by an fp32 one.

    Args:
        format_: of the packed matrix.
        width: of the square matrix.
        rows: that are multiplied by it.
    """
    plain = torch.ones(width, width)
    packed = PackedLinear(plain, None, format_, WeightBuffer())
    x = torch.ones(rows, width)
    ways = (lambda: packed(x)), (lambda: F.linear(x, plain))
    times = []
    for way in ways:
        best = float("inf")
        # The best of four: what else runs on the machine only makes a time longer.
        for _ in range(4):
            begun = time.perf_counter()
            way()
            best = min(best, time.perf_counter() - begun)
        times.append(best)
    return times[0] / times[1]


def kernels_fit(config: NextStepConfig) -> bool:
    """Whether the kernels know a model's widths, and run on this machine."""
    return widths_fit(config) and build.is_available()


def widths_fit(config: NextStepConfig) -> bool:
    """Whether the kernels know a model's widths."""
    widths = (
        config.hidden_size, config.intermediate_size, config.fm_head_dim, config.token_size,
        config.head_dim,
    )  # fmt: skip
    return all(width % MULTIPLE == 0 for width in widths)


def quantised(model: nn.Module) -> str:
    """What a model's weights were rounded to, such as "int8"; empty where nothing was lost.

    The format of the layers, and behind a stroke that of the flow head when it is another one.
    """
    found = {}
    for name, part in model.named_modules():
        if isinstance(part, PackedLinear) and name not in ENDS and name != "lm_head":
            found[name.startswith("image_head")] = part.format
    layers, head = found.get(False, ""), found.get(True, "")
    if not f"{layers}{head}".count("int"):
        given = model.get_parameter("embed_tokens.weight").dtype
        if layers != "bf16" or given == torch.bfloat16:
            return ""
    return layers if layers == head else f"{layers}/{head}"
