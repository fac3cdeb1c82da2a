"""Image tokens to pixels by one matrix: rough, and a thousand times cheaper than the decoder.

A token's 16 x 16 pixels are nearly a linear function of its values. The matrix is fitted, by
ridge regression, to what the image tokenizer makes of a few drawn shapes.

Legend: N tokens, D values per token, s pixels of a token's side.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nextstep.vae.tokenizer import ImageTokenizer

PICTURES, SIDE = 48, 4
"""Drawn pictures, and tokens along their sides."""
RIDGE = 0.1


class LinearPreview:
    """Pixels of tokens, one by one.

    Args:
        tokenizer: whose decoder is imitated; asked once.
    """

    @torch.inference_mode()
    def __init__(self, tokenizer: ImageTokenizer) -> None:
        self.side = side = tokenizer.config.token_pixels
        pixels = _drawn(PICTURES, SIDE * side)
        tokens = tokenizer.encode_tokens(pixels).float().cpu().flatten(0, 1)
        wanted = F.unfold(pixels, side, stride=side).transpose(1, 2).flatten(0, 1)
        x = torch.cat((tokens, torch.ones(len(tokens), 1)), dim=1).double()
        square = x.T @ x + RIDGE * len(x) / x.shape[1] * torch.eye(x.shape[1]).double()
        self.matrix = torch.linalg.solve(square, x.T @ wanted.double()).float()

    @torch.inference_mode()
    def decode(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens [N, D] of a grid -> pixels [1, 3, H, W]."""
        values = tokens.float().cpu()
        patches = values @ self.matrix[:-1] + self.matrix[-1]
        size = (grid[0] * self.side, grid[1] * self.side)
        return F.fold(patches.T[None], size, self.side, stride=self.side).clamp(-1, 1)


def _drawn(count: int, side: int) -> Tensor:
    """Pictures [count, 3, side, side] of soft and hard shapes in any colours."""
    dice = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=dice)

    place = torch.linspace(0, 1, side)
    rows, columns = place[:, None], place[None, :]
    made = random(count, 3, 1, 1).expand(count, 3, side, side) * 2 - 1
    for number in range(6):
        centre, radius = random(count, 2, 1, 1), random(count, 1, 1) * 0.4 + 0.05
        away = ((rows - centre[:, 0]) ** 2 + (columns - centre[:, 1]) ** 2).sqrt() - radius
        sharp = 400.0 if number % 2 else 20.0
        inside = torch.sigmoid(-sharp * away)[:, None]
        colour = random(count, 3, 1, 1) * 2 - 1
        slope = (random(count, 3, 1, 1) - 0.5) * columns
        made = made * (1 - inside) + (colour + slope).clamp(-1, 1) * inside
    return made.contiguous()
