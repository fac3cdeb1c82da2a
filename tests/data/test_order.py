"""The order of an epoch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextstep.data.order import epoch_index, permuted


@given(st.integers(1, 600), st.integers(0, 2**63 - 1))
def test_every_order_is_a_permutation(length: int, key: int) -> None:
    assert sorted(permuted(i, length, key) for i in range(length)) == list(range(length))


@given(st.integers(1, 10**15), st.integers(0, 2**63 - 1), st.data())
def test_huge_orders_stay_inside_and_keep_places_apart(
    length: int, key: int, data: st.DataObject
) -> None:
    places = data.draw(st.lists(st.integers(0, length - 1), max_size=20, unique=True))
    found = [permuted(place, length, key) for place in places]
    assert all(0 <= index < length for index in found)
    assert len(set(found)) == len(places)


def test_orders_are_well_mixed() -> None:
    length, keys = 1000, 40
    moved = [[0] * 10 for _ in range(10)]
    for key in range(keys):
        for place in range(length):
            moved[place // 100][permuted(place, length, key) // 100] += 1
    mean = length * keys / 100
    # Counts of a fair shuffle have a standard deviation of about sqrt(mean) = 20.
    assert all(abs(cell - mean) < 5 * mean**0.5 for row in moved for cell in row)


def test_epochs_sets_and_seeds_have_orders_of_their_own() -> None:
    def order(seed: int, name: str, epoch: int) -> list[int]:
        return [epoch_index(seed, name, epoch, place, 50) for place in range(50)]

    orders = [order(0, "a", 0), order(0, "a", 1), order(0, "b", 0), order(1, "a", 0)]
    assert len({tuple(o) for o in orders}) == 4
    assert order(0, "a", 0) == orders[0]


@pytest.mark.parametrize("place", [-1, 5])
def test_places_outside_are_refused(place: int) -> None:
    with pytest.raises(ValueError, match="not within an order of 5"):
        permuted(place, 5, 0)


def test_nothing_depends_on_the_hash_seed() -> None:
    program = (
        "from nextstep.data.order import epoch_index;"
        "from nextstep.data.mixing import Mixture;"
        "S = type('S', (), {'__len__': lambda self: 9, 'name': 'a'});"
        "m = Mixture([S()], [1.0], seed=3);"
        "print([epoch_index(7, 'a', 2, i, 20) for i in range(20)], [m.draw() for _ in range(5)])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("0", "1")
    }  # fmt: skip
    assert len(outputs) == 1
