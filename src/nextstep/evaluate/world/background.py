"""What is behind the objects of a picture: the background whose pixels fit best.

Legend: H W are both `SIDE`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from nextstep.evaluate.world.network import SIDE
from nextstep.world.scenes import Background, Scene, render
from nextstep.world.vocabulary import COLOURS

MISFIT = 40.0
"""Mean difference (0..255) from which a background is none of those in the world."""


def background_of(
    picture: np.ndarray, boxes: Sequence[Sequence[float]], margin: int = 3
) -> tuple[str, ...]:
    """Colour names of the background that fits the pixels outside all boxes best.

    Args:
        picture: uint8 [SIDE, SIDE, 3].
        boxes: of objects and signs, in pixels.
        margin: pixels around a box that are left out too.

    Returns:
        One or two names, top first; empty where nothing fits.
    """
    free = np.ones((SIDE, SIDE), bool)
    for left, top, right, bottom in boxes:
        rows = slice(max(0, int(top) - margin), max(0, int(bottom) + margin + 1))
        free[rows, max(0, int(left) - margin) : max(0, int(right) + margin + 1)] = False
    counts = free.sum(1)
    # A median of one pixel says little, so rows need two; where too little is left, all counts.
    if counts[counts >= 2].sum() < SIDE:
        free[:] = True
        counts = free.sum(1)
    rows_used = np.flatnonzero(counts >= 2)
    middles = np.stack([np.median(picture[row][free[row]], axis=0) for row in rows_used])
    names, columns = _backgrounds()
    # A row counts by its pixels; one that is far off, such as a missed object's, counts little.
    apart = np.abs(columns[:, rows_used] - middles).sum(-1).clip(max=6 * MISFIT)
    fit = (apart * counts[rows_used]).sum(-1) / counts[rows_used].sum() / 3
    best = int(fit.argmin())
    return names[best] if fit[best] < MISFIT else ()


@functools.cache
def _backgrounds() -> tuple[list[tuple[str, ...]], np.ndarray]:
    """All backgrounds of the world and their columns of pixels, float32 [n, SIDE, 3]."""
    made = [Background(a, None if a == b else b) for a in COLOURS for b in COLOURS]
    columns = [render(Scene(one), SIDE)[:, 0].astype(np.float32) for one in made]
    return [one.colours for one in made], np.stack(columns)


def column_of(picture: np.ndarray, background: tuple[str, ...]) -> np.ndarray:
    """The background's column of pixels [SIDE, 3]; the picture's edges where it is unknown."""
    names, columns = _backgrounds()
    if background:
        return columns[names.index(background)].astype(np.uint8)
    edges = np.concatenate((picture[:, :4], picture[:, -4:]), 1)
    column: np.ndarray = np.median(edges, axis=1).astype(np.uint8)
    return column
