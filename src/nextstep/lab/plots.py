"""Parts of plots that studies share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from nextstep.evaluate.benchmarks.statistics import Estimate


def with_intervals(
    axes: Axes, x: Sequence[float], found: Sequence[Estimate], label: str, colour: str
) -> None:
    """A line through estimates with bars to the ends of their intervals."""
    values = [one.value for one in found]
    below = [one.value - one.low for one in found]
    above = [one.high - one.value for one in found]
    axes.errorbar(x, values, yerr=[below, above], label=label, color=colour, marker="o", capsize=3)


def colours(count: int) -> list[str]:
    """As many colours that can be told apart, also by the colour-blind (Okabe and Ito 2008)."""
    known = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
    return [known[place % len(known)] for place in range(count)]
