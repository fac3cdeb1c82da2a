"""Packing: nothing lost, nothing split, little padding, the same plan every time."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextstep.data.planning import pack_window

LENGTHS = st.lists(st.integers(1, 64), max_size=60)


def mixed_lengths(count: int, seed: int) -> list[int]:
    """Text of any length, pictures with captions, edits and stories, as the nano recipes mix."""
    rng = random.Random(seed)
    kinds = [
        lambda: rng.randint(8, 200),
        lambda: 64 + rng.randint(8, 40),
        lambda: 2 * 64 + rng.randint(14, 50),
        lambda: rng.randint(2, 6) * (64 + rng.randint(10, 30)),
    ]
    return [rng.choices(kinds, (2, 6, 1, 1))[0]() for _ in range(count)]


@given(LENGTHS)
def test_every_document_once_and_no_row_too_long(lengths: list[int]) -> None:
    rows = pack_window(lengths, 64)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in row) <= 64 for row in rows)
    assert rows == sorted(sorted(row) for row in rows)
    assert rows == pack_window(list(lengths), 64)


@given(LENGTHS)
def test_no_two_rows_could_be_one(lengths: list[int]) -> None:
    used = sorted(sum(lengths[i] for i in row) for row in pack_window(lengths, 64))
    assert len(used) < 2 or used[0] + used[1] > 64


def padding_share(lengths: list[int], rows: list[list[int]], row_length: int) -> float:
    used = sum(lengths[index] for row in rows for index in row)
    return 1 - used / (row_length * len(rows))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("row_length", [1024, 2048])
def test_under_five_percent_padding_on_a_mixed_set(row_length: int, seed: int) -> None:
    lengths = mixed_lengths(512, seed)
    rows = pack_window(lengths, row_length)
    # What the emptiest row holds can wait for the next window; the others are what is trained on.
    full = sorted(rows, key=lambda row: sum(lengths[i] for i in row))[1:]
    assert padding_share(lengths, full, row_length) < 0.01
    assert padding_share(lengths, rows, row_length) < 0.05


def test_wants_documents_that_fit() -> None:
    with pytest.raises(ValueError, match="document 1 has 9 positions and a row 8; leave it out"):
        pack_window([8, 9], 8)
    with pytest.raises(ValueError, match="document 0 has 0 positions"):
        pack_window([0], 8)
    assert pack_window([], 8) == []
