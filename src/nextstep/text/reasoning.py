"""The line that a model writes before it draws or answers: what is shown, and what an edit changes.

    dog left, cat right, noto style, blue background
    dog left, cat right, mono style, blue background; cat right goes; change rows 3-6 columns 5-8;
    dog left, mono style, blue background

The second form belongs to edits: the source in words, what becomes of which objects, which image
tokens change, and the result in words. Whoever draws keeps all other tokens of the source as they
are.

A question about pictures is followed by what they show, in the same words, and the objects that it
asks for or what changed, and on the next line by the answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SEPARATOR = "; "
_CHANGE = re.compile(r"\bchange rows (\d+)-(\d+) columns (\d+)-(\d+)")
_CHANGE_ALL = "change all"


@dataclass(frozen=True)
class Region:
    """A rectangle of image tokens.

    Attributes:
        top, left: its first row and column, from 0.
        bottom, right: the first ones behind it.
    """

    top: int
    left: int
    bottom: int
    right: int

    def covers(self, grid: tuple[int, int]) -> bool:
        """Whether it is all of a grid (rows, columns)."""
        return (self.top, self.left) == (0, 0) and (self.bottom, self.right) == grid

    def grown(self, by: int, grid: tuple[int, int]) -> Region:
        """The rectangle made larger by so many tokens on every side, inside a grid."""
        return Region(
            max(0, self.top - by),
            max(0, self.left - by),
            min(grid[0], self.bottom + by),
            min(grid[1], self.right + by),
        )

    def places(self, grid: tuple[int, int]) -> list[int]:
        """Its tokens in a grid (rows, columns), as places in raster order."""
        rows = range(self.top, min(self.bottom, grid[0]))
        columns = range(self.left, min(self.right, grid[1]))
        return [row * grid[1] + column for row in rows for column in columns]


def change_words(region: Region, grid: tuple[int, int]) -> str:
    """How a line says which tokens change; rows and columns count from 1."""
    if region.covers(grid):
        return _CHANGE_ALL
    return f"change rows {region.top + 1}-{region.bottom} columns {region.left + 1}-{region.right}"


def region_in(text: str, grid: tuple[int, int]) -> Region | None:
    """The tokens that a line says will change.

    Args:
        text: an instruction with its line, or a line.
        grid: (rows, columns) of the picture.

    Returns:
        None where it names no region, all of the picture, or one that does not lie in the grid.
    """
    found = _CHANGE.search(text)
    if found is None:
        return None
    top, bottom, left, right = (int(number) for number in found.groups())
    region = Region(top - 1, left - 1, bottom, right)
    fits = 0 <= region.top < bottom <= grid[0] and 0 <= region.left < right <= grid[1]
    return region if fits and not region.covers(grid) else None


def answer_in(written: str) -> str:
    """What a model answers in a text that may have a line about the pictures before it."""
    return written.strip().rpartition("\n")[2].strip()
