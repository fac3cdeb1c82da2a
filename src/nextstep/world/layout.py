"""Where objects stand: arrangements without overlap, in shares of the picture's side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import ClassVar

from nextstep.world.scenes import FILL
from nextstep.world.spec import REGIONS, region_of

Place = tuple[float, float, float]
"""Centre and longest side: x, y, size."""

CELL = 0.3
"""Longest side of an object in one of the nine places of `spec.REGIONS`."""

_FORMATIONS: dict[int, list[tuple[float, list[tuple[float, float]]]]] = {
    1: [(0.8, [(0.5, 0.5)])],
    2: [
        (0.46, [(0.26, 0.5), (0.74, 0.5)]),
        (0.46, [(0.5, 0.26), (0.5, 0.74)]),
        (0.46, [(0.26, 0.26), (0.74, 0.74)]),
        (0.46, [(0.74, 0.26), (0.26, 0.74)]),
    ],
    3: [
        (0.3, [(0.18, 0.5), (0.5, 0.5), (0.82, 0.5)]),
        (0.42, [(0.26, 0.27), (0.74, 0.27), (0.5, 0.74)]),
        (0.42, [(0.5, 0.26), (0.26, 0.73), (0.74, 0.73)]),
        (0.3, [(0.5, 0.18), (0.5, 0.5), (0.5, 0.82)]),
    ],
    4: [
        (0.42, [(0.26, 0.26), (0.74, 0.26), (0.26, 0.74), (0.74, 0.74)]),
        (0.3, [(0.5, 0.18), (0.18, 0.5), (0.82, 0.5), (0.5, 0.82)]),
        (0.3, [(0.18, 0.74), (0.5, 0.74), (0.82, 0.74), (0.5, 0.28)]),
    ],
    5: [
        (0.3, [(0.2, 0.2), (0.8, 0.2), (0.5, 0.5), (0.2, 0.8), (0.8, 0.8)]),
        (0.3, [(0.3, 0.28), (0.7, 0.28), (0.18, 0.72), (0.5, 0.72), (0.82, 0.72)]),
    ],
    6: [(0.3, [(x, y) for y in (0.28, 0.72) for x in (0.18, 0.5, 0.82)])],
    7: [
        (0.28, [(0.3, 0.17), (0.7, 0.17), (0.17, 0.5), (0.5, 0.5), (0.83, 0.5), (0.3, 0.83),
                (0.7, 0.83)]),
    ],
}  # fmt: skip
"""Count -> arrangements: the size of every object, and the centres."""


def spread(rng: Random, count: int, jitter: float = 0.02) -> list[Place]:
    """Places for 1 to 7 objects, in random order and a little out of line.

    Half of the arrangements are formations, the rest are strewn at random where there is room.
    """
    if count > 1 and rng.random() < 0.4:
        strewn = strew(rng, [rng.choice((0.3, 0.34, 0.38)) for _ in range(count)])
        if strewn is not None:
            return strewn
    size, centres = rng.choice(_FORMATIONS[count])
    size -= rng.choice((0.0, 0.0, 0.03, 0.06))
    # Jitter only where there is room for it, at the edges and between objects.
    edge = 0.5 - size / 2 - max(abs(c - 0.5) for xy in centres for c in xy)
    gaps = [_distance(a, b) - size for i, a in enumerate(centres) for b in centres[:i]]
    jitter = max(0.0, min(jitter, edge, *(gap / 2 for gap in gaps)))
    places = [
        (x + rng.uniform(-jitter, jitter), y + rng.uniform(-jitter, jitter), size)
        for x, y in centres
    ]
    rng.shuffle(places)
    return places


def strew(
    rng: Random, sizes: Sequence[float], taken: Sequence[Place] = (), gap: float = 0.03
) -> list[Place] | None:
    """Random places that touch neither each other nor `taken`; None when no room was found."""
    for _ in range(12):
        places: list[Place] = []
        for size in sizes:
            for _ in range(30):
                x, y = (rng.uniform(size / 2 + 0.01, 0.99 - size / 2) for _ in range(2))
                if all(_apart((x, y, size), other, gap) for other in (*taken, *places)):
                    places.append((x, y, size))
                    break
            else:
                break
        if len(places) == len(sizes):
            return places
    return None


def _apart(a: Place, b: Place, gap: float) -> bool:
    return _distance(a[:2], b[:2]) >= (a[2] + b[2]) / 2 + gap


def _distance(a: tuple[float, float], b: tuple[float, float]) -> float:
    return max(abs(a[0] - b[0]), abs(a[1] - b[1]))


def related(rng: Random, kind: str) -> tuple[Place, Place]:
    """Places of two objects, the first left of, right of, above or below the second."""
    size = rng.choice((0.34, 0.38, 0.42, 0.46))
    near = 0.5 - (size / 2 + 0.02 + rng.uniform(0, max(0.0, 0.22 - size / 2)))
    along = 0.5 - near, 0.5 + near
    across = 0.5 + rng.uniform(-0.08, 0.08)
    first, second = along if kind in ("left of", "above") else along[::-1]
    if kind in ("left of", "right of"):
        return (first, across, size), (second, across, size)
    return (across, first, size), (across, second, size)


def cells(rng: Random, count: int) -> list[str]:
    """Names of different ones of the nine places."""
    return rng.sample(list(REGIONS), count)


def in_cell(name: str) -> Place:
    """The place in the middle of one of the nine."""
    return (*REGIONS[name], CELL)


def beside(cell: str, kind: str) -> str | None:
    """The neighbour of a cell that is left of, right of, above or below it; None outside."""
    names = list(REGIONS)
    row, column = divmod(names.index(cell), 3)
    step = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}[kind]
    row, column = row + step[0], column + step[1]
    return names[row * 3 + column] if 0 <= row < 3 and 0 <= column < 3 else None


class FreeLayout:
    """Arrangements of scenes whose objects stand anywhere and have any size.

    Args:
        rng: draws them.
    """

    usual = CELL
    """Longest side of an object in one of the nine places."""
    small = 0.2
    """The same of one that has shrunk."""
    sizes: ClassVar[dict[str, float]] = {"big": 0.52, "small": 0.24}
    """Longest sides that the words of a caption stand for."""
    roles: ClassVar[dict[str, Place]] = {
        "sky": (0.5, 0.19, 0.3), "find": (0.5, 0.78, 0.24), "hero": (0.19, 0.68, 0.34),
        "friend": (0.81, 0.68, 0.34),
    }  # fmt: skip
    """Part in a story -> its place; objects are drawn in this order."""
    hero_sizes: ClassVar[dict[str, Place]] = {
        "big": (0.27, 0.6, 0.5), "small": (0.19, 0.75, 0.2), "normal": roles["hero"],
    }  # fmt: skip
    """Where the hero of a story stands when grown, shrunk, or as usual."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng

    def single(self) -> Place:
        """The place of an object alone: mostly as large as can be, else smaller and anywhere."""
        if self.rng.random() < 0.6:
            return 0.5, 0.5, FILL
        size = self.rng.choice((0.5, 0.58, 0.66, 0.74))
        x, y = (0.5 + self.rng.uniform(-1, 1) * (FILL - size) / 2 for _ in range(2))
        return x, y, size

    def spread(self, count: int) -> list[Place]:
        """Places for 1 to 7 objects; see `spread`."""
        return spread(self.rng, count)

    def strew(self, sizes: Sequence[float]) -> list[Place] | None:
        """Random places for objects of these sizes; None when no room was found."""
        return strew(self.rng, sizes)

    def related(self, kind: str) -> tuple[Place, Place]:
        """Places of two objects in a relation; see `related`."""
        return related(self.rng, kind)

    def cells(self, count: int) -> list[str]:
        """Names of different ones of the nine places."""
        return cells(self.rng, count)

    def in_cell(self, name: str, size: float | None = None) -> Place:
        """The middle of one of the nine places, for an object of this size."""
        return (*REGIONS[name], size or CELL)

    def free_cells(self, items: Sequence[Place], mover: int | None = None) -> list[str]:
        """Which of the nine places are empty, so that an object can go there.

        Args:
            items: what stands in such places.
            mover: the one of them that will go; its own place is not free.
        """
        del mover
        taken = {region_of(x, y) for x, y, _ in items}
        return [name for name in REGIONS if name not in taken]


class GridLayout(FreeLayout):
    """Arrangements on the grid of image tokens, a picture being eight of them wide and high.

    An object alone fills the picture; of several each takes four by four tokens, a small one three
    by three, beginning at token 0, 2 or 4 of a row and a column. What is not asked for is not drawn
    by lot: two objects stand side by side, three have the third below, four stand in the corners.
    """

    tokens = 8
    usual = 60 / 128
    small = 44 / 128
    sizes: ClassVar[dict[str, float]] = {"big": usual, "small": small}
    roles: ClassVar[dict[str, Place]] = {
        "sky": (0.25, 0.25, usual), "find": (0.75, 0.25, usual),
        "hero": (0.25, 0.75, usual), "friend": (0.75, 0.75, usual),
    }  # fmt: skip
    hero_sizes: ClassVar[dict[str, Place]] = {
        "small": (6 / 32, 22 / 32, small), "normal": roles["hero"],
    }  # fmt: skip
    formations: ClassVar[dict[int, tuple[str, ...]]] = {
        2: ("left", "right"), 3: ("top left", "top right", "bottom"),
        4: ("top left", "top right", "bottom left", "bottom right"),
    }  # fmt: skip
    """Count -> places of objects in the order in which they are named."""

    def single(self) -> Place:
        """The place of an object alone: all of the picture."""
        return 0.5, 0.5, FILL

    def spread(self, count: int) -> list[Place]:
        """Places for 1 to 4 objects, always the same."""
        if count == 1:
            return [(0.5, 0.5, FILL)]
        return [self.in_cell(name) for name in self.formations[count]]

    def strew(self, sizes: Sequence[float]) -> list[Place] | None:
        """Places for objects of these sizes, side by side."""
        names = self.cells(1) if len(sizes) == 1 else self.formations[len(sizes)]
        return [self.in_cell(name, size) for name, size in zip(names, sizes, strict=True)]

    def related(self, kind: str) -> tuple[Place, Place]:
        """Places of two objects in a relation, always the same."""
        first, second = {
            "left of": ("left", "right"), "right of": ("right", "left"),
            "above": ("top", "bottom"), "below": ("bottom", "top"),
        }[kind]  # fmt: skip
        return self.in_cell(first), self.in_cell(second)

    def cells(self, count: int) -> list[str]:
        """Names of places that do not meet."""
        while True:
            names = cells(self.rng, count)
            if all(_apart_cells(a, b) for i, a in enumerate(names) for b in names[:i]):
                return names

    def in_cell(self, name: str, size: float | None = None) -> Place:
        """One of the nine places, for an object of this size."""
        row, column = divmod(list(REGIONS).index(name), 3)
        side = size or self.usual
        half = math.ceil(side * self.tokens) / 2
        return (2 * column + half) / self.tokens, (2 * row + half) / self.tokens, side

    def free_cells(self, items: Sequence[Place], mover: int | None = None) -> list[str]:
        """Which of the nine places meet none of the objects but the mover."""
        stay = [region_of(x, y) for n, (x, y, _) in enumerate(items) if n != mover]
        own = None if mover is None else region_of(*items[mover][:2])
        return [
            name
            for name in REGIONS
            if name != own and all(_apart_cells(name, other) for other in stay)
        ]


def _apart_cells(a: str, b: str) -> bool:
    """Whether blocks of four by four tokens in two of the nine places do not meet."""
    names = list(REGIONS)
    one, two = divmod(names.index(a), 3), divmod(names.index(b), 3)
    return max(abs(one[0] - two[0]), abs(one[1] - two[1])) == 2
