"""Boxes by pixels: where a picture differs from its background, there is something.

The detector's boxes are a pixel or two off, it may take a large object for several, and it may miss
what it does not know. What stands before a known background can be told apart without it.

Legend: H W pixels of a side, K boxes of left, top, right, bottom in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

DIFFERENCE = 26
"""How far a pixel is from its background, in any channel (0..255), to belong to something."""

CLEAR_DIFFERENCE = 48
"""The same for something that the detector does not see."""

BLOCK = 4
"""Pixels a side of the blocks in which connected objects are looked for."""

FILLED = 0.2
"""Share of a block's pixels that belong to something, for the block to do so."""

LEAST_BLOCKS = 14
"""Blocks of the smallest object that nobody else has found; the world's smallest has about 30."""

AROUND = 0.2
"""How far outside of a box its object may reach, in shares of the box's sides."""


@dataclass
class PixelGroup:
    """Connected pixels that differ from the background.

    Attributes:
        box: around all of them.
        mask: which pixels, bool [H, W].
        members: numbers of the given boxes that lie on them.
    """

    box: np.ndarray
    mask: np.ndarray
    members: list[int] = field(default_factory=list)


def foreground(picture: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """How far each pixel is from its background, the largest channel; uint8 [H, W]."""
    apart = np.abs(picture.astype(np.int16) - behind.astype(np.int16))
    found: np.ndarray = apart.max(-1).astype(np.uint8)
    return found


def groups(apart: np.ndarray, boxes: np.ndarray, least: int = DIFFERENCE) -> list[PixelGroup]:
    """What is connected, with the boxes that lie on it.

    Small pieces beside a box belong to its group, those beside none are left out, and so is a box
    with hardly anything in it.

    Args:
        apart: of `foreground`, 0 where nothing is to be looked for.
        boxes: [K, 4].
        least: how far a pixel must be from its background.
    """
    mask = apart >= least
    owner, bounds, sizes = _connected(mask)
    found = {n: PixelGroup(box, mask & (owner == n)) for n, box in enumerate(bounds)}
    for row, box in enumerate(boxes):
        left, top, right, bottom = _inside(box, apart.shape)
        here = owner[top:bottom, left:right][mask[top:bottom, left:right]]
        here = here[here >= 0]
        if len(here) >= 0.04 * max(1, (right - left) * (bottom - top)):
            found[int(np.bincount(here).argmax())].members.append(row)
    for number, group in list(found.items()):
        if group.members or sizes[number] >= LEAST_BLOCKS:
            continue
        del found[number]
        middle = (group.box[:2] + group.box[2:]) / 2
        for other in found.values():
            if any(_holds(grown(boxes[row], AROUND), middle) for row in other.members):
                other.box = _union(other.box, group.box)
                other.mask |= group.mask
                break
    return list(found.values())


def _connected(mask: np.ndarray) -> tuple[np.ndarray, list[np.ndarray], list[int]]:
    """Number of each pixel's part (-1 outside of all), the parts' boxes and sizes in blocks."""
    height, width = (side // BLOCK for side in mask.shape)
    blocks = mask[: height * BLOCK, : width * BLOCK].reshape(height, BLOCK, width, BLOCK)
    left_over = {(int(y), int(x)) for y, x in np.argwhere(blocks.mean((1, 3)) >= FILLED)}
    owner, bounds, sizes = np.full((height, width), -1), list[np.ndarray](), list[int]()
    while left_over:
        part, open_ = [], [left_over.pop()]
        while open_:
            y, x = open_.pop()
            part.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left_over
            left_over -= near
            open_ += near
        places = np.array(part)
        owner[places[:, 0], places[:, 1]] = len(bounds)
        (top, left), (bottom, right) = places.min(0) * BLOCK, (places.max(0) + 1) * BLOCK
        box = np.array([left, top, right, bottom], float)
        bounds.append(tightened(mask, box, share=0.0))
        sizes.append(len(part))
    return owner.repeat(BLOCK, 0).repeat(BLOCK, 1), bounds, sizes


def tightened(mask: np.ndarray, box: np.ndarray, share: float = AROUND) -> np.ndarray:
    """A box as the pixels in and around it fill it.

    One whose pixels fill less than a third, as where an object looks like its background, stays.

    Args:
        mask: bool [H, W], where something is.
        box: left, top, right, bottom.
        share: how far around the box, in shares of its sides.
    """
    left, top, right, bottom = _inside(grown(box, share), mask.shape)
    window = mask[top:bottom, left:right]
    down, across = (np.flatnonzero(window.sum(axis) >= 2) for axis in (1, 0))
    if not len(down) or not len(across):
        return box
    tight = np.array(
        [left + across[0], top + down[0], left + across[-1] + 1, top + down[-1] + 1], float
    )
    return tight if area(tight) >= area(box) / 3 else box


def without_others(mask: np.ndarray, boxes: np.ndarray, row: int) -> np.ndarray:
    """Where something is that does not lie in one of the other boxes, those over this one apart."""
    rest = mask.copy()
    for other in np.delete(boxes, row, axis=0):
        if shared(other, boxes[row]) < 0.1:
            left, top, right, bottom = _inside(other, mask.shape)
            rest[top:bottom, left:right] = False
    return rest


def outside(apart: np.ndarray, boxes: list[np.ndarray]) -> np.ndarray:
    """The foreground without what lies in or right beside the boxes."""
    rest = apart.copy()
    for box in boxes:
        left, top, right, bottom = _inside(grown(box, 0.1, least=3.0), apart.shape)
        rest[top:bottom, left:right] = 0
    return rest


def grown(box: np.ndarray, share: float, least: float = 0.0) -> np.ndarray:
    """A box made larger on every side."""
    wide = max(least, share * (box[2] - box[0]))
    high = max(least, share * (box[3] - box[1]))
    return np.array([box[0] - wide, box[1] - high, box[2] + wide, box[3] + high])


def area(box: np.ndarray) -> float:
    """Of a box, in pixels."""
    return float(max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1]))


def shared(a: np.ndarray, b: np.ndarray) -> float:
    """Share of the smaller of two boxes that lies in the other."""
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    both = max(0.0, float(wide)) * max(0.0, float(high))
    return both / max(1.0, min(area(a), area(b)))


def _holds(box: np.ndarray, point: np.ndarray) -> bool:
    return bool((box[:2] <= point).all() and (point <= box[2:]).all())


def _union(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.concatenate((np.minimum(a[:2], b[:2]), np.maximum(a[2:], b[2:])))


def _inside(box: np.ndarray, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """A box in whole pixels of the picture."""
    left, top = max(0, int(np.floor(box[0]))), max(0, int(np.floor(box[1])))
    right, bottom = min(shape[1], int(np.ceil(box[2]))), min(shape[0], int(np.ceil(box[3])))
    return left, top, right, bottom
