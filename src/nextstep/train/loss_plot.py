"""The loss of a run as a picture, drawn from its log; and other curves."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from nextstep.data.prepare.contact_sheet import INK, LINE, PAPER, load_font
from nextstep.utils.files import writing

SIZE, MARGIN = (720, 360), (64, 16)
"""Pixels of the picture, and of the room left of and around the curve."""
COLOURS = (40, 90, 160), (200, 80, 40), (40, 140, 70), (140, 60, 160), (110, 110, 110)
SMOOTHED = 20
"""Parts of the curve over which the running mean is taken."""


def save_loss_plot(log: Path, path: Path) -> bool:
    """Draw the loss of all steps that a log tells of; says whether there were any to draw.

    Args:
        log: a run's log.jsonl.
        path: of the PNG.

    Raises:
        OSError: naming `path`, when it cannot be written.
    """
    points = losses(log)
    if len(points) < 2:
        return False
    with writing(path) as scratch:
        loss_plot(points).save(scratch, "PNG")
    return True


def losses(log: Path) -> list[tuple[int, float]]:
    """(step, loss) of every row with figures; damaged lines are passed over."""
    found = []
    for line in log.read_text("utf-8", errors="replace").splitlines() if log.exists() else ():
        try:
            row = json.loads(line)
            step, loss = int(row["step"]), float(row["loss"])
        except (ValueError, KeyError, TypeError):
            continue
        if math.isfinite(loss):
            found.append((step, loss))
    return found


def loss_plot(points: Sequence[tuple[int, float]]) -> Image.Image:
    """The loss by step, at least two points; see `curve_plot`."""
    return curve_plot({"loss": points}, "step")


def curve_plot(curves: Mapping[str, Sequence[tuple[float, float]]], along: str) -> Image.Image:
    """Curves, faint as measured and strong as running means, the ends of both axes written.

    Args:
        curves: name -> (place, value), by place; together at least two points.
        along: what places are.
    """
    points = [point for curve in curves.values() for point in curve]
    (first, last), (low, high) = ((min(axis), max(axis)) for axis in zip(*points, strict=True))
    sheet = Image.new("RGB", SIZE, PAPER)
    draw, font = ImageDraw.Draw(sheet), load_font(None)
    left, top = MARGIN
    right, bottom = SIZE[0] - top, SIZE[1] - top - LINE

    def place(at: float, value: float) -> tuple[float, float]:
        share = (at - first) / max(last - first, 1)
        up = (value - low) / (high - low) if high > low else 0.5
        return left + share * (right - left), bottom - up * (bottom - top)

    draw.line([(left, top), (left, bottom), (right, bottom)], INK)
    for number, (name, curve) in enumerate(curves.items()):
        strong = COLOURS[number % len(COLOURS)]
        faint = tuple(255 - (255 - part) // 3 for part in strong)
        draw.line([place(*point) for point in curve], faint)
        places, values = zip(*curve, strict=True)
        means = running_mean(values, max(1, len(values) // SMOOTHED))
        draw.line([place(*point) for point in zip(places, means, strict=True)], strong, 2)
        ink = INK if len(curves) == 1 else strong
        draw.text((right, top + number * LINE), name, ink, font, anchor="ra")
    for value, y in ((high, top), (low, bottom - LINE)):
        draw.text((4, y), f"{value:.4g}", INK, font)
    draw.text((left, bottom + 2), f"{along} {first:g}", INK, font)
    draw.text((right, bottom + 2), f"{last:g}", INK, font, anchor="ra")
    return sheet


def running_mean(values: Sequence[float], around: int) -> list[float]:
    """Mean of every value and of those at most `around` places from it."""
    windows = (values[max(0, n - around) : n + around + 1] for n in range(len(values)))
    return [math.fsum(window) / len(window) for window in windows]
