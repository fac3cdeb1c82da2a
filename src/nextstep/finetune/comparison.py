"""Sheets that compare pictures: one column a prompt, one row a state of the model."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from nextstep.data.prepare.contact_sheet import INK, LINE, PAPER, load_font, wrapped

GAP, LINES, LABEL = 6, 3, 64


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
    band = len(rows) * (height + GAP) + LINES * LINE + GAP
    sheet = Image.new("RGB", (LABEL + across * (width + GAP), bands * band + GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), load_font(None)
    for place, text in enumerate(texts):
        left = LABEL + place % across * (width + GAP)
        top = GAP + place // across * band
        for label, pictures in rows:
            if place % across == 0:
                draw.text((GAP, top + height // 2), label, INK, font)
            sheet.paste(pictures[place].resize((width, height)), (left, top))
            top += height + GAP
        for line in wrapped(text, font, width, LINES):
            draw.text((left, top), line, INK, font)
            top += LINE
    return sheet
