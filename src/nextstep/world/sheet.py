"""Sheets of samples for people: pictures in reading order with their text underneath."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from nextstep.errors import NextStepError
from nextstep.world.examples import Example
from nextstep.world.scenes import render

_GAP, _LINE, _LETTERS = 6, 12, 10
_MOST_PIXELS = 64_000_000
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def sheet(examples: Sequence[Example], size: int = 128, columns: int = 6) -> Image.Image:
    """Samples one after another, in rows as wide as `columns` samples of one picture.

    Args:
        examples: at least one; one with more pictures than fit makes the sheet wider.
        size: side of a picture in pixels.
        columns: pictures in a row.

    Raises:
        NextStepError: when there is nothing to show, or the sheet would be too large.
    """
    if not examples or columns < 1 or size < 16:
        raise NextStepError("a sheet needs a sample, a column and pictures of 16 pixels or more")
    cells = [
        ([Image.fromarray(render(s, size)) for s in example.scenes], _shown_text(example))
        for example in examples
    ]
    return sheet_of(cells, size, columns)


def sheet_of(
    cells: Sequence[tuple[Sequence[Image.Image], str]], size: int, columns: int
) -> Image.Image:
    """Groups of pictures with a text underneath each.

    Args:
        cells: pictures of `size` pixels a side, and what is said about them.
        size: side of a picture in pixels.
        columns: pictures in a row; a group with more makes the sheet wider.

    Raises:
        NextStepError: when the sheet would be too large.
    """
    font = ImageFont.load_default(_LETTERS)
    widths = [max(1, len(shown)) * (size + 2) + _GAP for shown, _ in cells]
    texts = [
        _wrapped(text, font, width - _GAP) for (_, text), width in zip(cells, widths, strict=True)
    ]
    full = max(columns * (size + 2 + _GAP), *widths)
    corners, height = _placed(widths, [size + _GAP + _LINE * len(t) for t in texts], full)
    if full * height > _MOST_PIXELS:
        raise NextStepError("the sheet would be too large; show fewer samples or columns")
    canvas = Image.new("RGB", (full, height), "white")
    draw = ImageDraw.Draw(canvas)
    for (shown, _), lines, (x, y) in zip(cells, texts, corners, strict=True):
        for number, picture in enumerate(shown):
            canvas.paste(picture, (x + number * (size + 2), y))
        for number, line in enumerate(lines):
            draw.text((x, y + size + 1 + number * _LINE), line, "#202124", font)
    return canvas


def _placed(
    widths: Sequence[int], heights: Sequence[int], full: int
) -> tuple[list[tuple[int, int]], int]:
    """Corners of cells set in rows of at most `full`, and the height of all rows."""
    corners, x, y, row = [], 0, 0, 0
    for width, height in zip(widths, heights, strict=True):
        if x and x + width > full:
            x, y, row = 0, y + row, 0
        corners.append((x, y))
        x, row = x + width, max(row, height)
    return corners, y + row


def _shown_text(example: Example) -> str:
    """The text with a mark where a picture stands, where there are several."""
    mark = " | " if len(example.scenes) > 1 else " "
    return example.text.replace("<image>", mark).strip(" |\n")


def _wrapped(text: str, font: _Font, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
