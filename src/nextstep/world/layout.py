"""Where things stand: arrangements without overlap, in shares of the picture's side."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from nextstep.world.spec import BIG, REGIONS, SMALL

Place = tuple[float, float, float]
"""Centre and longest side: x, y, size."""

CELL = 0.3
"""Longest side of a thing in one of the nine places of `spec.REGIONS`."""

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
"""Count -> arrangements: the size of every thing, and the centres."""


def spread(rng: Random, count: int, jitter: float = 0.02) -> list[Place]:
    """Places for 1 to 7 things, in random order and a little out of line.

    Half of the arrangements are formations, the rest are strewn at random where there is room.
    """
    if count > 1 and rng.random() < 0.4:
        strewn = strew(rng, [rng.choice((0.3, 0.34, 0.38)) for _ in range(count)])
        if strewn is not None:
            return strewn
    size, centres = rng.choice(_FORMATIONS[count])
    size -= rng.choice((0.0, 0.0, 0.03, 0.06))
    # Jitter only where there is room for it, at the edges and between things.
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
    """Places of two things, the first left of, right of, above or below the second."""
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


def sizes_of(words: Sequence[str]) -> list[float]:
    """Sizes that "big" and "small" stand for."""
    return [{"big": BIG + 0.1, "small": SMALL - 0.09}[word] for word in words]
