"""The result of an evaluation: a card for programs, tables for people."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nextstep.evaluate.world.detector import WEIGHTS
from nextstep.evaluate.world.run import Results
from nextstep.evaluate.world.scoring import Verdict
from nextstep.evaluate.world.statistics import difference, interval, mean_of_means
from nextstep.utils.files import read_json
from nextstep.version import __version__
from nextstep.world.tasks import TASKS

if TYPE_CHECKING:
    from rich.table import Table

CEILINGS = WEIGHTS.with_name("ceilings.json")
"""What the truth itself scores, measured when the scorer was made."""

SIX = ("single", "two_objects", "counting", "colours", "position", "attributes")
"""Tasks of drawing whose mean is told besides that of the whole group."""

LOWEST_CEILING = 0.97
"""A ceiling below this stands out in the table."""


def groups_of(tasks: Sequence[str]) -> dict[str, list[str]]:
    """Group -> those of its tasks that were asked, and the six of drawing where all were."""
    found: dict[str, list[str]] = {}
    for task in tasks:
        found.setdefault(TASKS[task].group, []).append(task)
    if all(task in tasks for task in SIX):
        found["first six of drawing"] = list(SIX)
    return found


@functools.cache
def ceilings() -> dict[str, dict[str, float]]:
    """Task -> {"drawn", "decoded"}: scores of the truth as drawn and through nano's tokenizer."""
    return read_json(CEILINGS)["tasks"] if CEILINGS.exists() else {}


def card(results: Results, about: Mapping[str, Any]) -> dict[str, Any]:
    """Everything measured, as plain values.

    Args:
        results: of the evaluation.
        about: who answered and how: model, hash, settings.
    """
    plan = results.plan
    tasks: dict[str, dict[str, Any]] = {}
    for (task, split), tally in results.tallies.items():
        told: dict[str, Any] = dict(interval([v.score for v in tally.verdicts]).rounded())
        told |= {"measures": _means(tally.verdicts), "parts": _parts(tally.verdicts)}
        if tally.pictures:
            told["seconds_per_picture"] = round(tally.seconds / tally.pictures, 3)
        told["seconds"] = round(tally.seconds, 2)
        told["ceiling"] = ceilings().get(task, {})
        tasks.setdefault(task, {})[split] = told
    pictures = sum(tally.pictures for tally in results.tallies.values())
    drawing = sum(t.seconds for t in results.tallies.values() if t.pictures)
    return {
        "evaluation": "emoji world",
        "version": __version__,
        **about,
        "items_per_task": plan.count,
        "seed": plan.seed,
        "size": plan.size,
        "edition": plan.edition,
        "seconds_per_picture": round(drawing / pictures, 3) if pictures else None,
        "groups": group_means(results),
        "tasks": tasks,
    }


def group_means(results: Results) -> dict[str, dict[str, Any]]:
    """Group -> split -> mean of its tasks' scores, each task counting alike."""
    found: dict[str, dict[str, Any]] = {}
    for split in dict.fromkeys(split for _, split in results.tallies):
        tasks = [task for task, other in results.tallies if other == split]
        for group, members in groups_of(tasks).items():
            scores = {t: [v.score for v in results.tallies[t, split].verdicts] for t in members}
            found.setdefault(group, {})[split] = mean_of_means(scores).rounded()
    return found


def _means(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Mean of every further measure over the items that have it."""
    names = dict.fromkeys(name for verdict in verdicts for name in verdict.measures)
    return {
        name: round(float(np.mean([v.measures[name] for v in verdicts if name in v.measures])), 4)
        for name in names
    }


def _parts(verdicts: Sequence[Verdict]) -> dict[str, dict[str, float | int]]:
    parts = sorted({verdict.part for verdict in verdicts if verdict.part})
    return {
        part: interval([v.score for v in verdicts if v.part == part]).rounded() for part in parts
    }


def comparison(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, Any]:
    """By how much the first is better than the second on the items that both answered.

    Args:
        first, second: key of an item -> score.

    Returns:
        "all" and every "TASK/SPLIT" -> the mean difference with its interval.
    """
    found = {"all": difference(first, second).rounded()}
    for pair in dict.fromkeys(key.rsplit("/", 1)[0] for key in first if key in second):
        mine = {key: score for key, score in first.items() if key.rsplit("/", 1)[0] == pair}
        found[pair] = difference(mine, second).rounded()
    return found


def table(told: Mapping[str, Any]) -> Table:
    """The scores of a card."""
    from rich.table import Table

    made = Table(title=f"{told['model']}: {told['items_per_task']} items of each task, in %")
    made.add_column("task")
    made.add_column("split")
    for name in ("score", "95 %", "ceiling drawn / decoded", "s/picture"):
        made.add_column(name, justify="right")
    for task, splits in told["tasks"].items():
        for split, one in splits.items():
            seconds = one.get("seconds_per_picture")
            made.add_row(
                task, split, *_figures(one), _ceiling(one["ceiling"]),
                "" if seconds is None else f"{seconds:.2f}",
            )  # fmt: skip
            for part, figures in one["parts"].items():
                made.add_row(f"  {part}", split, *_figures(figures), "", "")
    made.add_section()
    for group, splits in told["groups"].items():
        for split, one in splits.items():
            made.add_row(f"[bold]{group}[/]", split, *_figures(one), "", "")
    return made


def comparison_table(told: Mapping[str, Any], first: str, second: str) -> Table:
    """The differences of a comparison."""
    from rich.table import Table

    made = Table(title=f"{first} against {second}: difference on the same items, in points")
    made.add_column("task/split")
    for name in ("difference", "95 %", "items"):
        made.add_column(name, justify="right")
    for pair, one in told.items():
        low, high = one["low"] * 100, one["high"] * 100
        clear = "bold" if low > 0 or high < 0 else "none"
        made.add_row(
            pair, f"[{clear}]{one['mean'] * 100:+.1f}[/]", f"{low:+.1f} to {high:+.1f}",
            str(one["n"]),
        )  # fmt: skip
    return made


def _figures(one: Mapping[str, Any]) -> tuple[str, str]:
    return f"{one['mean'] * 100:.1f}", f"{one['low'] * 100:.0f} to {one['high'] * 100:.0f}"


def _ceiling(ceiling: Mapping[str, float]) -> str:
    if not ceiling:
        return "not measured"
    return " / ".join(
        f"[yellow]{share * 100:.0f}[/]" if share < LOWEST_CEILING else f"{share * 100:.0f}"
        for share in (ceiling["drawn"], ceiling["decoded"])
    )
