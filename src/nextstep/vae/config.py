"""Shape and normalisation of an image tokenizer, and the config.json of either layout.

Nothing here needs torch, so that a folder can be described and a request checked at once.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nextstep.errors import ModelFileError
from nextstep.utils.files import read_json


@dataclass(frozen=True)
class AutoencoderConfig:
    """Shape and normalisation of the image tokenizer; defaults are the released f8ch16 one.

    Attributes:
        block_channels: channels per level from full resolution down; k levels shrink by 2^(k-1).
        layers_per_block: residual blocks a level in the encoder (the decoder has one more).
        latent_channels: C of the latents.
        norm_groups: groups of every GroupNorm.
        patch: side of an image token in latents (`psz` of the released config).
        token_norm: normalise every token over its values (`encoder_norm`).
        deterministic: encode to the mean instead of a sample.
        scaling_factor, shift_factor: latents = (z - shift) * scaling.
    """

    block_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 16
    norm_groups: int = 32
    patch: int = 2
    token_norm: bool = True
    deterministic: bool = True
    scaling_factor: float = 1.0
    shift_factor: float = 0.0

    @property
    def down_factor(self) -> int:
        """Pixels per latent along one side."""
        return 2 ** (len(self.block_channels) - 1)

    @property
    def token_pixels(self) -> int:
        """Pixels per image token along one side (16 as released)."""
        return self.down_factor * self.patch

    @property
    def token_size(self) -> int:
        """Values per image token (64 as released)."""
        return self.latent_channels * self.patch**2

    def to_dict(self) -> dict[str, Any]:
        """Plain values, tuples as lists."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


NANO_AUTOENCODER = AutoencoderConfig(
    block_channels=(32, 64, 128, 128), layers_per_block=1, norm_groups=16
)
"""3.9 M parameters; the tokenizer that ships with the package."""


def read_config(folder: Path) -> AutoencoderConfig:
    """The shape written in config.json, whichever layout it is of.

    Raises:
        ModelFileError: when there is none or a value is missing.
    """
    path = folder / "config.json"
    if not path.exists():
        raise ModelFileError(f"{folder} has no config.json for the image tokenizer")
    raw = read_json(path)
    try:
        made = _from_diffusers(raw) if "block_out_channels" in raw else _from_released(raw)
        _check(made)
        return made
    except KeyError as error:
        raise ModelFileError(f"{path} lacks {error}") from None
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"{path} is damaged: {error}") from None


def _check(config: AutoencoderConfig) -> None:
    """Refuse a shape that cannot be built, or that would be built for ever.

    Raises:
        ValueError: naming the value.
    """
    counts = {"layers_per_block": 64, "latent_channels": 4096, "norm_groups": 2**13, "patch": 64}
    for name, most in counts.items():
        _integers(name, [getattr(config, name)], most)
    for name in ("scaling_factor", "shift_factor"):
        value = getattr(config, name)
        if type(value) not in (int, float) or not -1e30 <= value <= 1e30:
            raise ValueError(f"{name} must be a number, not {value!r:.60}")
    if not config.scaling_factor:
        raise ValueError("scaling_factor must not be 0")
    if any(channels % config.norm_groups for channels in config.block_channels):
        raise ValueError(f"norm groups of {config.norm_groups} do not divide the channels")


def _integers(name: str, values: Any, most: int) -> tuple[int, ...]:
    """A list of a few positive integers as a tuple.

    Raises:
        ValueError: when it is something else.
    """
    if not isinstance(values, list) or not 1 <= len(values) <= 16:
        raise ValueError(f"{name} must be a list of numbers, not {values!r:.60}")
    for value in values:
        if type(value) is not int or not 1 <= value <= most:
            raise ValueError(f"{name} must be from 1 to {most}, not {value!r:.60}")
    return tuple(values)


def _from_released(raw: dict[str, Any]) -> AutoencoderConfig:
    # What the file leaves out is as in the released weights (facts differ between code versions,
    # whose own defaults contradict each other). GroupNorm always has 32 groups there.
    factors = _integers("ch_mult", raw["ch_mult"], 64)
    (base,) = _integers("ch", [raw["ch"]], 2**13)
    return AutoencoderConfig(
        block_channels=tuple(base * factor for factor in factors),
        layers_per_block=raw["num_res_blocks"],
        latent_channels=raw["z_channels"],
        patch=raw.get("psz") or 2,
        token_norm=bool(raw.get("encoder_norm", True)),
        deterministic=bool(raw.get("deterministic", True)),
        scaling_factor=raw.get("scaling_factor", 1.0),
        shift_factor=raw.get("shift_factor", 0.0),
    )


def _from_diffusers(raw: dict[str, Any]) -> AutoencoderConfig:
    if raw.get("use_quant_conv", True) or raw.get("use_post_quant_conv", True):
        raise ModelFileError("an autoencoder with quant convolutions is not a NextStep tokenizer")
    return AutoencoderConfig(
        block_channels=_integers("block_out_channels", raw["block_out_channels"], 2**13),
        layers_per_block=raw["layers_per_block"],
        latent_channels=raw["latent_channels"],
        norm_groups=raw["norm_num_groups"],
        patch=raw.get("patch", raw.get("patch_size", 2)),
        token_norm=bool(raw.get("token_norm", raw.get("encoder_norm", True))),
        deterministic=bool(raw.get("deterministic", True)),
        scaling_factor=raw.get("scaling_factor", 1.0),
        shift_factor=raw.get("shift_factor") or 0.0,
    )
