"""The result of an evaluation: a card for programs, tables for people.

Legend: R rows of a bootstrap (the set itself and its resamples).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nextstep.evaluate.benchmarks.statistics import Estimate, Means
from nextstep.evaluate.world.detector import WEIGHTS
from nextstep.evaluate.world.run import Plan
from nextstep.utils.files import read_json
from nextstep.version import __version__
from nextstep.world.tasks import TASKS

if TYPE_CHECKING:
    from rich.table import Table

    from nextstep.evaluate.benchmarks.report import Report
    from nextstep.evaluate.benchmarks.scoring import Scored

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


def group_metrics(means: Means, pairs: Sequence[tuple[str, str]]) -> dict[str, np.ndarray]:
    """Means [R] by "GROUP, SPLIT": the mean of its tasks' means, each task counting alike.

    Args:
        means: of the items, whose groups are "TASK/SPLIT".
        pairs: (task, split) that were asked.
    """
    found = {}
    for split in dict.fromkeys(split for _, split in pairs):
        for group, members in groups_of([t for t, other in pairs if other == split]).items():
            found[f"{group}, {split}"] = means.mean_of_groups(
                "score", [f"{task}/{split}" for task in members]
            )
    return found


def run_card(report: Report) -> dict[str, Any]:
    """Everything measured in a run of the world, as plain values."""
    run, metrics = report.run, report.metrics
    plan: Plan = run.items[0].record["plan"]
    by_pair: dict[str, list[Scored]] = {}
    for one in report.scored:
        by_pair.setdefault(one.item.group, []).append(one)
    tasks: dict[str, dict[str, Any]] = {}
    for pair, some in by_pair.items():
        task, _, split = pair.partition("/")
        told = {**_told(metrics[pair], len(some)), **_columns(pair, some, metrics)}
        told |= {**_seconds(some), "ceiling": ceilings().get(task, {})}
        tasks.setdefault(task, {})[split] = told
    drawn = [one for one in report.scored if _pictures(one)]
    manifest = run.manifest
    return {
        "evaluation": "emoji world",
        "version": __version__,
        "model": manifest["model"],
        "model_hash": manifest["model_hash"],
        "answers": plan.answers,
        "settings": manifest["settings"],
        "items_per_task": plan.count,
        "seed": plan.seed,
        "size": plan.size,
        "edition": plan.edition,
        "seconds_per_picture": _seconds(drawn).get("seconds_per_picture"),
        "groups": _groups(metrics, by_pair),
        "tasks": tasks,
        **comparisons(report),
    }


def _told(one: Estimate, count: int) -> dict[str, float | int]:
    """For JSON."""
    return {
        "mean": round(one.value, 4), "low": round(one.low, 4), "high": round(one.high, 4),
        "n": count,
    }  # fmt: skip


def _columns(
    pair: str, scored: Sequence[Scored], metrics: Mapping[str, Estimate]
) -> dict[str, dict[str, Any]]:
    """Means of further measures, and scores of parts, of a task in a split."""
    parts = sorted({one.measured.evidence.get("part") or "" for one in scored} - {""})
    columns = dict.fromkeys(name for one in scored for name in one.measured.values)
    return {
        "measures": {
            name: round(metrics[f"{pair}: {name}"].value, 4)
            for name in columns
            if name != "score" and name not in parts
        },
        "parts": {
            part: _told(
                metrics[f"{pair}: {part}"], sum(part in one.measured.values for one in scored)
            )
            for part in parts
        },
    }


def _pictures(one: Scored) -> int:
    return int(one.item.record["question"].pictures)


def _seconds(scored: Sequence[Scored]) -> dict[str, float]:
    """Of all answers, and of a picture where there are any."""
    pictures = sum(map(_pictures, scored))
    seconds = sum(one.measured.evidence.get("seconds", 0.0) for one in scored)
    each = {"seconds_per_picture": round(seconds / pictures, 3)} if pictures else {}
    return {**each, "seconds": round(seconds, 2)}


def _groups(
    metrics: Mapping[str, Estimate], by_pair: Mapping[str, Sequence[Scored]]
) -> dict[str, dict[str, Any]]:
    """Group -> split -> mean of its tasks' scores."""
    found: dict[str, dict[str, Any]] = {}
    for split in dict.fromkeys(pair.partition("/")[2] for pair in by_pair):
        asked = [pair.partition("/")[0] for pair in by_pair if pair.endswith(f"/{split}")]
        for group, members in groups_of(asked).items():
            count = sum(len(by_pair[f"{task}/{split}"]) for task in members)
            found.setdefault(group, {})[split] = _told(metrics[f"{group}, {split}"], count)
    return found


def comparisons(report: Report) -> dict[str, Any]:
    """The name of the first run compared with, and "all" and "TASK/SPLIT" -> difference."""
    for name, found in report.against.items():
        pairs = ["all", *dict.fromkeys(one.item.group for one in report.scored)]
        shared = report.shared[name]
        return {
            "compared_with": name,
            "differences": {
                pair: _told(found[pair], len(shared) if pair == "all" else _within(shared, pair))
                for pair in pairs
                if pair in found
            },
        }
    return {}


def _within(keys: Iterable[str], pair: str) -> int:
    return sum(key.startswith(f"{pair}/") for key in keys)


def table(told: Mapping[str, Any]) -> Table:
    """The scores of a card."""
    from rich.table import Table

    made = Table(title=f"{told['model']}: {told['items_per_task']} items of each task, in %")
    # Names are copied into the next command, so they are folded where others are cut.
    made.add_column("task", overflow="fold")
    made.add_column("split", overflow="fold")
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
    made.add_column("task/split", overflow="fold")
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
