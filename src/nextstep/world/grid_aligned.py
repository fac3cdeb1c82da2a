"""Scenes whose things stand on the grid of image tokens in few sizes: easier to learn.

A thing that stands anywhere and has any size falls into image tokens in ever new ways. On the
grid, in whole tokens and one of few sizes, it is the same few tokens wherever it stands. Who draws
a scene chooses places and sizes that nobody asked for freely, so a model that learns from such
scenes answers the same captions.
"""

from __future__ import annotations

from dataclasses import replace

from nextstep.world.scenes import FILL, Item, Scene, Sign
from nextstep.world.spec import Spec, sight_of
from nextstep.world.truth import overlaps

GAP = 0.25
"""Tokens that a thing is smaller than its place, so that neighbours do not touch."""
_STAYS_SMALL = 0.28

_Cells = tuple[int, int, int]
"""First column, first row, columns and rows of a place on the grid."""


def tidy(scene: Scene, size: int, unit: int = 16, spec: Spec | None = None) -> Scene:
    """The scene on the grid, its things as large as there is room for.

    A thing alone becomes as large as a single drawing, and of several each takes half of the side
    or, where that does not fit or is not what was asked, three eighths; the rest keep about their
    sizes. Nothing moves farther than it must.

    Args:
        scene: whose things and sign are arranged anew.
        size: side of the picture in pixels, a multiple of `unit`.
        unit: side of an image token in pixels.
        spec: what must hold of it.

    Returns:
        The scene as it was where things would meet on the grid or the spec would not hold.
    """
    tokens = size // unit
    sign = scene.sign and _sign(scene.sign, size, unit)
    alone = len(scene.items) == 1 and sign is None
    arranged = [[replace(scene.items[0], x=0.5, y=0.5, size=FILL)]] if alone else []
    for most in (round(tokens / 2), round(tokens * 3 / 8), None):
        arranged.append(_on_grid(scene.items, tokens, most))
    for items in arranged:
        made = replace(scene, items=tuple(items), sign=sign)
        wrong = spec.failures(sight_of(made, size)) if spec is not None else []
        if len(items) == len(scene.items) and not wrong and not overlaps(made, size):
            return made
    return scene


def _on_grid(items: tuple[Item, ...], tokens: int, most: int | None) -> list[Item]:
    """The things, each at the free place nearest to its own; fewer when there is no room.

    Args:
        items: from back to front.
        tokens: of a row.
        most: tokens of a side that all but small things take, None for about their own.
    """
    taken: list[_Cells] = []
    made: list[Item] = []
    for item in items:
        count = max(1, round(item.size * tokens))
        if most is not None and item.size > _STAYS_SMALL:
            count = most
        ends = range(tokens - count + 1)
        free = [
            (x, y, count)
            for y in ends
            for x in ends
            if all(_apart((x, y, count), other) for other in taken)
        ]
        if not free:
            return made
        x, y, _ = place = min(free, key=lambda cells: _distance(item, cells, tokens))
        taken.append(place)
        centre = (x + count / 2) / tokens, (y + count / 2) / tokens
        made.append(replace(item, x=centre[0], y=centre[1], size=(count - GAP) / tokens))
    return made


def _apart(a: _Cells, b: _Cells) -> bool:
    return any(a[i] + a[2] <= b[i] or b[i] + b[2] <= a[i] for i in (0, 1))


def _distance(item: Item, cells: _Cells, tokens: int) -> float:
    x, y, count = cells
    return abs(x + count / 2 - item.x * tokens) + abs(y + count / 2 - item.y * tokens)


def _sign(sign: Sign, size: int, unit: int) -> Sign:
    tokens = size // unit
    count = max(1, round(sign.height * tokens))
    first = min(max(round(sign.y * tokens - count / 2), 0), tokens - count)
    return replace(sign, y=(first + count / 2) / tokens, height=(count - GAP) / tokens)
