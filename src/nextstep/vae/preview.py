"""Pictures while their tokens come.

Only new rows are decoded, together with the last ones before them, so that the decoder sees what
stands above. It also looks over the whole picture (attention, group norms), which a strip cannot
give it, so a shown picture is near the finished one but not the same; the finished one is always
decoded as a whole. Where even that takes too long, new rows are shown by one matrix: rough, and a
thousand times cheaper. A token's 16 x 16 pixels are nearly a linear function of its values; the
matrix is fitted, by ridge regression, to what the image tokenizer makes of a few drawn shapes.

Legend: N tokens, k of them known, D values per token, s pixels of a token's side.
"""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from nextstep.image import pictures
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


BLANK = (128, 128, 128)
"""Colour of rows that are not there."""
CONTEXT = 1
"""Rows above the new ones that are decoded with them."""


class GrowingPicture:
    """One picture while its tokens come.

    Args:
        tokenizer: decodes.
        grid: (rows, columns) of image tokens.
    """

    def __init__(self, tokenizer: ImageTokenizer, grid: tuple[int, int]) -> None:
        self.tokenizer, self.grid = tokenizer, grid
        self.side = tokenizer.config.token_pixels
        self.rows = 0
        self.picture = Image.new("RGB", (grid[1] * self.side, grid[0] * self.side), BLANK)

    def show(self, tokens: Tensor) -> Image.Image:
        """The picture with the whole rows of tokens [k, D]; the rest is grey."""
        columns = self.grid[1]
        done = len(tokens) // columns
        if done > self.rows:
            first = max(0, self.rows - CONTEXT)
            strip = tokens[None, first * columns : done * columns]
            pixels = self.tokenizer.decode_tokens(strip, (done - first, columns))
            # The last row shown before had nothing below it and is replaced too.
            pasted = max(0, self.rows - 1)
            made = pixels[:, :, (pasted - first) * self.side :]
            self.picture.paste(pictures.to_pictures(made)[0], (0, pasted * self.side))
            self.rows = done
        return self.picture.copy()

    def show_linear_preview(self, tokens: Tensor, preview: LinearPreview) -> Image.Image:
        """The same, but rows that `show` has not shown yet are rough."""
        columns, shown = self.grid[1], self.picture.copy()
        done = len(tokens) // columns
        if done > self.rows:
            new = tokens[self.rows * columns : done * columns]
            pixels = preview.decode(new, (done - self.rows, columns))
            shown.paste(pictures.to_pictures(pixels)[0], (0, self.rows * self.side))
        return shown
