"""Signs on the grid of image tokens, read letter by letter.

In the editions on the grid every letter of a sign has its place, so a sign is read by comparing
each place with the 26 letters as they are drawn there.

Legend: L letters of a sign, S pixels of a letter's place.
"""

from __future__ import annotations

import functools
from string import ascii_uppercase

import numpy as np

from nextstep.evaluate.world.network import SIDE
from nextstep.world.scenes import Background, Scene, grid_sign, render

ROWS = (0, 3, 6)
"""First rows of image tokens at which a sign can stand."""
LONGEST = 4
"""Letters at most."""
FITS = 0.04
"""Mean squared difference (values 0..1) up to which something is taken for a sign."""


def read_grid_sign(picture: np.ndarray) -> tuple[np.ndarray, str] | None:
    """The sign of a picture of an edition on the grid.

    Args:
        picture: uint8 [SIDE, SIDE, 3].

    Returns:
        Its box (left, top, right, bottom in pixels) and its letters; None where there is none.
    """
    found = []
    for row in ROWS:
        top = row * SIDE // 8
        for count in range(1, LONGEST + 1):
            left = (SIDE - count * SIDE // 4) // 2
            band = picture[top : top + SIDE // 4, left : SIDE - left].astype(np.float32) / 255
            places = np.stack(np.split(band, count, axis=1))  # [L, S, S, 3]
            apart = ((places[:, None] - _letters(count)) ** 2).mean((2, 3, 4))  # [L, 26]
            text = "".join(ascii_uppercase[place] for place in apart.argmin(1))
            box = np.array([left, top, SIDE - left, top + SIDE // 4], float)
            found.append((float(apart.min(1).max()), -count, box, text))
    fits = [one for one in found if one[0] < FITS]
    if not fits:
        return None
    # The middle letters of a long sign may pass for a short one, so the longest wins.
    _, _, box, text = min(fits, key=lambda one: (one[1], one[0]))
    return box, text


@functools.cache
def _letters(count: int) -> np.ndarray:
    """Every letter in every place of a sign, float32 [L, 26, S, S, 3], values 0..1."""
    made = []
    for letter in ascii_uppercase:
        scene = Scene(Background("white"), sign=grid_sign(letter * count, 0))
        left = (SIDE - count * SIDE // 4) // 2
        band = render(scene, SIDE)[: SIDE // 4, left : SIDE - left].astype(np.float32) / 255
        made.append(np.stack(np.split(band, count, axis=1)))
    return np.stack(made, axis=1)
