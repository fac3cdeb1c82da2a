"""Reading and writing model weights, shard by shard.

Our tensor names are the released ones (no `model.` prefix), so reading differs only in what a
stock Qwen2 folder puts in front and lacks. Nothing is ever silently random: every missing, extra
or misshapen tensor is an error that names it.

Legend: weights of any shape by their names; linear layers are [outputs, inputs].
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from nextstep.errors import ModelFileError
from nextstep.kernels import formats
from nextstep.kernels.linear import packed_weights, release_heap
from nextstep.model.folder import read_model_config
from nextstep.model.nextstep import NextStepModel
from nextstep.model.quantization import Packer, is_large, quantised
from nextstep.utils.files import read_json, write_json, writing

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
IMAGE_PARTS = ("image_in_projector.", "image_out_projector.", "image_head.")
TOLERATED = ("gen_pos_embed", "rotary_emb.inv_freq")
"""Buffers that some released files carry and that are computed here."""


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, in the order of the index.

    Raises:
        ModelFileError: when the folder, a shard or all weights are missing.
    """
    if not folder.is_dir():
        raise ModelFileError(f"there is no model folder {folder}")
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    index = folder / INDEX
    if not index.exists():
        raise ModelFileError(f"{folder} has neither {SINGLE} nor {INDEX}")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ModelFileError(f"{index} has no 'weight_map'")
    names = dict.fromkeys(map(str, weight_map.values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelFileError(
                f"{index} names the shard {name!r:.80}, which is no file beside it"
            )
        if not (folder / name).exists():
            raise ModelFileError(f"{folder} lacks the shard {name} that its index names")
    return [folder / name for name in names]


def read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor by its name here, one in memory at a time.

    Raises:
        ModelFileError: when a shard is cut off or damaged.
    """
    from safetensors import SafetensorError, safe_open

    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt", device="cpu") as shard:
                for stored in shard.keys():  # noqa: SIM118 - not a mapping
                    yield stored.removeprefix("model."), shard.get_tensor(stored)
        except SafetensorError as error:
            raise ModelFileError(f"the weight file {path} is cut off or damaged: {error}") from None


def stored_formats(folder: Path) -> tuple[set[str], int]:
    """Number formats of the weights in a folder, as safetensors names them, and how many numbers.

    Raises:
        ModelFileError: when there are none, or a shard is cut off or damaged.
    """
    from safetensors import SafetensorError, safe_open

    formats, numbers = set(), 0
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt", device="cpu") as shard:
                for stored in shard.keys():  # noqa: SIM118 - not a mapping
                    tensor = shard.get_slice(stored)
                    formats.add(tensor.get_dtype())
                    numbers += math.prod(tensor.get_shape())
        except SafetensorError as error:
            raise ModelFileError(f"the weight file {path} is cut off or damaged: {error}") from None
    return formats, numbers


def load_model(
    folder: Path,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    quantize: str | None = None,
) -> NextStepModel:
    """Read a model folder of any known layout.

    Args:
        folder: with config.json and weights.
        dtype: of the loaded weights; default as stored.
        device: where they go, tensor by tensor.
        quantize: such as "int8"; weights are rounded and packed as they are read, so that the
            whole model never lies in memory. On the CPU alone.

    Raises:
        ModelFileError: naming what does not fit.
    """
    config = read_model_config(folder)
    with torch.device("meta"):
        model = NextStepModel(config)
    if quantize is not None and torch.device(device).type != "cpu":
        raise ModelFileError("weights are quantised for the CPU alone; leave out the device")
    packer = None if quantize is None else Packer(*formats(quantize), is_large(model))
    missing = _fill(model, folder, dtype, device, packer)
    if packer is not None:
        release_heap()
    if missing:
        image = all(name.startswith(IMAGE_PARTS) for name in missing)
        hint = "; it is a plain language model, start from it with from_language_model" * image
        raise ModelFileError(
            f"{folder} lacks {len(missing)} tensor(s): {', '.join(missing[:4])}{hint}"
        )
    return model.eval()


def load_language_model(
    folder: Path,
    head: str = "base",
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> NextStepModel:
    """Start from a stock Qwen2/2.5 folder; projectors and flow head are fresh.

    Args:
        folder: with config.json and weights, names with or without `model.`.
        head: named flow head.
        dtype, device: as in `load_model`.
        seed: of the fresh weights.

    Raises:
        ModelFileError: when anything but the image parts is missing.
    """
    from nextstep.config import HEADS

    config = read_model_config(folder).with_values(eos_id=151643, **HEADS[head])
    with torch.device("meta"):
        model = NextStepModel(config)
    missing = _fill(model, folder, dtype, device)
    lacking = [name for name in missing if not name.startswith(IMAGE_PARTS)]
    if lacking:
        raise ModelFileError(f"{folder} lacks {len(lacking)} tensor(s): {', '.join(lacking[:4])}")
    kept = model.embed_tokens.weight.dtype
    for name in missing:
        shape = model.get_parameter(name).shape
        _assign(model, name, torch.empty(shape, dtype=kept, device=device))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for projector in (model.image_in_projector, model.image_out_projector):
            nn.init.normal_(projector.weight, std=config.initializer_range)
            nn.init.zeros_(projector.bias)
        for block in model.image_head.modules():
            if isinstance(block, nn.LayerNorm):
                block.reset_parameters()
        model.image_head.reset_parameters()
    return model.eval()


def _fill(
    model: NextStepModel,
    folder: Path,
    dtype: torch.dtype | None,
    device: str,
    packer: Packer | None = None,
) -> list[str]:
    """Put stored tensors into a meta model; names that found none come back."""
    wanted = {name: parameter.shape for name, parameter in model.named_parameters()}
    tied = model.config.tie_word_embeddings
    extra = []
    for name, value in read_tensors(folder):
        if (tied and name == "lm_head.weight") or name.endswith(TOLERATED):
            continue
        if name not in wanted:
            extra.append(name)
            continue
        if value.shape != wanted[name]:
            raise ModelFileError(
                f"tensor '{name}' in {folder} has shape {tuple(value.shape)}, "
                f"config.json asks for {tuple(wanted[name])}"
            )
        kept = value.to(device=device, dtype=dtype or value.dtype)
        owner, _, leaf = name.rpartition(".")
        if packer is not None and leaf == "weight" and packer.takes(model, owner):
            packer.put(model, owner, kept)
        else:
            _assign(model, name, kept)
        del wanted[name]
    if extra:
        raise ModelFileError(
            f"{folder} has {len(extra)} unknown tensor(s): {', '.join(sorted(extra)[:4])}"
        )
    if tied:
        model.lm_head.weight = model.embed_tokens.weight
    return sorted(wanted)


def _assign(model: nn.Module, name: str, value: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))


def save_model(
    model: NextStepModel, folder: Path, released: bool = False, shard_bytes: int = 5 * 10**9
) -> None:
    """Write config.json and the weights, in shards when they exceed `shard_bytes`.

    Args:
        model: to be written in its present dtype.
        folder: must exist; files are written beside and renamed.
        released: config.json under the released v1 names, and lm_head written even when tied.
        shard_bytes: largest shard.

    Raises:
        ModelFileError: when the released layout has no place for what the model has, or its
            weights were rounded to be read faster.
    """
    from safetensors.torch import save_file

    rounded = quantised(model)
    if rounded:
        raise ModelFileError(
            f"weights in {rounded} are for sampling alone; load the model without quantising"
        )

    if released and model.config.image_position_side:
        raise ModelFileError(
            "this model has learned row and column positions, which the released layout cannot "
            "hold; write it in our own"
        )
    tensors = {name: p.detach() for name, p in model.named_parameters()} | packed_weights(model)
    dtype = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    config = model.config.to_released_dict(dtype) if released else model.config.to_dict()
    if released and model.config.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors["embed_tokens.weight"].clone()
    shards = _plan_shards(tensors, shard_bytes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = SINGLE
        if len(shards) > 1:
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        part = {name: tensors[name].contiguous() for name in names}
        with writing(folder / file) as scratch:
            save_file(part, scratch, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(t.numel() * t.element_size() for t in tensors.values())
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    write_json(folder / "config.json", config)


def _plan_shards(tensors: dict[str, Tensor], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        bytes_ = tensor.numel() * tensor.element_size()
        if shards[-1] and size + bytes_ > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += bytes_
    return shards


WHOLE = 256 * 2**20
"""Files up to this size are hashed whole."""


def fingerprint(files: Iterable[Path], blocks: int = 256, block_bytes: int = 65536) -> str:
    """16 hex digits that tell one set of weight files from another.

    SHA-256 over every file; of one larger than 256 MiB its size, its beginning (names, shapes) and
    evenly spread blocks, so that a 60 GB model is told apart in about a second.
    """
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{size};".encode())
        with path.open("rb") as file:
            if size <= WHOLE:
                digest.update(file.read())
                continue
            for i in range(blocks):
                file.seek((size - block_bytes) * i // (blocks - 1))
                digest.update(file.read(block_bytes))
    return digest.hexdigest()[:16]
