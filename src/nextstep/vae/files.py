"""Reading and writing the image tokenizer's files.

Two layouts: diffusers' (config.json and diffusion_pytorch_model.safetensors) and the released one
(config.json and checkpoint.pt, Flux names). Both are read with every name and shape checked.

Legend: tensors of the autoencoder by their names; convolutions are [out, in, height, width].
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import torch
from torch import Tensor

from nextstep.errors import ModelFileError
from nextstep.utils.files import writing
from nextstep.vae.config import AutoencoderConfig, read_config
from nextstep.vae.tokenizer import ImageTokenizer

DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
RELEASED_WEIGHTS = "checkpoint.pt"


def load_image_tokenizer(
    folder: Path, dtype: torch.dtype | None = None, device: str = "cpu"
) -> ImageTokenizer:
    """Read an image tokenizer folder of either layout; without a dtype as it is stored.

    Raises:
        ModelFileError: naming what is missing, extra, damaged or misshapen.
    """
    config = read_config(folder)
    path = weights_file(folder)
    if path.name == DIFFUSERS_WEIGHTS:
        weights = _read_safetensors(path)
    else:
        weights = convert_released(_read_pickle(path), config)
    with torch.device("meta"):
        tokenizer = ImageTokenizer(config)
    network = tokenizer.autoencoder
    check_tensors(weights, dict(network.state_dict()), folder)
    placed = {k: v.to(device=device, dtype=dtype or v.dtype) for k, v in weights.items()}
    network.load_state_dict(placed, assign=True)
    # Convolutions gain: on CPUs encoding is up to twice as fast, decoding half again.
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return tokenizer.requires_grad_(False).eval()


def weights_file(folder: Path) -> Path:
    """The file with the weights of a tokenizer folder.

    Raises:
        ModelFileError: when there is none.
    """
    for name in (DIFFUSERS_WEIGHTS, RELEASED_WEIGHTS):
        if (folder / name).exists():
            return folder / name
    raise ModelFileError(f"{folder} has neither {DIFFUSERS_WEIGHTS} nor {RELEASED_WEIGHTS}")


def save_image_tokenizer(tokenizer: ImageTokenizer, folder: Path) -> None:
    """Write the diffusers layout with `patch`, `token_norm` and `deterministic` beside it."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = tokenizer.config
    levels = len(config.block_channels)
    raw = {
        "_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": list(config.block_channels),
        "layers_per_block": config.layers_per_block, "latent_channels": config.latent_channels,
        "norm_num_groups": config.norm_groups, "act_fn": "silu", "mid_block_add_attention": True,
        "use_quant_conv": False, "use_post_quant_conv": False,
        "scaling_factor": config.scaling_factor, "shift_factor": config.shift_factor,
        "patch": config.patch, "token_norm": config.token_norm,
        "deterministic": config.deterministic,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    weights = {k: v.contiguous() for k, v in tokenizer.autoencoder.state_dict().items()}
    with writing(folder / DIFFUSERS_WEIGHTS) as scratch:
        save_file(weights, scratch, metadata={"format": "pt"})


def fits_released(config: AutoencoderConfig) -> bool:
    """Whether the released layout can say this shape: 32 groups, widths in multiples."""
    base = config.block_channels[0]
    return config.norm_groups == 32 and not any(c % base for c in config.block_channels)


def save_released(tokenizer: ImageTokenizer, folder: Path) -> None:
    """Write the released layout: checkpoint.pt with Flux names, and its config.json.

    A shape that this layout cannot say (the nano tokenizer has 16 norm groups) is written in
    diffusers' layout instead.
    """
    config = tokenizer.config
    if not fits_released(config):
        save_image_tokenizer(tokenizer, folder)
        return
    base = config.block_channels[0]
    folder.mkdir(parents=True, exist_ok=True)
    renamed = {
        released_name(name, len(config.block_channels)): value
        for name, value in tokenizer.autoencoder.state_dict().items()
    }
    for name in renamed:
        if ".attn_1." in name and name.endswith("weight") and ".norm." not in name:
            renamed[name] = renamed[name][:, :, None, None]
    torch.save({k: v.contiguous() for k, v in renamed.items()}, folder / RELEASED_WEIGHTS)
    raw = {
        "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": base,
        "ch_mult": [c // base for c in config.block_channels],
        "num_res_blocks": config.layers_per_block, "z_channels": config.latent_channels,
        "scaling_factor": config.scaling_factor, "shift_factor": config.shift_factor,
        "deterministic": config.deterministic, "encoder_norm": config.token_norm,
        "psz": config.patch,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")


_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def released_name(name: str, levels: int) -> str:
    """The Flux name of a diffusers tensor name (decoder levels count the other way there)."""
    side, rest = name.split(".", 1)
    rest = rest.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    match = re.match(r"(down|up)_blocks\.(\d+)\.(.*)", rest)
    if match:
        kind, level, tail = match.group(1), int(match.group(2)), match.group(3)
        level = level if kind == "down" else levels - 1 - level
        tail = re.sub(r"^resnets\.", "block.", tail)
        tail = re.sub(r"^(down|up)samplers\.0\.", r"\1sample.", tail)
        return f"{side}.{kind}.{level}.{tail}"
    rest = re.sub(r"^mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m.group(1)) + 1}", rest)
    match = re.match(r"mid_block\.attentions\.0\.(.*)\.(weight|bias)$", rest)
    if match:
        rest = f"mid.attn_1.{_ATTENTION[match.group(1)]}.{match.group(2)}"
    return f"{side}.{rest}"


def convert_released(weights: dict[str, Tensor], config: AutoencoderConfig) -> dict[str, Tensor]:
    """Flux names -> diffusers names, 1x1 attention convolutions -> Linears.

    Raises:
        ModelFileError: naming a tensor that the file lacks or has too many.
    """
    with torch.device("meta"):
        wanted = ImageTokenizer(config).autoencoder.state_dict()
    table = {released_name(name, len(config.block_channels)): name for name in wanted}
    missing, extra = sorted(table.keys() - weights.keys()), sorted(weights.keys() - table.keys())
    strangers = [name for name in extra if not name.startswith(("encoder.", "decoder."))]
    if strangers:
        # Training leftovers such as a loss network; the released code ignores them silently.
        warnings.warn(
            f"{RELEASED_WEIGHTS} holds {len(strangers)} tensor(s) outside encoder and decoder, "
            f"which are ignored: {', '.join(strangers[:4])}",
            stacklevel=2,
        )
        weights = {name: value for name, value in weights.items() if name not in strangers}
        extra = [name for name in extra if name not in strangers]
    if missing or extra:
        raise ModelFileError(_difference(missing, extra, RELEASED_WEIGHTS))
    converted = {}
    for name, value in weights.items():
        as_matrix = ".attn_1." in name and value.ndim == 4
        converted[table[name]] = value[:, :, 0, 0] if as_matrix else value
    return converted


def check_tensors(found: dict[str, Tensor], wanted: dict[str, Tensor], where: Path) -> None:
    """Compare names and shapes.

    Raises:
        ModelFileError: naming every kind of difference.
    """
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or extra:
        raise ModelFileError(_difference(missing, extra, str(where)))
    for name, tensor in wanted.items():
        if found[name].shape != tensor.shape:
            raise ModelFileError(
                f"tensor '{name}' in {where} has shape {tuple(found[name].shape)}, "
                f"the config asks for {tuple(tensor.shape)}"
            )


def _difference(missing: list[str], extra: list[str], where: str) -> str:
    said = []
    if missing:
        said.append(f"lacks {len(missing)} tensor(s): {', '.join(missing[:4])}")
    if extra:
        said.append(f"has {len(extra)} unknown tensor(s): {', '.join(extra[:4])}")
    return f"{where} {' and '.join(said)}"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ModelFileError(f"{path} is damaged: {error}") from None


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise almost anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelFileError(f"{path} is damaged or not plain weights: {reason}") from None
    if isinstance(loaded, dict):
        loaded = loaded.get("state_dict", loaded)
    if not isinstance(loaded, dict):
        raise ModelFileError(f"{path} holds no table of tensors")
    return {name: value for name, value in loaded.items() if isinstance(value, Tensor)}
