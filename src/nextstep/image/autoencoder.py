"""The autoencoder network: diffusers' AutoencoderKL in the shape the released tokenizer has."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


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


def build_autoencoder(config: AutoencoderConfig) -> AutoencoderKL:
    """An AutoencoderKL with random weights in the shape of `config`, without quant convs."""
    from diffusers import AutoencoderKL

    levels = len(config.block_channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.block_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=config.scaling_factor,
        shift_factor=config.shift_factor,
    )
