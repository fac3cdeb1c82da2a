"""Explicit multistep rules as tables of numbers, which can be fitted to a model.

A rule of S steps asks for one velocity a step, v_0 at t_0 = 0 and so on, and goes on by

    x_(k+1) = x_k + sum over j <= k of c_kj v_j,    sum over j of c_kj = t_(k+1) - t_k,    t_S = 1,

so a constant velocity is integrated exactly whatever the numbers are. Its table holds t_1 to
t_(S-1) and then, row by row, c_kj for j < k; c_kk follows from the sum. (S4S, arXiv 2502.17423,
fits such rules to a solution of many steps; so does arXiv 2505.21114.)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from itertools import pairwise

from nextstep.errors import NextStepError
from nextstep.flow.path import uniform_grid

Table = tuple[float, ...]
MAX_STEPS = 256
"""Steps of a rule at most: its numbers grow with their square."""
LEAST_TOKENS = 20
"""Tokens that a rule is fitted to, of which a fifth is kept for judging."""
MOST_FITTED = 16
"""Steps of a fitted rule; more need no fit."""


def table_length(steps: int) -> int:
    """Numbers in a table of so many steps."""
    return (steps - 1) * (steps + 2) // 2


def steps_of(table: Sequence[float]) -> int:
    """Steps of a table.

    Raises:
        ValueError: when no number of steps has such a table.
    """
    # The positive root of table_length(steps) = len(table).
    steps = (math.isqrt(8 * len(table) + 9) - 1) // 2
    if steps < 2 or table_length(steps) != len(table):
        raise ValueError(f"a multistep rule cannot have a table of {len(table)} numbers")
    return steps


def check_table(table: Sequence[float], steps: int) -> None:
    """Refuse a table that is no rule.

    Raises:
        ValueError: when its length is not that of `steps`, a number is not finite, or its times do
            not rise between 0 and 1.
    """
    if steps_of(table) != steps:
        raise ValueError(f"the table of the solver has {steps_of(table)} steps, not {steps}")
    times = [0.0, *table[: steps - 1], 1.0]
    rising = all(before < after for before, after in pairwise(times))
    if not rising or not all(math.isfinite(number) for number in table):
        raise ValueError("the table of the solver needs rising times and finite numbers")


@functools.lru_cache(maxsize=64)
def adams_bashforth(steps: int, shift: float = 1.0) -> Table:
    """The table of second order on a shifted grid, begun by a step of Euler's."""
    times = uniform_grid(steps, shift)
    rows: list[float] = []
    for k in range(1, steps):
        dt, before = times[k + 1] - times[k], times[k] - times[k - 1]
        # Only the previous velocity counts; the current one follows from the sum of the row.
        rows += [*[0.0] * (k - 1), -dt * dt / (2 * before)]
    return (*times[1:-1], *rows)


@functools.lru_cache(maxsize=64)
def rule(table: Table, steps: int) -> tuple[list[float], list[list[float]]]:
    """(times t_0 .. t_(S-1), rows c_k0 .. c_kk) of a table; one step has no table."""
    times = [0.0, *table[: steps - 1], 1.0]
    rows, place = [], steps - 1
    for k in range(steps):
        before = list(table[place : place + k])
        place += k
        # A row adds up to its step, so a constant velocity is integrated exactly.
        rows.append([*before, times[k + 1] - times[k] - sum(before)])
    return times[:-1], rows


def check_fit(steps: int, tokens: int) -> None:
    """Refuse a fit that makes no sense, before any work is done.

    Raises:
        NextStepError: for fewer than 2 or more than `MOST_FITTED` steps, or fewer tokens than
            `LEAST_TOKENS`.
    """
    if not 2 <= steps <= MOST_FITTED:
        raise NextStepError(f"a solver of 2 to {MOST_FITTED} steps can be fitted, not of {steps}")
    if tokens < LEAST_TOKENS:
        raise NextStepError(
            f"{tokens} tokens are too few to fit a solver to; draw at least {LEAST_TOKENS}"
        )
