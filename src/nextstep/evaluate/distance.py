"""How far two texts lie apart."""

from __future__ import annotations


def edit_distance(one: str, other: str) -> int:
    """Insertions, deletions and replacements that make one text of another (Levenshtein)."""
    row = list(range(len(other) + 1))
    for place, letter in enumerate(one, 1):
        diagonal, row[0] = row[0], place
        for column, mate in enumerate(other, 1):
            least = min(row[column] + 1, row[column - 1] + 1, diagonal + (letter != mate))
            diagonal, row[column] = row[column], least
    return row[-1]
