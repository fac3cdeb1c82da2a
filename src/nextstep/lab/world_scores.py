"""Scores of the world's tasks for a model of a study, item by item, so that arms can be paired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextstep.evaluate.benchmarks.scoring import Scored
from nextstep.evaluate.benchmarks.world import evaluate
from nextstep.evaluate.world.answering import ModelAnswerer, round_trip
from nextstep.evaluate.world.detector import shipped_detector
from nextstep.evaluate.world.run import Plan
from nextstep.evaluate.world.scoring import Scorer
from nextstep.lab.recipe_study import items_of
from nextstep.pipeline import NextStepPipeline
from nextstep.recipe.run import MODEL

if TYPE_CHECKING:
    from nextstep.lab.study import StudyUnit

EDITION = "core-48"
BATCH = 16
"""Pictures drawn together."""


def score_world(
    pipeline: NextStepPipeline,
    folder: Path,
    tasks: Sequence[str],
    count: int,
    settings: Mapping[str, Any] | None = None,
    edition: str = EDITION,
) -> list[Scored]:
    """Ask a model the first items of the tasks, or what is not answered yet, and judge them.

    Args:
        pipeline: of the model; pictures have the size that its defaults say.
        folder: where answers are kept.
        tasks: of the world, with the split "seen".
        count: items of each task.
        settings: generation settings that differ from the model's defaults.
        edition: of the world.

    Raises:
        NextStepError: for an unknown task or setting, or a folder of another evaluation.
    """
    told = dict(settings or {})
    size, image_tokenizer = pipeline.defaults.height, pipeline.image_tokenizer
    before, vocabulary = pipeline.defaults, pipeline.vocabulary
    pipeline.defaults = replace(
        before,
        generate=before.generate.with_values(**told),
        edit=before.edit.with_values(**told),
    )
    pipeline.vocabulary = None  # questions are put as they stand
    try:
        return evaluate(
            Plan.of(tasks, ["seen"], count, size=size, edition=edition),
            ModelAnswerer(pipeline, size, BATCH),
            Scorer(shipped_detector(edition), size, lambda one: round_trip(one, image_tokenizer)),
            folder,
            f"{pipeline.model_hash} {sorted(told.items())}",
        )
    finally:
        pipeline.defaults, pipeline.vocabulary = before, vocabulary


def by_task(scored: Sequence[Scored]) -> dict[str, dict[str, float]]:
    """Items for `Measured`: "score TASK" -> key -> score, and "score" over all tasks."""
    found: dict[str, dict[str, float]] = {"score": {}}
    for one in scored:
        task, score = one.item.group.partition("/")[0], one.measured.values["score"]
        for name in ("score", f"score {task}"):
            found.setdefault(name, {})[one.item.key] = score
    return found


def world_items(
    unit: StudyUnit,
    tasks: Sequence[str],
    condition: str = "",
    settings: Mapping[str, Any] | None = None,
    model: Path | None = None,
) -> dict[str, Mapping[str, float]]:
    """Scores of a unit's model, item by item, as "score" and "score TASK", "@condition" behind.

    Args:
        unit: whose model it is and which items are asked.
        tasks: of the world.
        condition: name of this measurement among several of the unit.
        settings: generation settings that differ from the model's.
        model: folder in place of the unit's own model.
    """
    pipeline = NextStepPipeline.from_pretrained(model or unit.run / MODEL)
    folder = unit.folder / "answers" / (condition or "plain")
    results = score_world(pipeline, folder, tasks, items_of(unit.scale), settings)
    behind = f"@{condition}" if condition else ""
    return {f"{name}{behind}": items for name, items in by_task(results).items()}
