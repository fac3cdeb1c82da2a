"""Model folders: reading all their parts, writing them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from nextstep.config import NextStepConfig
from nextstep.engine.settings import FILE as SETTINGS_FILE
from nextstep.engine.settings import ModelDefaults
from nextstep.errors import ModelFileError, NextStepError
from nextstep.model.checkpoints import (
    fingerprint,
    load_model,
    save_model,
    stored_formats,
    weight_files,
)
from nextstep.model.devices import check_device
from nextstep.model.folder import find_folder, read_model_config, vae_folder
from nextstep.model.precision import SLOW, fastest, slowdown, warn_if_slow
from nextstep.model.quantization import LARGE
from nextstep.text.tokenizer import TextTokenizer
from nextstep.text.vocabulary import Vocabulary
from nextstep.utils.files import new_folder, write_json
from nextstep.vae.files import (
    load_image_tokenizer,
    save_image_tokenizer,
    save_released,
    weights_file,
)
from nextstep.vae.tokenizer import ImageTokenizer

if TYPE_CHECKING:
    from nextstep.model.nextstep import NextStepModel


class Parts(NamedTuple):
    """What a pipeline is made of."""

    model: NextStepModel
    image_tokenizer: ImageTokenizer
    text_tokenizer: TextTokenizer
    defaults: ModelDefaults
    model_hash: str
    vocabulary: Vocabulary | None = None


def load_parts(
    model: str | Path,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    vae: str | Path | None = None,
    keep_dtype: bool = False,
    quantize: str | None = None,
) -> Parts:
    """Read everything a pipeline needs; see `NextStepPipeline.from_pretrained`.

    `keep_dtype` leaves weights as they are stored even on the CPU, where `automatic_dtype` decides
    otherwise; `quantize` rounds those of the model as they are read. The image tokenizer, whose
    products all go through torch, takes fp32 where torch would emulate the model's number format.
    """
    check_device(device)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise NextStepError(f"dtype is a torch.dtype such as torch.bfloat16, not {dtype!r}")
    folder, kind = find_folder(model), torch.device(device).type
    for_pictures = dtype
    if not keep_dtype:
        if dtype is not None:
            warn_if_slow(kind, dtype)
        dtype = for_pictures = dtype or automatic_dtype(folder, kind)
        if dtype is not None and slowdown(kind, dtype) >= SLOW:
            for_pictures = torch.float32
    config = read_model_config(folder)
    text_tokenizer = TextTokenizer.from_folder(folder)
    tokenizer_folder = vae_folder(folder, config, vae)
    image_tokenizer = load_image_tokenizer(tokenizer_folder, for_pictures, device)
    check_fit(config, image_tokenizer, text_tokenizer)
    return Parts(
        load_model(folder, dtype, device, quantize),
        image_tokenizer,
        text_tokenizer,
        ModelDefaults.of_folder(folder),
        fingerprint([*weight_files(folder), weights_file(tokenizer_folder)]),
        Vocabulary.of_folder(folder),
    )


def automatic_dtype(folder: Path, kind: str) -> torch.dtype | None:
    """What a model is computed in when nobody says.

    On a CPU that is fp32, which all processors compute alike; but bf16 for weights that are stored
    in it, are too many for the caches (so that reading them takes the time), and meet a processor
    that computes bf16 at least as fast. Elsewhere weights stay as they are stored.

    Args:
        folder: of the model.
        kind: of the device, such as "cpu".

    Returns:
        None for as stored.

    Raises:
        ModelFileError: when the weights are missing or damaged.
    """
    if kind != "cpu":
        return None
    formats, numbers = stored_formats(folder)
    if formats == {"BF16"} and numbers >= LARGE and fastest(kind) == "bf16":
        return torch.bfloat16
    return torch.float32


def merge_adapter_folder(parts: Parts, adapter: str | Path, scale: float = 1.0) -> dict[str, Any]:
    """Merge a LoRA adapter into loaded parts; says what pictures record about it.

    Raises:
        ModelFileError: when the folder is missing, damaged or does not fit the model.
        NextStepError: for a scale that is no finite number.
    """
    from nextstep.model.lora import check_base, merge_adapter, read_adapter

    if not math.isfinite(scale):
        raise NextStepError(f"the scale of an adapter must be a finite number, not {scale}")
    folder = Path(adapter).expanduser()
    if not folder.is_dir():
        raise ModelFileError(f"there is no adapter folder {adapter}")
    read = read_adapter(folder)
    check_base(read, parts.model_hash)
    merge_adapter(parts.model, read, scale)
    return {"adapter": read.hash, "adapter_scale": scale}


def check_fit(
    config: NextStepConfig, image_tokenizer: ImageTokenizer, text_tokenizer: TextTokenizer
) -> None:
    """Make sure that the three parts of a model belong together.

    Raises:
        ModelFileError: naming what differs.
    """
    theirs = image_tokenizer.config
    if (theirs.latent_channels, theirs.patch) != (config.latent_channels, config.latent_patch_size):
        raise ModelFileError(
            f"the image tokenizer has {theirs.latent_channels} channels in tokens of "
            f"{theirs.patch}x{theirs.patch}, the model reads {config.latent_channels} in "
            f"{config.latent_patch_size}x{config.latent_patch_size}"
        )
    try:
        text_tokenizer.check_against(config)
    except ValueError as error:
        raise ModelFileError(str(error)) from None


def start_parts(
    source: str | Path, head: str, vae: str | Path | None, dtype: torch.dtype | None = None
) -> Parts:
    """A stock Qwen2/2.5 folder with fresh image parts, special tokens and a given tokenizer.

    Raises:
        ModelFileError: when the language model or the image tokenizer cannot be read.
    """
    from nextstep.model.checkpoints import load_language_model

    if vae is None:
        raise ModelFileError("a language model has no image tokenizer; name one with --vae")
    folder = find_folder(source)
    text_tokenizer = TextTokenizer.from_folder(folder)
    text_tokenizer.add_image_tokens()
    model = load_language_model(folder, head, dtype)
    image_tokenizer = load_image_tokenizer(find_folder(vae), dtype)
    check_fit(model.config, image_tokenizer, text_tokenizer)
    return Parts(model, image_tokenizer, text_tokenizer, ModelDefaults(), "")


def save_parts(parts: Parts, folder: Path, released: bool = False) -> None:
    """Write a whole model folder beside `folder`, then put it in its place.

    Args:
        parts: what to write.
        folder: must not exist yet.
        released: in the released v1 layout instead of ours.

    Raises:
        NextStepError: when the folder exists, or cannot be written.
    """
    with new_folder(folder) as scratch:
        save_model(parts.model, scratch, released)
        parts.text_tokenizer.save(scratch)
        if released:
            parts.text_tokenizer.save_released_config(scratch)
        write = save_released if released else save_image_tokenizer
        write(parts.image_tokenizer, scratch / "vae")
        if not released:
            write_json(scratch / SETTINGS_FILE, parts.defaults.to_dict())
            if parts.vocabulary is not None:
                parts.vocabulary.save(scratch)
