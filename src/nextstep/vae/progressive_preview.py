"""A picture that grows row by row, shown cheaply: only what is new is decoded.

New rows of image tokens are decoded together with the last ones before them, so that the decoder
sees what stands above. It also looks over the whole picture (attention, group norms), which a strip
cannot give it, so a shown picture is near the finished one but not the same; the finished one
is always decoded as a whole. Where even that takes too long, new rows are shown roughly.

Legend: k tokens that are known, D values per token.
"""

from __future__ import annotations

from PIL import Image
from torch import Tensor

from nextstep.image import pictures
from nextstep.vae.linear_preview import LinearPreview
from nextstep.vae.tokenizer import ImageTokenizer

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
