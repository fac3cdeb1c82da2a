"""Where the detector sees objects in a picture, and what it takes each of them for.

Legend: B pictures, h w places of the detector's maps; boxes are [4]: left, top, right, bottom in
pixels; pictures are uint8 [H, W, 3].
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nextstep.evaluate.world.network import (
    ANY,
    COLOUR_NAMES,
    SIGN,
    STRIDE,
    STYLE_NAMES,
    TONE_NAMES,
    labels,
)
from nextstep.evaluate.world.templates import bank
from nextstep.world.lexicon import world_objects

SURE = 0.3
"""Probability from which a place is taken for the middle of something."""

OVERLAP = 0.5
"""Boxes that share more than this are one object."""

FRAME = 4
"""Pixels of the edge of a sign in which its brown frame shows."""

Maps = dict[str, Tensor]


@dataclass(frozen=True)
class FoundObject:
    """What the detector found: how surely, box in pixels, and whether it is a sign."""

    sure: float
    box: tuple[float, float, float, float]
    is_sign: bool


def found_objects(maps: dict[str, Tensor]) -> list[list[FoundObject]]:
    """Peaks of the detector's maps, surest first, each object once; one list a picture."""
    heat = maps["centre"][:, 0].sigmoid()
    highest = torch.nn.functional.max_pool2d(heat[:, None], 3, 1, 1)[:, 0]
    found: list[list[FoundObject]] = [[] for _ in heat]
    for row, y, x in ((heat == highest) & (heat >= SURE)).nonzero().tolist():
        at = {name: values[row, :, y, x] for name, values in maps.items()}
        across, down, width, height = at["box"].tolist()
        half = [float(np.exp(min(extent, 3.0))) / 2 for extent in (width, height)]
        centre = x + 0.5 + across, y + 0.5 + down
        box = (centre[0] - half[0], centre[1] - half[1], centre[0] + half[0], centre[1] + half[1])
        left, top, right, bottom = (edge * STRIDE for edge in box)
        found[row].append(
            FoundObject(
                float(heat[row, y, x]),
                (left, top, right, bottom),
                int(at["name"].argmax()) == SIGN,
            )
        )
    return [_once(sorted(objects, key=lambda one: -one.sure)) for objects in found]


def _once(objects: list[FoundObject]) -> list[FoundObject]:
    kept: list[FoundObject] = []
    for one in objects:
        if all(_shared(one.box, other.box) <= OVERLAP for other in kept):
            kept.append(one)
    return kept


def _shared(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    if wide <= 0 or high <= 0:
        return 0.0
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return wide * high / (both - wide * high)


def looks_like_sign(picture: np.ndarray, box: np.ndarray) -> bool:
    """Whether a box holds pale paper in a brown frame.

    Args:
        picture: uint8 [SIDE, SIDE, 3].
        box: left, top, right, bottom in pixels.
    """
    left, top, right, bottom = (max(0, round(float(edge))) for edge in box)
    board = picture[top:bottom, left:right].astype(np.int32)
    if min(board.shape[:2]) < 12:
        return False
    inner = np.ones(board.shape[:2], bool)
    inner[FRAME:-FRAME, FRAME:-FRAME] = False
    red = np.median(board[inner][:, 0])
    brown = np.median(board[inner][:, 0] - board[inner][:, 2])
    pale = (board[FRAME:-FRAME, FRAME:-FRAME].min(-1) > 170).mean()
    return bool(brown > 12 and red < 215 and pale > 0.35)


def log_prior(at: dict[str, Tensor], edition: str) -> np.ndarray:
    """Log-probability of each drawing of the bank by the detector's logits at one place."""
    rows = _rows(edition)
    parts = {name: at[name].log_softmax(0).numpy() for name in ("name", "style", "colour", "tone")}
    total = parts["name"][rows[0]] + parts["style"][rows[1]] + parts["colour"][rows[2]]
    likely: np.ndarray = total + np.where(rows[3] == ANY, 0.0, parts["tone"][rows[3]])
    return likely


@functools.cache
def _rows(edition: str) -> np.ndarray:
    """Class of name, style, colour and tone of each drawing of the bank, [4, N]."""
    place = {label: number for number, label in enumerate(labels())}
    rows = [
        (
            place[one.name],
            STYLE_NAMES.index(one.style),
            COLOUR_NAMES.index(one.colour),
            TONE_NAMES.index(one.tone) if world_objects()[one.name].toned else ANY,
        )
        for one in bank(edition).drawn
    ]
    return np.array(rows).T
