"""Which documents share a row: best-fit decreasing, no document split."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack_window(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Put documents into as few rows as best-fit decreasing finds.

    The longest document goes first, and each one into the row that it fills best. So a plan needs
    nothing but lengths, and the same lengths always give the same plan.

    Args:
        lengths: positions of each document, at least 1.
        row_length: positions of a row.

    Returns:
        Rows of indices into `lengths`; every index once. Indices rise inside a row, and rows stand
        in the order of their first index, so that a row's place says nothing about lengths.

    Raises:
        ValueError: when a document is empty or longer than a row.
    """
    for index, length in enumerate(lengths):
        if not 0 < length <= row_length:
            raise ValueError(
                f"document {index} has {length} positions and a row {row_length}; "
                "leave it out or make the rows longer"
            )
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free positions, row), ascending
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        place = bisect_left(room, (length, -1))
        if place == len(room):
            free, row = row_length, len(rows)
            rows.append([])
        else:
            free, row = room.pop(place)
        rows[row].append(index)
        if free > length:
            insort(room, (free - length, row))
    return sorted(sorted(row) for row in rows)


def padding_share(lengths: Sequence[int], rows: Sequence[Sequence[int]], row_length: int) -> float:
    """Share of the rows' positions that hold no document."""
    used = sum(lengths[index] for row in rows for index in row)
    return 1 - used / (row_length * len(rows)) if rows else 0.0
