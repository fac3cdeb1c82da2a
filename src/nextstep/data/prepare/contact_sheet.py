"""Pictures for people: contact sheets, charts of histograms, comparisons."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from collections.abc import Sequence as Seq
from contextlib import suppress
from math import ceil, sqrt
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from nextstep.data.captions import texts_of
from nextstep.data.documents import SampleError, derived_seed
from nextstep.data.prepare.check import Histogram
from nextstep.data.shards import ShardSet
from nextstep.errors import NextStepError
from nextstep.image.pictures import MAX_PIXELS

PAPER, INK, PALE, BAR, BAD = "#ffffff", "#202124", "#9aa0a6", "#4978bc", "#b3261e"
TEXT_SIZE, LINE, GAP = 12, 15, 8
CAPTION_LINES = 4
USUAL_FONTS = ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "Arial.ttf")

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def pick(total: int, count: int, start: int = 0, seed: int | None = None) -> list[int]:
    """Which samples to show: `count` from `start` on, or drawn by `seed` from all.

    Raises:
        NextStepError: when nothing would be shown.
    """
    if count < 1:
        raise NextStepError(f"a sheet shows at least 1 sample, not {count}")
    if not 0 <= start < total:
        raise NextStepError(f"the set has samples 0 to {total - 1}; sample {start} is not there")
    if seed is None:
        return list(range(start, min(start + count, total)))
    drawn = random.Random(derived_seed("sheet", seed)).sample(range(total), min(count, total))
    return sorted(drawn)


def contact_sheet(
    shards: ShardSet,
    indices: Seq[int],
    columns: int = 6,
    cell: int = 192,
    font: str | Path | None = None,
) -> Image.Image:
    """Samples side by side with their captions; broken ones show their reason in red.

    Args:
        shards: the set.
        indices: which samples.
        columns: samples in a row.
        cell: pixels of the square that a sample's pictures share.
        font: a TrueType file, for captions in letters that the usual fonts lack.

    Raises:
        NextStepError: for a sheet without columns or of too many pixels, or a bad font.
    """
    if columns < 1 or cell < 32:
        raise NextStepError("a sheet has at least 1 column and cells of at least 32 pixels")
    letters = load_font(font)
    columns = min(columns, len(indices))
    step_x, step_y = cell + GAP, cell + GAP + LINE * CAPTION_LINES
    size = (columns * step_x + GAP, ceil(len(indices) / columns) * step_y + GAP)
    if size[0] * size[1] > MAX_PIXELS:
        raise NextStepError(
            f"a sheet of {size[0]}x{size[1]} pixels is too large; show fewer samples"
        )
    sheet = Image.new("RGB", size, PAPER)
    for place, index in enumerate(indices):
        corner = (GAP + place % columns * step_x, GAP + place // columns * step_y)
        _draw_sample(sheet, shards, index, corner, cell, letters)
    return sheet


def histogram_chart(charts: Seq[Histogram], width: int = 640) -> Image.Image:
    """Bars with their counts, one histogram below the other."""
    letters = ImageFont.load_default(TEXT_SIZE)
    height = sum((len(chart.bins) + 2) * LINE + GAP for chart in charts) + GAP
    picture = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(picture)
    left, right, top = 110, width - 90, GAP
    for chart in charts:
        draw.text((GAP, top), chart.title, INK, letters)
        largest = max(*chart.counts, 1)
        for row, (name, count) in enumerate(zip(chart.bins, chart.counts, strict=True), 1):
            y = top + row * LINE
            draw.text((left - GAP, y), name, INK, letters, anchor="ra")
            # A single sample among millions is still seen.
            length = max(round((right - left) * count / largest), 1) if count else 0
            if length:
                draw.rectangle((left, y + 2, left + length, y + LINE - 3), BAR)
            draw.text((left + length + GAP, y), f"{count:,}", INK if count else PALE, letters)
        top += (len(chart.bins) + 2) * LINE + GAP
    return picture


def load_font(path: str | Path | None) -> Font:
    """The letters of a file, of a widespread font with many scripts, or Pillow's own Latin ones.

    Raises:
        NextStepError: when the file is no font.
    """
    if path is None:
        for name in USUAL_FONTS:
            with suppress(OSError):
                return ImageFont.truetype(name, TEXT_SIZE)
        return ImageFont.load_default(TEXT_SIZE)
    try:
        return ImageFont.truetype(str(path), TEXT_SIZE)
    except OSError:
        raise NextStepError(f"{path} is not a font that can be read; name a .ttf file") from None


def wrapped(text: str, font: Font, width: int, lines: int) -> list[str]:
    """Text in lines of at most `width` pixels; the last one ends with dots when more is left."""
    found: list[str] = []
    line = ""
    for word in _words(text):
        if line and font.getlength(line + word.rstrip()) > width:
            found.append(line.rstrip())
            line = ""
            if len(found) == lines:
                found[-1] = _dotted(found[-1], font, width)
                return found
        line += word
    return [*found, line.rstrip()] if line.strip() else found


def _words(text: str) -> Iterator[str]:
    """Words with the space behind them; scripts without spaces and long words fall into letters."""
    for word in " ".join(text.split()).split(" "):
        if word.isascii() and len(word) <= 16:
            yield word + " "
        else:
            yield from word
            yield " "


def _dotted(line: str, font: Font, width: int) -> str:
    while line and font.getlength(line + "...") > width:
        line = line[:-1]
    return line + "..."


def _draw_sample(
    sheet: Image.Image, shards: ShardSet, index: int, corner: tuple[int, int], cell: int, font: Font
) -> None:
    left, top = corner
    draw = ImageDraw.Draw(sheet)
    lines = CAPTION_LINES
    try:
        entry, pictures = shards.entry(index), shards.pictures(index)
    except SampleError as error:
        draw.rectangle((left, top, left + cell - 1, top + cell - 1), outline=BAD)
        text, ink = f"{index}: {error.reason}: {error.key}", BAD
    else:
        texts = [text for value in entry.captions.values() for text in texts_of(value)]
        text, ink = f"{index}: {texts[0]}", INK
        if pictures:
            sheet.paste(tiled(pictures, cell), corner)
        else:
            lines += cell // LINE
            top -= cell
    for row, line in enumerate(wrapped(text, font, cell, lines)):
        draw.text((left, top + cell + 2 + row * LINE), line, ink, font)


def tiled(pictures: Seq[Image.Image], side: int) -> Image.Image:
    """Pictures in reading order inside one square, each as large as fits but never enlarged."""
    across = ceil(sqrt(len(pictures)))
    each = side // across
    square = Image.new("RGB", (side, side), PAPER)
    for number, picture in enumerate(pictures):
        small = picture.copy()
        small.thumbnail((each, each), Image.Resampling.LANCZOS)
        left = number % across * each + (each - small.width) // 2
        top = number // across * each + (each - small.height) // 2
        square.paste(small, (left, top))
    return square


SPACE, LINES, LABEL = 6, 3, 64


def comparison(
    rows: Sequence[tuple[str, Sequence[Image.Image]]], texts: Sequence[str], across: int = 8
) -> Image.Image:
    """Pictures of one size under and beside each other.

    Args:
        rows: label of a state and its picture for every text.
        texts: what was asked for.
        across: texts side by side before the next band of rows begins.
    """
    width, height = rows[0][1][0].size
    across = min(across, len(texts))
    bands = -(-len(texts) // across)
    band = len(rows) * (height + SPACE) + LINES * LINE + SPACE
    sheet = Image.new("RGB", (LABEL + across * (width + SPACE), bands * band + SPACE), PAPER)
    draw, font = ImageDraw.Draw(sheet), load_font(None)
    for place, text in enumerate(texts):
        left = LABEL + place % across * (width + SPACE)
        top = SPACE + place // across * band
        for label, pictures in rows:
            if place % across == 0:
                draw.text((SPACE, top + height // 2), label, INK, font)
            sheet.paste(pictures[place].resize((width, height)), (left, top))
            top += height + SPACE
        for line in wrapped(text, font, width, LINES):
            draw.text((left, top), line, INK, font)
            top += LINE
    return sheet
