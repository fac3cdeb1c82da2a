"""Discrete image tokens: a picture's continuous tokens, rounded to one code each and back.

Finite scalar quantisation (Mentzer et al. 2023, arXiv 2309.15505): a token becomes a few numbers,
each is squeezed into a range and rounded to one of a few levels, and the combination is its code.
There is no codebook that could collapse, and nothing to commit to. Around it stand two small
convolutional networks over the grid of image tokens. The image tokenizer stays as it is, so its
decoder draws the pictures of every paradigm.

Legend: B pictures, R K rows and columns of image tokens, N = R*K, D values per token, d numbers
per code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextstep.data.batch import SequenceBatch
from nextstep.vae.autoencoder import ResnetBlock
from nextstep.vae.latents import token_norm
from nextstep.vae.tokenizer import ImageTokenizer

LEVELS = (7, 5, 5, 5, 5)
"""Levels of each number: 4,375 codes (arXiv 2309.15505 table 1, for about 2^12)."""
EDGE = 1e-3
"""How much wider than its levels a range is, so that the outermost ones are reached."""


class FSQ(nn.Module):
    """Rounds vectors of d numbers to a finite set of codes, with the identity as gradient.

    Args:
        levels: of each of the d numbers, each at least 2.
    """

    levels: Tensor
    radix: Tensor

    def __init__(self, levels: Sequence[int] = LEVELS) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"every number needs at least two levels, not {tuple(levels)}")
        self.codes = math.prod(levels)
        radix = [math.prod(levels[:place]) for place in range(len(levels))]
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("radix", torch.tensor(radix), persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        """z [..., d] -> the nearest code's numbers [..., d], in [-1, 1]."""
        half = (self.levels - 1) * (1 + EDGE) / 2
        # An even number of levels has none at 0, so its range is moved by half a level.
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        bounded = torch.tanh(z + torch.atanh(offset / half)) * half - offset
        rounded = bounded + (bounded.round() - bounded).detach()
        return rounded / (self.levels // 2)

    def indices(self, values: Tensor) -> Tensor:
        """Numbers of codes [..., d] -> codes [...], from 0 to `codes` - 1."""
        steps = (values * (self.levels // 2)).round().long() + self.levels // 2
        return (steps * self.radix).sum(-1)

    def values(self, indices: Tensor) -> Tensor:
        """Codes [...] -> their numbers [..., d], the inverse of `indices`."""
        steps = indices[..., None] // self.radix % self.levels
        middle = self.levels // 2
        return (steps - middle) / middle


@dataclass(frozen=True)
class QuantizerConfig:
    """Shape of a `TokenQuantizer`.

    Attributes:
        token_size: D.
        levels: see `FSQ`.
        width: channels of both networks.
        blocks: residual blocks of each.
        groups: of their norms.
    """

    token_size: int = 64
    levels: tuple[int, ...] = LEVELS
    width: int = 128
    blocks: int = 2
    groups: int = 16


class TokenQuantizer(nn.Module):
    """Image tokens [B, N, D] to codes [B, N] and back."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config, D, W, d = config, config.token_size, config.width, len(config.levels)

        def blocks() -> list[nn.Module]:
            return [ResnetBlock(W, W, config.groups) for _ in range(config.blocks)]

        self.encoder = nn.Sequential(nn.Conv2d(D, W, 1), *blocks(), nn.Conv2d(W, d, 1))
        self.fsq = FSQ(config.levels)
        self.decoder = nn.Sequential(nn.Conv2d(d, W, 1), *blocks(), nn.Conv2d(W, D, 1))

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens [B, N, D] of a grid -> as their codes give them back, [B, N, D]."""
        return self._tokens(self._numbers(tokens, grid))

    @torch.no_grad()
    def encode(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens [B, N, D] of a grid (rows, columns) -> codes [B, N] in raster order."""
        numbers = self._numbers(tokens, grid)
        return self.fsq.indices(numbers.permute(0, 2, 3, 1)).flatten(1)

    @torch.no_grad()
    def decode(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """Codes [B, N] of a grid (rows, columns) -> tokens [B, N, D]."""
        numbers = self.fsq.values(codes.view(-1, *grid)).permute(0, 3, 1, 2)
        return self._tokens(numbers)

    def _numbers(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, N, D] -> rounded numbers [B, d, R, K]."""
        z = self.encoder(tokens.transpose(1, 2).unflatten(2, grid))
        return self.fsq(z.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def _tokens(self, numbers: Tensor) -> Tensor:
        """[B, d, R, K] -> tokens [B, N, D], normalised as those of the image tokenizer."""
        return token_norm(self.decoder(numbers).flatten(2).transpose(1, 2).float())


class QuantizedTokenizer:
    """The image tokenizer with rounding in between: the ceiling of what discrete tokens can draw.

    Args:
        tokenizer: of pictures.
        quantizer: of its tokens.
    """

    def __init__(self, tokenizer: ImageTokenizer, quantizer: TokenQuantizer) -> None:
        self.tokenizer, self.quantizer = tokenizer, quantizer

    def round_trip(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in [-1, 1] -> as their codes are decoded, [B, 3, H, W]."""
        grid = self.tokenizer.grid(pixels.shape[-2], pixels.shape[-1])
        tokens = self.tokenizer.encode_tokens(pixels).clone().float()
        codes = self.quantizer.encode(tokens, grid)
        return self.tokenizer.decode_tokens(self.quantizer.decode(codes, grid), grid)


@dataclass(frozen=True)
class TokenGroups:
    """Pictures of a batch by their grid.

    Attributes:
        groups: grid -> image tokens [B, N, D].
    """

    groups: dict[tuple[int, int], Tensor]


class QuantizerStage:
    """Trains a `TokenQuantizer` on the image tokens of packed rows; satisfies `Stage`.

    Its one part, `token_error`, is the mean squared error of a token's values.
    """

    def __init__(self) -> None:
        self.loss_weights = {"token_error": 1.0}

    def prepare(self, batch: SequenceBatch, device: torch.device | str) -> TokenGroups:
        """Sort the pictures by their grid.

        Raises:
            ValueError: when pictures are still pixels.
        """
        if batch.pictures:
            raise ValueError("the quantizer learns from image tokens; compose or cache them")
        return TokenGroups(by_grid(batch.image_tokens.to(device), batch.coordinates))

    def counts(self, batch: TokenGroups) -> dict[str, float]:
        """Image tokens."""
        tokens = sum(t.shape[0] * t.shape[1] for t in batch.groups.values())
        return {"token_error": float(tokens)}

    def losses(self, model: nn.Module, batch: TokenGroups) -> dict[str, Tensor]:
        """Sum over tokens of the mean squared error of their values."""
        assert isinstance(model, TokenQuantizer)
        total = torch.zeros(())
        for grid, tokens in batch.groups.items():
            error = F.mse_loss(model(tokens, grid), tokens, reduction="sum")
            total = total + error / tokens.shape[-1]
        return {"token_error": total}

    def flops(self, batch: TokenGroups) -> float:
        """Operations of forward and backward, by the default shape."""
        return self.counts(batch)["token_error"] * token_flops(QuantizerConfig())


def token_flops(config: QuantizerConfig) -> float:
    """Operations of forward and backward for one image token: six for every number of a kernel."""
    model = TokenQuantizer(config)
    return 6.0 * sum(p.numel() for p in model.parameters() if p.ndim > 1)


def by_grid(tokens: Tensor, coordinates: Tensor) -> dict[tuple[int, int], Tensor]:
    """Image tokens [M, D] of pictures one after another -> by grid, [B, N, D] each.

    Args:
        tokens: of whole pictures in raster order.
        coordinates: [M, 2] row and column of each.
    """
    starts = (coordinates == 0).all(-1).nonzero().flatten().tolist()
    found: dict[tuple[int, int], list[Tensor]] = {}
    ends = [*starts, len(tokens)][1:]
    for first, end in zip(starts, ends, strict=True):
        rows, columns = (coordinates[end - 1] + 1).tolist()
        found.setdefault((rows, columns), []).append(tokens[first:end])
    return {grid: torch.stack(members) for grid, members in found.items()}
