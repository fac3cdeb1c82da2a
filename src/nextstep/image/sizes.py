"""Sizes of pictures: aspect buckets and what to do with a picture of another shape.

A bucket is a grid of image tokens (rows, columns), height first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from nextstep.errors import NextStepError

_TALL = ((32, 8), (28, 9), (25, 10), (23, 11), (21, 12), (19, 13), (18, 14), (17, 15))

ASPECT_BUCKETS: tuple[tuple[int, int], ...] = (
    *((rows, columns) for columns, rows in _TALL),
    (16, 16),
    *reversed(_TALL),
)
"""The 17 released buckets from 8x32 to 32x8, all of about 256 tokens."""

AREAS: tuple[int, ...] = (256, 512, 768, 1024)
"""Areas in squared pixels' root that multi-area training uses: 256^2 to 1024^2."""


@dataclass(frozen=True)
class SizeLimits:
    """Which sizes of pictures a model draws.

    Attributes:
        token_pixels: side of an image token; sides are its multiples.
        most_side: longest side in pixels, where learned positions end; None has no such end.
        most_tokens: image tokens of a picture, for which the model has positions.
    """

    token_pixels: int
    most_side: int | None
    most_tokens: int

    @property
    def most_pixels(self) -> int:
        """Pixels of the largest picture."""
        tokens = self.most_tokens
        if self.most_side is not None:
            tokens = min(tokens, (self.most_side // self.token_pixels) ** 2)
        return tokens * self.token_pixels**2

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of image tokens of a picture of this many pixels.

        Raises:
            NextStepError: when a side is no multiple of a token's, or too large for the model.
        """
        side = self.token_pixels
        if not (isinstance(height, int) and isinstance(width, int)):
            raise NextStepError(f"height and width are whole numbers, not {height!r} x {width!r}")
        if height < side or width < side or height % side or width % side:
            raise NextStepError(
                f"height and width must be positive multiples of {side}, not {height}x{width}"
            )
        rows, columns = height // side, width // side
        long = self.most_side is not None and max(height, width) > self.most_side
        if long or rows * columns > self.most_tokens:
            raise NextStepError(
                f"{width}x{height} pixels are too large: {self}; give a smaller size, or none"
            )
        return rows, columns

    def __str__(self) -> str:
        multiples = f"in multiples of {self.token_pixels}"
        if self.most_side is not None and self.most_side**2 <= self.most_pixels:
            return f"this model draws up to {self.most_side}x{self.most_side} pixels, {multiples}"
        side = f" and {self.most_side} a side" if self.most_side is not None else ""
        return f"this model draws up to {self.most_pixels:,} pixels in all{side}, {multiples}"


def scaled_buckets(area_side: int) -> list[tuple[int, int]]:
    """The buckets for pictures of about area_side^2 pixels.

    Args:
        area_side: multiple of 256 for the 17 released buckets scaled up; or a multiple of 16 below,
            for buckets made by the same rule: for every number of columns from half the square's
            the most rows that its area holds, and the transposes.

    Raises:
        ValueError: for another value.
    """
    tokens = area_side // 16
    if 16 <= area_side < 256 and area_side % 16 == 0:
        tall = [(tokens**2 // c, c) for c in range(-(-tokens // 2), tokens)]
        wide = [(columns, rows) for rows, columns in tall]
        return [*wide, (tokens, tokens), *reversed(tall)]
    if area_side < 256 or area_side % 256:
        raise ValueError(
            f"the side of an area must be a multiple of 256, or of 16 below it, not {area_side}"
        )
    factor = area_side // 256
    return [(rows * factor, columns * factor) for rows, columns in ASPECT_BUCKETS]


def filling_grids(area: int, side: int) -> list[tuple[int, int]]:
    """All grids from 1 to 4 to 4 to 1 that have no room for another row or column.

    Args:
        area: most image tokens.
        side: most rows, and most columns.
    """
    tall = {(min(side, area // columns), columns) for columns in range(1, min(side, area) + 1)}
    wide = {(columns, rows) for rows, columns in tall}
    found = sorted(tall | wide)
    return [grid for grid in found if max(grid) <= 4 * min(grid)]


def kept_share(height: int, width: int, grid: tuple[int, int]) -> float:
    """How much of a picture is left where it covers a grid of another shape and is cut to it."""
    ratio = (height * grid[1]) / (width * grid[0])
    return min(ratio, 1 / ratio)


def nearest_bucket(
    height: int, width: int, buckets: Sequence[tuple[int, int]] | None = None
) -> tuple[int, int]:
    """The bucket whose rows/columns is nearest to height/width; the first of equals."""
    wanted = height / width
    return min(buckets or list(ASPECT_BUCKETS), key=lambda b: abs(b[0] / b[1] - wanted))


def multi_area_bucket(
    height: int, width: int, token_pixels: int = 16, areas: Sequence[int] = AREAS
) -> tuple[int, int]:
    """The largest area whose nearest bucket fits inside the picture's area.

    A picture smaller than every bucket gets the smallest one.

    Args:
        height, width: of the picture.
        token_pixels: side of an image token.
        areas: sides of the areas to choose from, ascending.
    """
    best = nearest_bucket(height, width, scaled_buckets(areas[0]))
    for side in areas:
        bucket = nearest_bucket(height, width, scaled_buckets(side))
        if bucket[0] * bucket[1] * token_pixels**2 <= height * width:
            best = bucket
    return best


def fitting_size(
    height: int,
    width: int,
    multiple: int,
    max_pixels: int | None = None,
    max_side: int | None = None,
) -> tuple[int, int]:
    """The nearest (height, width) with sides that are multiples, keeping the aspect.

    Args:
        height, width: of the picture.
        multiple: pixels per image token.
        max_pixels: shrink to at most this area; one token always fits.
        max_side: shrink until no side is longer, a multiple itself.
    """
    area = math.inf if max_pixels is None else max(1.0, max_pixels / multiple**2)
    most = math.inf if max_side is None else max(1, max_side // multiple)
    tall, wide = height / multiple, width / multiple
    scale = min(1.0, (area / (tall * wide)) ** 0.5, most / max(tall, wide))
    tall, wide = tall * scale, wide * scale

    rows, columns = max(1, round(tall)), max(1, round(wide))
    if rows * columns > area:
        # Rounded up: of the neighbours inside the area, the one whose aspect is nearest.
        down, across = ({max(1, int(side)), max(1, math.ceil(side))} for side in (tall, wide))
        near = [(r, min(c, int(area // r))) for r, c in product(down, across) if r <= area]
        near += [(min(r, int(area // c)), c) for r, c in product(down, across) if c <= area]
        rows, columns = min(
            near, key=lambda size: (abs(math.log(size[0] * width / (size[1] * height))), size)
        )
    return rows * multiple, columns * multiple
