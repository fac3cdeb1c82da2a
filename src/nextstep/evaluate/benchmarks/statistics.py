"""Bootstrap intervals of any metric that is a function of means, and paired differences.

Items are resampled within their group, so every resample has the set's own composition (Efron and
Tibshirani 1993, chapter 8). A resample is a row of weights, and a metric is computed on all rows at
once; the metric itself is row 0, whose weights are all 1.

Legend: R rows (the set itself and its resamples), N items.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from nextstep.data.documents import derived_seed

RESAMPLES = 2000
LEVEL = 0.95

Metrics = Callable[["Means"], Mapping[str, np.ndarray]]
"""Means -> metric -> [R]."""


@dataclass(frozen=True)
class Row:
    """What was measured on one item.

    Attributes:
        key: of the item.
        group: in which it is resampled.
        values: column -> value; an item need not have every column.
    """

    key: str
    group: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Estimate:
    """A metric with its interval.

    Attributes:
        value: on the items themselves.
        low, high: ends of the 95 % percentile interval.
    """

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        """Value and interval in the form of a number: "0.53 [0.47, 0.60]" for ".2f"."""
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"

    def __mul__(self, factor: float) -> Estimate:
        """In another unit, such as percent."""
        return Estimate(factor * self.value, factor * self.low, factor * self.high)

    def rounded(self) -> dict[str, float | None]:
        """For JSON, where NaN has no place."""
        return {k: None if np.isnan(v) else round(v, 6) for k, v in asdict(self).items()}


class Means:
    """Means of columns over items, in all resamples at once.

    Sums are kept by group and column, so a mean over many groups costs no pass over their items.

    Args:
        rows: the items.
        weights: [R, N], how often an item counts in a resample.
    """

    def __init__(self, rows: Sequence[Row], weights: np.ndarray) -> None:
        self.rows, self.weights = rows, weights
        self._places: dict[str, list[int]] = {}
        for place, row in enumerate(rows):
            self._places.setdefault(row.group, []).append(place)
        self._sums: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}

    @property
    def groups(self) -> list[str]:
        """Names of the groups in the order of their first items."""
        return list(self._places)

    def of(self, column: str, group: str | Container[str] | None = None) -> np.ndarray:
        """[R] means over the items that have the column; NaN where there is none.

        Args:
            column: name of the value.
            group: a group or several; None for all items.
        """
        members = {group} if isinstance(group, str) else group
        chosen = [name for name in self._places if members is None or name in members]
        total, count = np.zeros(len(self.weights)), np.zeros(len(self.weights))
        for name in chosen:
            one = self._sums_of(column, name)
            total, count = total + one[0], count + one[1]
        with np.errstate(invalid="ignore", divide="ignore"):
            return total / count

    def _sums_of(self, column: str, group: str) -> tuple[np.ndarray, np.ndarray]:
        """Sum [R] of a column over a group, and number [R] of its values."""
        if (column, group) not in self._sums:
            values = {p: self.rows[p].values.get(column, np.nan) for p in self._places[group]}
            there = [place for place, value in values.items() if not np.isnan(value)]
            weights = self.weights[:, there].astype(np.float64)
            kept = np.array([values[place] for place in there], np.float64)
            self._sums[column, group] = weights @ kept, weights.sum(1)
        return self._sums[column, group]

    def mean_of_groups(self, column: str, groups: Sequence[str] | None = None) -> np.ndarray:
        """[R] means of the groups' means; groups without the column are left out."""
        names = dict.fromkeys(groups if groups is not None else self.groups)
        found = [self.of(column, name) for name in names]
        return mean_of([one for one in found if not np.isnan(one[0])], len(self.weights))


def mean_of(values: Sequence[np.ndarray], rows: int) -> np.ndarray:
    """[R] mean of several [R]; NaN of none."""
    return np.mean(values, axis=0) if values else np.full(rows, np.nan)


def resampling_weights(groups: Sequence[str], resamples: int = RESAMPLES) -> np.ndarray:
    """[1 + resamples, N] weights: ones, then resamples within each group."""
    names = np.array(groups)
    weights = np.ones((1 + resamples, len(names)), np.uint16)
    for name in dict.fromkeys(groups):
        places = np.flatnonzero(names == name)
        rng = np.random.default_rng(derived_seed("resample", name, len(places)))
        shares = np.full(len(places), 1 / len(places))
        weights[1:, places] = rng.multinomial(len(places), shares, resamples)
    return weights


def estimates(
    rows: Sequence[Row], metrics: Metrics, resamples: int = RESAMPLES
) -> dict[str, Estimate]:
    """Every metric with its interval; the same for the same items every time.

    Raises:
        ValueError: when there are no items.
    """
    if not rows:
        raise ValueError("a score needs at least one item")
    weights = resampling_weights([row.group for row in rows], resamples)
    return {name: _estimate(one) for name, one in metrics(Means(rows, weights)).items()}


def differences(
    first: Sequence[Row], second: Sequence[Row], metrics: Metrics, resamples: int = RESAMPLES
) -> dict[str, Estimate]:
    """How much higher every metric is for the first, on the items that both have.

    Both are resampled together, so what is easy or hard for both cancels.

    Raises:
        ValueError: when they share no item.
    """
    others = {row.key: row for row in second}
    pairs = [(row, others[row.key]) for row in first if row.key in others]
    if not pairs:
        raise ValueError("the two have no item in common")
    mine, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    weights = resampling_weights([row.group for row in mine], resamples)
    one, other = metrics(Means(mine, weights)), metrics(Means(theirs, weights))
    return {name: _estimate(one[name] - other[name]) for name in one if name in other}


def _estimate(values: np.ndarray) -> Estimate:
    if np.isnan(values[0]):
        return Estimate(np.nan, np.nan, np.nan)
    low, high = np.nanquantile(values[1:], ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Estimate(float(values[0]), float(low), float(high))
