"""LoRA adapters: small matrices that are trained instead of the model's own (arXiv 2106.09685).

peft puts them into a model for training. Reading a finished adapter needs no peft: its matrices are
multiplied out and added to the weights, so a model with an adapter is as fast as one without. The
files are peft's (`adapter_config.json`, `adapter_model.safetensors`); the fingerprint of the model
that the adapter was trained on stands in the metadata of the latter.

Legend: N outputs, K inputs of a layer, r rank: weight [N, K], A [r, K], B [N, r].
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nextstep.errors import ModelFileError, NextStepError
from nextstep.model.adapter_config import AdapterConfig
from nextstep.model.checkpoints import fingerprint
from nextstep.model.nextstep import NextStepModel
from nextstep.utils.files import new_folder, read_json, write_json

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_FOLDER = "adapter"
"""Folder of the adapter in what a finetune leaves."""
BASE_HASH = "base_model_hash"
"""Key of the base model's fingerprint in the weight file's metadata."""

PREFIX = "base_model.model."
"""Before every module name in peft's files."""

NAME = "default"
"""peft's own name of the one adapter in a model."""

PLAIN_LORA: dict[str, Any] = {
    "peft_type": "LORA", "bias": "none", "fan_in_fan_out": False, "use_dora": False,
    "lora_bias": False, "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {},
    "trainable_token_indices": None, "target_parameters": None, "layer_replication": None,
}  # fmt: skip
"""Settings of peft whose other values mean arithmetic that is not done here."""


@dataclass(frozen=True)
class Adapter:
    """A finished adapter.

    Attributes:
        matrices: module name -> (A [rank, inputs], B [outputs, rank]).
        scaling: how much B A counts.
        base_hash: fingerprint of the model it was trained on; "" when it was not written down.
        hash: fingerprint of its own files.
    """

    matrices: dict[str, tuple[Tensor, Tensor]]
    scaling: float
    base_hash: str = ""
    hash: str = ""


def add_adapter(model: NextStepModel, config: AdapterConfig, seed: int = 0) -> None:
    """Put fresh matrices into a model and freeze everything else; its outputs do not change yet.

    Args:
        model: changed in place; it stays a `NextStepModel`.
        config: see `AdapterConfig`.
        seed: of the fresh matrices.

    Raises:
        NextStepError: when peft is not installed or the model has an adapter already.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise NextStepError("LoRA needs peft: pip install 'open-nextstep[train]'") from None
    if _layers(model):
        raise NextStepError("the model has an adapter already; merge it before adding another")
    theirs = LoraConfig(
        r=config.rank,
        lora_alpha=config.scaling * config.rank,
        lora_dropout=config.dropout,
        target_modules=config.targets(model),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(theirs, model)
    # Small matrices in bf16 would round most of their steps away.
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def taken_adapter(model: NextStepModel) -> Adapter:
    """The matrices as they are in a model that is being trained, copied to main memory.

    Raises:
        NextStepError: when it has none.
    """
    layers = _layers(model)
    if not layers:
        raise NextStepError("the model has no adapter")
    matrices = {}
    for name, layer in layers.items():
        a, b = (
            side[NAME].weight.detach().to("cpu", copy=True) for side in (layer.lora_A, layer.lora_B)
        )
        matrices[name] = a, b
    return Adapter(matrices, float(next(iter(layers.values())).scaling[NAME]))


def save_adapter(adapter: Adapter, folder: Path, base_hash: str, base_name: str = "") -> None:
    """Write an adapter folder whole.

    Args:
        adapter: what to write.
        folder: must not exist yet.
        base_hash: fingerprint of the model that it belongs to.
        base_name: where that model was, for people.

    Raises:
        NextStepError: when the folder exists or cannot be written.
    """
    from safetensors.torch import save_file

    tensors = {}
    for name, (a, b) in adapter.matrices.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = a
        tensors[f"{PREFIX}{name}.lora_B.weight"] = b
    rank = len(next(iter(adapter.matrices.values()))[0])
    settings = PLAIN_LORA | {
        "r": rank,
        "lora_alpha": adapter.scaling * rank,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "target_modules": sorted(adapter.matrices),
        "base_model_name_or_path": base_name or None,
        "inference_mode": True,
    }
    with new_folder(folder) as scratch:
        save_file(tensors, scratch / WEIGHTS_FILE, {"format": "pt", BASE_HASH: base_hash})
        write_json(scratch / CONFIG_FILE, settings)


def read_adapter(folder: Path) -> Adapter:
    """An adapter folder, written here or by peft, or a finetune's folder that has one in it.

    Raises:
        ModelFileError: when a file is missing or damaged, or the adapter is no plain LoRA.
    """
    if not (folder / CONFIG_FILE).exists() and (folder / ADAPTER_FOLDER / CONFIG_FILE).exists():
        folder = folder / ADAPTER_FOLDER
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).exists():
            raise ModelFileError(f"{folder} is no adapter folder: it has no {name}")
    settings = read_json(folder / CONFIG_FILE)
    for name, plain in PLAIN_LORA.items():
        if settings.get(name, plain) not in (plain, None) and settings[name]:
            raise ModelFileError(
                f"{folder / CONFIG_FILE} asks for {name} = {settings[name]}; "
                "only plain LoRA matrices are read"
            )
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or rank < 1:
        raise ModelFileError(f"{folder / CONFIG_FILE} lacks a usable r or lora_alpha")
    scaling = alpha / (rank**0.5 if settings.get("use_rslora") else rank)
    files = [folder / WEIGHTS_FILE, folder / CONFIG_FILE]
    matrices, base_hash = _read_matrices(files[0])
    return Adapter(matrices, scaling, base_hash, fingerprint(files))


def _read_matrices(path: Path) -> tuple[dict[str, tuple[Tensor, Tensor]], str]:
    """Module name -> its two matrices, and the fingerprint of the base model."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            base_hash = (file.metadata() or {}).get(BASE_HASH, "")
    except SafetensorError as error:
        raise ModelFileError(f"{path} is cut off or damaged: {error}") from None
    ends = (".lora_A.weight", ".lora_B.weight")
    strangers = [name for name in stored if not name.endswith(ends)]
    names = sorted({name[: -len(ends[0])] for name in stored if name not in strangers})
    lonely = [n for n in names if any(n + end not in stored for end in ends)]
    if strangers or lonely or not names:
        wrong = ", ".join((strangers + lonely)[:4]) or "nothing"
        raise ModelFileError(f"{path} holds no pairs of LoRA matrices but {wrong}")
    pairs = {n.removeprefix(PREFIX): (stored[n + ends[0]], stored[n + ends[1]]) for n in names}
    return pairs, base_hash


def check_base(adapter: Adapter, model_hash: str) -> None:
    """Warn when an adapter was trained on another model; its effect is then anybody's guess."""
    if adapter.base_hash and model_hash and adapter.base_hash != model_hash:
        warnings.warn(
            f"the adapter was trained on model {adapter.base_hash}, this is {model_hash}: "
            "pictures may not be what it was trained for",
            stacklevel=2,
        )


@torch.no_grad()
def merge_adapter(model: NextStepModel, adapter: Adapter, scale: float = 1.0) -> None:
    """Add scale * scaling * B A to the weights, in fp32 before they are rounded to their dtype.

    Raises:
        ModelFileError: when the adapter does not fit; the model is then as it was.
    """
    modules = dict(model.named_modules())
    for name, (a, b) in adapter.matrices.items():
        module = modules.get(name)
        if not isinstance(module, nn.Linear):
            raise ModelFileError(f"the adapter changes '{name}', which this model does not have")
        if module.weight.shape != (len(b), a.shape[-1]) or len(a) != b.shape[-1]:
            raise ModelFileError(
                f"the adapter's matrices for '{name}' make {len(b)}x{a.shape[-1]}, "
                f"the model has {'x'.join(map(str, module.weight.shape))} there"
            )
    if not math.isfinite(scale):
        raise NextStepError(f"the adapter's scale must be a number, not {scale}")
    for name, (a, b) in adapter.matrices.items():
        weight = modules[name].get_parameter("weight")
        weight.copy_(weight.float() + _product(a, b, scale * adapter.scaling).to(weight.device))


def folded_weights(weights: Mapping[str, Tensor], scaling: float) -> dict[str, Tensor]:
    """Plain weights of a model with an adapter in it, from all of its tensors by name.

    Args:
        weights: of the model, adapter included.
        scaling: how much the product of its matrices counts.
    """
    out = {}
    for name, tensor in weights.items():
        owner, found, leaf = name.rpartition(".base_layer.")
        if not found:
            if ".lora_" not in name:
                out[name] = tensor
        elif leaf == "weight":
            a, b = (weights[f"{owner}.{side}.{NAME}.weight"] for side in ("lora_A", "lora_B"))
            out[f"{owner}.{leaf}"] = (tensor.float() + _product(a, b, scaling)).to(tensor.dtype)
        else:
            out[f"{owner}.{leaf}"] = tensor
    return out


def _product(a: Tensor, b: Tensor, scaling: float) -> Tensor:
    return scaling * (b.float() @ a.float())


def _layers(model: nn.Module) -> dict[str, Any]:
    """peft's layers by the names of the linear layers they stand for."""
    return {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "base_layer") and hasattr(module, "lora_A")
    }


@contextmanager
def merged(model: NextStepModel) -> Iterator[NextStepModel]:
    """Inside the block a model in training is a plain one with its adapter merged into it.

    Sampling reads weights rather than calling layers, so it must not meet an adapter. Afterwards
    everything is bitwise as before: the weights are kept beside, not computed back.
    """
    layers = _layers(model)
    kept = {name: layer.base_layer.weight.data for name, layer in layers.items()}
    with torch.no_grad():
        for name, layer in layers.items():
            base, a, b = layer.base_layer, layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
            new = kept[name].float() + _product(a, b, layer.scaling[NAME])
            base.weight.data = new.to(kept[name].dtype)
            _replace(model, name, base)
    try:
        yield model
    finally:
        for name, layer in layers.items():
            layer.base_layer.weight.data = kept[name]
            _replace(model, name, layer)


def fold_adapter(model: NextStepModel) -> None:
    """Merge the adapter of a model in training for good; what is left is a plain model."""
    adapter = taken_adapter(model)
    for name, layer in _layers(model).items():
        _replace(model, name, layer.base_layer)
    merge_adapter(model, adapter)
    if hasattr(model, "peft_config"):
        del model.peft_config
    model.requires_grad_(False)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module)
