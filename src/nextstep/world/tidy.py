"""Scenes whose things stand on the grid of image tokens: the same picture, easier to learn.

A thing that stands anywhere and has any size falls into image tokens in ever new ways. On the
grid, in whole tokens, it is the same few tokens wherever it stands. Who draws a scene chooses its
places freely, so a model that learns from such scenes answers the same captions.
"""

from __future__ import annotations

from dataclasses import replace

from nextstep.world.scenes import Item, Scene, Sign
from nextstep.world.spec import Spec, sight_of
from nextstep.world.truth import overlaps

LARGE = 0.75
"""From this share of the side on a thing stays as it is: it has no place to choose."""
GAP = 0.25
"""Tokens that a thing is smaller than its place, so that neighbours do not touch."""


def tidy(scene: Scene, size: int, unit: int = 16, spec: Spec | None = None) -> Scene:
    """The scene on the grid.

    Args:
        scene: whose things and sign are moved and resized as little as possible.
        size: side of the picture in pixels, a multiple of `unit`.
        unit: side of an image token in pixels.
        spec: what must hold of it.

    Returns:
        The scene as it was where things would meet on the grid or the spec would not hold.
    """
    items = tuple(item if item.size >= LARGE else _item(item, size, unit) for item in scene.items)
    made = replace(scene, items=items, sign=scene.sign and _sign(scene.sign, size, unit))
    wrong = spec.failures(sight_of(made, size)) if spec is not None else []
    return scene if wrong or overlaps(made, size) else made


def _item(item: Item, size: int, unit: int) -> Item:
    count = max(1, round(item.size * size / unit))
    x, y = (_centre(place, count, size // unit) for place in (item.x, item.y))
    return replace(item, x=x, y=y, size=(count - GAP) * unit / size)


def _sign(sign: Sign, size: int, unit: int) -> Sign:
    count = max(1, round(sign.height * size / unit))
    return replace(sign, y=_centre(sign.y, count, size // unit), height=(count - GAP) * unit / size)


def _centre(place: float, count: int, tokens: int) -> float:
    """The nearest centre of so many whole tokens, all in shares of the side."""
    first = round(place * tokens - count / 2)
    return (min(max(first, 0), tokens - count) + count / 2) / tokens
