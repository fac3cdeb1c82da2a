"""Which weights of a model are packed, and in which number format.

Projections of the layers and the blocks of the flow head take the asked format: they are what is
read for every token and step. Small ones at the ends of the head keep the model's own precision,
and so do embeddings, norms and biases.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nextstep.errors import NextStepError
from nextstep.model.native.linear import Arena, PackedLinear
from nextstep.model.native.packing import check_format

KEPT = ("image_in_projector", "image_head.net.time_embed")
"""Parts that stay ordinary layers: they are used once a token, or once a process."""
ENDS = ("image_head.net.input_proj", "image_head.net.final_layer.linear")
"""Parts that keep the model's own precision: noise and velocity go through them."""
HALVES = {"int8": "int8", "int4": "int8"}
"""What the language-model head takes at most: its logits are compared with each other."""
OWN = {torch.float32: "fp32", torch.bfloat16: "bf16"}


class Packer:
    """Packs a model's layers one by one.

    Args:
        format_: of the backbone.
        head: of the flow head; default the same.

    Raises:
        NextStepError: for an unknown format.
    """

    def __init__(self, format_: str, head: str | None = None) -> None:
        self.format, self.head = check_format(format_), check_format(head or format_)
        self.arena = Arena()

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
        packed = PackedLinear(weight, part.bias, self.format_of(name, weight.dtype), self.arena)  # type: ignore[arg-type]
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
    packer = Packer(format_, head)
    if any(hasattr(part, "base_layer") for part in model.modules()):
        raise NextStepError("merge the adapter into the weights before packing them")
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        raise NextStepError("weights are packed and quantised for the CPU alone")
    for name, _ in list(model.named_modules()):
        if name and packer.takes(model, name):
            packer.put(model, name, model.get_submodule(name).weight)  # type: ignore[arg-type]


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
        own = {"bf16": torch.bfloat16}.get(layers)
        weight = model.get_parameter("embed_tokens.weight")
        return "bf16" if own is not None and weight.dtype != own else ""
    return layers if layers == head else f"{layers}/{head}"
