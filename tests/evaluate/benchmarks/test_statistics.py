"""Intervals and differences against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nextstep.evaluate.benchmarks.statistics import (
    Means,
    Row,
    differences,
    estimates,
    resampling_weights,
)


def rows(values: list[float], group: str = "g") -> list[Row]:
    return [Row(f"{group}{n}", group, {"x": value}) for n, value in enumerate(values)]


def mean(means: Means) -> dict[str, np.ndarray]:
    return {"mean": means.of("x")}


def test_the_interval_of_a_mean_is_that_of_the_normal_law() -> None:
    values = np.random.default_rng(0).normal(size=400)
    found = estimates(rows(values.tolist()), mean)["mean"]
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.value == pytest.approx(half, rel=0.1)
    assert found.value - found.low == pytest.approx(half, rel=0.1)


@pytest.mark.parametrize(("right", "n"), [(150, 200), (20, 40), (190, 200)])
def test_widths_are_those_of_a_share(right: int, n: int) -> None:
    found = estimates(rows([1.0] * right + [0.0] * (n - right)), mean)["mean"]
    share = right / n
    error = math.sqrt(share * (1 - share) / n)
    assert found.value == pytest.approx(share)
    assert found.low < share < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_it_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        values = (rng.random(60) < 0.7).astype(float).tolist()
        one = estimates(rows(values), mean, 400)["mean"]
        covered += one.low <= 0.7 <= one.high
    assert 0.88 <= covered / 200 <= 0.99


def test_groups_count_alike_and_are_resampled_apart() -> None:
    both = rows([1.0, 0.0], "small") + rows([0.0] * 98, "large")
    found = estimates(both, lambda m: {"groups": m.mean_of_groups("x")})["groups"]
    # Only the small group varies: its mean is 0, 1/2 or 1.
    assert (found.value, found.low, found.high) == (0.25, 0.0, 0.5)


def test_every_resample_has_the_composition_of_the_set() -> None:
    groups = ["a"] * 3 + ["b"] * 5
    weights = resampling_weights(groups, 50)
    assert weights.shape == (51, 8)
    assert (weights[0] == 1).all()
    assert (weights[:, :3].sum(1) == 3).all()
    assert (weights[:, 3:].sum(1) == 5).all()
    assert len(np.unique(weights, axis=0)) > 30


def test_groups_without_spread_have_no_interval() -> None:
    both = rows([1.0] * 4, "a") + rows([0.0] * 2, "b")
    found = estimates(both, lambda m: {"groups": m.mean_of_groups("x"), "all": m.of("x")})
    assert found["groups"].value == found["groups"].low == found["groups"].high == 0.5
    assert found["all"].value == pytest.approx(4 / 6)


def test_missing_values_are_left_out_and_none_gives_nan() -> None:
    some = [Row("a", "g", {"x": 2.0}), Row("b", "g", {}), Row("c", "g", {"x": math.nan})]
    found = estimates(some, lambda m: {"x": m.of("x"), "y": m.of("y")}, 20)
    assert found["x"].value == 2.0
    assert math.isnan(found["y"].value)
    assert found["y"].rounded() == {"value": None, "low": None, "high": None}


def test_a_constant_difference_has_no_interval_however_noisy_both_are() -> None:
    base = np.random.default_rng(1).normal(size=50)
    found = differences(rows((base + 0.25).tolist()), rows(base.tolist()), mean)["mean"]
    assert found.value == pytest.approx(0.25)
    assert (found.low, found.high) == (pytest.approx(0.25), pytest.approx(0.25))


def test_only_shared_items_are_compared() -> None:
    first = [Row("a", "g", {"x": 1.0}), Row("b", "g", {"x": 0.0})]
    second = [Row("b", "g", {"x": 1.0}), Row("c", "g", {"x": 0.0})]
    assert differences(first, second, mean)["mean"].value == -1.0
    with pytest.raises(ValueError, match="no item in common"):
        differences(first[:1], second, mean)
    with pytest.raises(ValueError, match="at least one item"):
        estimates([], mean)


def test_the_same_items_give_the_same_interval() -> None:
    values = list(np.random.default_rng(2).normal(size=20))
    assert estimates(rows(values), mean) == estimates(rows(values), mean)
