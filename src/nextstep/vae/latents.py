"""Latents and image tokens: patchify, token norm.

Legend: B batch, C latent channels, h w latent height and width, p patch side, R = h/p rows,
K = w/p columns, N = R*K tokens, D = C*p*p values per token (16*2*2 = 64 as released).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

TOKEN_NORM_EPS = 1e-6


def patchify(latents: Tensor, patch: int = 2) -> Tensor:
    """Cut latents into image tokens.

    Args:
        latents: [B, C, h, w], h and w multiples of `patch`.
        patch: side of a token in latents.

    Returns:
        [B, N, D] in raster order; inside a token index = c*p*p + dy*p + dx (channel-major).

    Raises:
        ValueError: when a side is not a multiple of `patch`.
    """
    B, C, h, w = latents.shape
    if h % patch or w % patch:
        raise ValueError(f"latents of {h}x{w} cannot be cut into {patch}x{patch} tokens")
    R, K = h // patch, w // patch
    blocks = latents.reshape(B, C, R, patch, K, patch)
    # [B, R, K, C, dy, dx]: channel-major inside a token, as released weights read it.
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(B, R * K, C * patch * patch)


def unpatchify(tokens: Tensor, grid: tuple[int, int], patch: int = 2) -> Tensor:
    """The inverse of `patchify`.

    Args:
        tokens: [B, N, D] in raster order.
        grid: (rows, columns) with rows*columns = N.
        patch: side of a token in latents.

    Returns:
        [B, C, h, w].

    Raises:
        ValueError: when the grid does not hold exactly N tokens.
    """
    B, N, D = tokens.shape
    R, K = grid
    if R * K != N:
        raise ValueError(f"{N} image tokens do not fill a grid of {R}x{K}")
    C = D // (patch * patch)
    blocks = tokens.reshape(B, R, K, C, patch, patch)
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(B, C, R * patch, K * patch)


def token_norm(tokens: Tensor, eps: float = TOKEN_NORM_EPS) -> Tensor:
    """LayerNorm without affine over the values of each token, [..., D] -> [..., D].

    The released tokenizer calls it `encoder_norm`; arXiv 2508.10711 section 2.2.
    """
    return F.layer_norm(tokens, tokens.shape[-1:], eps=eps)


def normalise_latents(latents: Tensor, patch: int = 2) -> Tensor:
    """Token norm applied to latents in place of tokens, [B, C, h, w] -> the same shape."""
    grid = latents.shape[-2] // patch, latents.shape[-1] // patch
    return unpatchify(token_norm(patchify(latents, patch)), grid, patch)


def raster_coordinates(grid: tuple[int, int]) -> Tensor:
    """Row and column of each image token of a (rows, columns) grid: [rows*columns, 2]."""
    rows, columns = torch.arange(grid[0]), torch.arange(grid[1])
    return torch.cartesian_prod(rows, columns).view(-1, 2)
