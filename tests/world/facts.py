"""Exact facts about scenes: who is seen how much, and whether boxes meet."""

from __future__ import annotations

import numpy as np

from nextstep.world.scenes import Scene


def visible_shares(scene: Scene, size: int = 128) -> list[float]:
    """How much of each item can be seen, 0..1: not covered, and inside the picture."""
    covered = np.zeros((size, size), bool)
    if scene.sign is not None:
        _cover(covered, scene.sign.box(size), np.asarray(scene.sign.picture(size)))
    shares = []
    for item in reversed(scene.items):
        pixels = np.asarray(item.sprite(size))
        whole = int((pixels[..., 3] >= 128).sum())
        before = covered.copy()
        inside = _cover(covered, item.box(size), pixels)
        shares.append(float((inside & ~before).sum()) / max(whole, 1))
    return shares[::-1]


def _cover(covered: np.ndarray, box: tuple[int, int, int, int], pixels: np.ndarray) -> np.ndarray:
    """Mark a drawing's pixels as covered; returns where it lies, bool [size, size]."""
    size = len(covered)
    here = np.zeros_like(covered)
    left, top = max(0, box[0]), max(0, box[1])
    right, bottom = min(size, box[2]), min(size, box[3])
    if right > left and bottom > top:
        cut = pixels[top - box[1] : bottom - box[1], left - box[0] : right - box[0], 3]
        here[top:bottom, left:right] = cut >= 128
    covered |= here
    return here


def overlaps(scene: Scene, size: int = 128) -> bool:
    """Whether two boxes of items or sign meet, or one leaves the picture."""
    boxes = [item.box(size) for item in scene.items]
    if scene.sign is not None:
        boxes.append(scene.sign.box(size))
    if any(min(box) < 0 or max(box) > size for box in boxes):
        return True
    return any(
        a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
        for i, a in enumerate(boxes)
        for b in boxes[:i]
    )
