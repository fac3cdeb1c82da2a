"""Running a study: print the cost, train and measure every unit, conclude.

    OUTPUT/study.json                    what is run
    OUTPUT/ARM/seed-N/run/               training run of a unit
    OUTPUT/ARM/seed-N/measured.json      what was found of it
    OUTPUT/figures.csv, *.csv, *.webp    see `report`
    OUTPUT/card.md

A study that was stopped goes on where it was. Several processes may work in one folder: each takes
units that no other has, so that every core of a machine can have a process of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nextstep.errors import NextStepError
from nextstep.lab.report import write_report
from nextstep.lab.study import (
    Arm,
    Conclusion,
    MeasuredUnit,
    Scale,
    Study,
    StudyCost,
    StudyResults,
    StudyUnit,
)
from nextstep.utils.files import lock_folder, read_json, write_json

PLAN, MEASURED = "study.json", "measured.json"
WAIT = 20.0
"""Seconds until what other processes have is looked at again."""
NANO_POSITIONS = 2_300
"""Positions of the nano shape that one core with AMX trains on in a second (docs/log.md)."""
NANO_FLOPS = 8.39e7
"""Operations of one such position, forward and backward, in the shares of recipes/core-nano.yaml;
a test reckons it anew."""
PICTURES = 12.0
"""Pictures of 128 pixels that one core draws in a second in batches, guidance included."""


def units(study: Study, scale: Scale, root: Path) -> list[StudyUnit]:
    """All units, seed by seed, so that every arm has one seed before any has two."""
    arms = study.arms(scale)
    return [StudyUnit(arm, seed, root, scale) for seed in range(scale.seeds) for arm in arms]


def seconds(cost: StudyCost) -> float:
    """What a unit takes on one core with AMX, measuring included."""
    training = cost.flops / (NANO_POSITIONS * NANO_FLOPS)
    return training + cost.pictures / PICTURES + cost.seconds


def costs(study: Study, scale: Scale) -> list[tuple[Arm, StudyCost]]:
    """What a unit of every arm takes."""
    return [(arm, study.cost(arm, scale)) for arm in study.arms(scale)]


def total_hours(study: Study, scale: Scale) -> float:
    """Hours of one core for all units."""
    return sum(seconds(cost) for _, cost in costs(study, scale)) * scale.seeds / 3600


def run_study(
    study: Study, root: Path, scale: Scale, on_unit: Callable[[str, StudyUnit], None] | None = None
) -> Conclusion | None:
    """Run what is not done yet of a study, and write its report when all is there.

    Args:
        study: which one.
        root: folder of the study.
        scale: how large.
        on_unit: told "train", "measure" or "done" and the unit that it is about.

    Returns:
        None when the training of a unit was stopped.

    Raises:
        NextStepError: when the folder holds another study, or the same at another scale.
    """
    if scale.seeds < 1 or scale.items < 1:
        raise NextStepError("a study has at least one seed and one item of each task")
    _claim(study, root, scale)
    told = on_unit or (lambda _, __: None)
    asked = units(study, scale, root)
    while missing := [unit for unit in asked if not (unit.folder / MEASURED).exists()]:
        ends = []
        for unit in missing:
            ends.append(_run_unit(study, unit, told))
            if ends[-1] == "stopped":
                return None
        if "done" not in ends:
            time.sleep(WAIT)  # another process has all that is left
    found = {(u.arm.name, u.seed): read_measured(u.folder / MEASURED) for u in asked}
    results = StudyResults(study.arms(scale), found, scale, root)
    conclusion = study.conclude(results)
    write_report(study, results, conclusion, root)
    return conclusion


def _claim(study: Study, root: Path, scale: Scale) -> None:
    """Make the folder, or take up one of the same study and scale."""
    asked = {"study": study.name, **asdict(scale), "changes": list(scale.changes)}
    plan = root / PLAN
    if not plan.exists():
        if root.exists() and any(root.iterdir()):
            raise NextStepError(f"{root} exists already; choose another folder")
        root.mkdir(parents=True, exist_ok=True)
        write_json(plan, asked)
        return
    before = read_json(plan)
    differs = [name for name in asked if name != "seeds" and before.get(name) != asked[name]]
    if differs:
        raise NextStepError(
            f"{root} holds a study with another {differs[0]} ({before.get(differs[0])}); choose "
            "another folder"
        )
    if before["seeds"] != scale.seeds:  # more seeds may be added to a study
        write_json(plan, asked)


def _run_unit(study: Study, unit: StudyUnit, told: Callable[[str, StudyUnit], None]) -> str:
    """Train and measure one unit unless another process is at it or at what it needs.

    Returns:
        "done", "busy", or "stopped" when its training was ended from outside.
    """
    path = unit.folder / MEASURED
    needs = unit.arm.needs
    if needs and not (unit.beside(needs).parent / MEASURED).exists():
        return "busy"
    with _held(unit.folder) as free:
        if not free:
            return "busy"
        if not path.exists():
            told("train", unit)
            if not study.train(unit):
                return "stopped"
            told("measure", unit)
            write_json(path, asdict(study.measure(unit)))
            told("done", unit)
    return "done"


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Inside, a unit's folder is this process's own; False when another has it."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = lock_folder(folder, "lab")
    except NextStepError:
        yield False
        return
    with lock:
        yield True


def read_measured(path: Path) -> MeasuredUnit:
    """What `run_study` kept of a unit.

    Raises:
        NextStepError: when the file is damaged.
    """
    raw: dict[str, Any] = read_json(path)
    try:
        return MeasuredUnit(**raw)
    except TypeError as error:
        raise NextStepError(f"{path} is damaged: {error}") from None


def cost_rows(study: Study, scale: Scale) -> Sequence[Sequence[str]]:
    """Arm, parameters, positions, operations and hours of one unit, as they are printed."""
    return [
        (
            arm.title, f"{cost.parameters / 1e6:.2f} M", f"{cost.positions / 1e6:.2f} M",
            f"{cost.flops:.2e}", f"{seconds(cost) / 3600:.2f}",
        )
        for arm, cost in costs(study, scale)
    ]  # fmt: skip
