"""Intervals against what is known of means."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nextstep.evaluate.world.statistics import difference, interval, mean_of_means


@pytest.mark.parametrize(("right", "n"), [(150, 200), (20, 40), (190, 200)])
def test_widths_are_those_of_a_share(right: int, n: int) -> None:
    found = interval([1.0] * right + [0.0] * (n - right))
    share = right / n
    error = math.sqrt(share * (1 - share) / n)
    assert found.mean == pytest.approx(share)
    assert found.low < share < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert found.n == n


def test_it_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        one = interval((rng.random(60) < 0.7).astype(float), draws=400)
        covered += one.low <= 0.7 <= one.high
    assert 0.88 <= covered / 200 <= 0.99


def test_equal_items_leave_no_doubt_and_draws_repeat() -> None:
    assert (interval([0.5] * 9).low, interval([0.5] * 9).high) == (0.5, 0.5)
    values = np.random.default_rng(1).random(30)
    assert interval(values) == interval(values)
    with pytest.raises(ValueError, match="at least one"):
        interval([])


def test_groups_count_alike_and_are_resampled_apart() -> None:
    groups = {"small": [1.0, 0.0], "large": [0.0] * 98}
    found = mean_of_means(groups)
    assert found.mean == 0.25
    assert found.n == 100
    # Only the small group varies: its mean is 0, 1/2 or 1.
    assert (found.low, found.high) == (0.0, 0.5)


def test_differences_are_paired() -> None:
    rng = np.random.default_rng(2)
    hard = {f"k{i}": float(v) for i, v in enumerate(rng.random(80))}
    better = {key: value + 0.01 for key, value in hard.items()}
    found = difference(better, hard)
    # Items differ far more than the two do, and still the difference is certain.
    assert found.low == pytest.approx(0.01)
    assert found.high == pytest.approx(0.01)
    assert difference({"a": 1.0, "b": 0.0}, {"a": 0.0}).n == 1
    with pytest.raises(ValueError, match="no item in common"):
        difference({"a": 1.0}, {"b": 1.0})
