"""How sure a score is: bootstrap intervals of means and of differences over the same items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from nextstep.data.documents import derived_seed

DRAWS = 2000
"""Resamples of a bootstrap."""

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and where the bootstrap finds 95 % of its resamples (Efron 1979, percentiles).

    Attributes:
        mean: of the items.
        low, high: ends of the interval.
        n: items.
    """

    mean: float
    low: float
    high: float
    n: int

    def rounded(self) -> dict[str, float | int]:
        """For JSON."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


def interval(values: Sequence[float], draws: int = DRAWS) -> Interval:
    """The mean of items with its interval; the same for the same items every time.

    Raises:
        ValueError: when there are none.
    """
    return mean_of_means({"": values}, draws)


def mean_of_means(groups: Mapping[str, Sequence[float]], draws: int = DRAWS) -> Interval:
    """The mean of the groups' means; items are resampled within each group.

    Raises:
        ValueError: when there is no group, or an empty one.
    """
    if not groups or not all(len(values) for values in groups.values()):
        raise ValueError("a mean needs at least one item")
    means, resampled = [], np.zeros(draws)
    for name, values in groups.items():
        items = np.asarray(values, np.float64)
        rng = np.random.default_rng(derived_seed("bootstrap", name, len(items)))
        means.append(items.mean())
        resampled += items[rng.integers(0, len(items), (draws, len(items)))].mean(1)
    edges = (1 - LEVEL) / 2, (1 + LEVEL) / 2
    low, high = np.quantile(resampled / len(groups), edges)
    count = sum(len(values) for values in groups.values())
    return Interval(float(np.mean(means)), float(low), float(high), count)


def difference(
    first: Mapping[str, float], second: Mapping[str, float], draws: int = DRAWS
) -> Interval:
    """How much better the first is than the second over the items that both have.

    Raises:
        ValueError: when they share none.
    """
    shared = [key for key in first if key in second]
    if not shared:
        raise ValueError("the two have no item in common")
    return interval([first[key] - second[key] for key in shared], draws)
