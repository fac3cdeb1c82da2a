"""The autoencoder network, in the shape of the released tokenizer (that of Flux.1).

Parameter names are those of diffusers' AutoencoderKL, so its folders are read as they are. The
network stands here because importing diffusers takes twice as long as everything else a picture
needs at a cold start (decision 7); the tests hold it equal to diffusers' number for number.

Legend: B pictures, H W pixels, h w latents, C channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn import functional as F

from nextstep.vae.config import AutoencoderConfig

NORM_EPS = 1e-6


class ResnetBlock(nn.Module):
    """Norm, SiLU, 3x3 convolution, twice, around a residual."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, NORM_EPS)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, outputs, NORM_EPS)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H, W]."""
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class SpatialAttention(nn.Module):
    """Single-head attention over all places of a feature map, around a residual."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, NORM_EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        flat = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = (f(flat)[:, None] for f in (self.to_q, self.to_k, self.to_v))
        y = self.to_out[0](F.scaled_dot_product_attention(q, k, v)[:, 0])
        return x + y.transpose(1, 2).reshape(x.shape)


class MidBlock(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups) for _ in range(2))
        self.attentions = nn.ModuleList([SpatialAttention(channels, groups)])

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Downsample(nn.Module):
    """Half the resolution; padded on the right and below alone, as in the released network."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H/2, W/2]."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the resolution by repeating pixels, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, 2H, 2W]."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks of one resolution and the step to the next."""

    def __init__(self, channels: Iterable[int], groups: int, down: bool, step: bool) -> None:
        super().__init__()
        sizes = list(channels)
        pairs = itertools.pairwise(sizes)
        self.resnets = nn.ModuleList(ResnetBlock(i, o, groups) for i, o in pairs)
        if step and down:
            self.downsamplers = nn.ModuleList([Downsample(sizes[-1])])
        elif step:
            self.upsamplers = nn.ModuleList([Upsample(sizes[-1])])

    def forward(self, x: Tensor) -> Tensor:
        """Through all blocks, then down or up."""
        for name in ("resnets", "downsamplers", "upsamplers"):
            for block in getattr(self, name, ()):
                x = block(x)
        return x


class Encoder(nn.Module):
    """Pixels to the mean and log-variance of latents."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        sizes, groups, n = config.block_channels, config.norm_groups, config.layers_per_block
        self.conv_in = nn.Conv2d(3, sizes[0], 3, padding=1)
        before = (sizes[0], *sizes)
        self.down_blocks = nn.ModuleList(
            Level((before[i], *[size] * n), groups, down=True, step=i + 1 < len(sizes))
            for i, size in enumerate(sizes)
        )
        self.mid_block = MidBlock(sizes[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, sizes[-1], NORM_EPS)
        self.conv_out = nn.Conv2d(sizes[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 2*C, h, w], means first."""
        x = self.conv_in(pixels)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Latents to pixels."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        sizes, groups = config.block_channels[::-1], config.norm_groups
        n = config.layers_per_block + 1
        self.conv_in = nn.Conv2d(config.latent_channels, sizes[0], 3, padding=1)
        self.mid_block = MidBlock(sizes[0], groups)
        before = (sizes[0], *sizes)
        self.up_blocks = nn.ModuleList(
            Level((before[i], *[size] * n), groups, down=False, step=i + 1 < len(sizes))
            for i, size in enumerate(sizes)
        )
        self.conv_norm_out = nn.GroupNorm(groups, sizes[-1], NORM_EPS)
        self.conv_out = nn.Conv2d(sizes[-1], 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, 3, H, W]."""
        x = self.mid_block(self.conv_in(latents))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Autoencoder(nn.Module):
    """Encoder and decoder; the normalisation between them is `ImageTokenizer`'s."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def mean(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> mean latents [B, C, h, w], not normalised."""
        return self.encoder(pixels).chunk(2, dim=1)[0]
