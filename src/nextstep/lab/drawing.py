"""What a trained model of a study can do: held-out loss and scores of the world's tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextstep.lab.heldout import HeldOut, held_out, losses
from nextstep.lab.recipe_study import items_of
from nextstep.lab.study import Scale, StudyUnit
from nextstep.lab.world_scores import by_task, score_world
from nextstep.pipeline import NextStepPipeline
from nextstep.recipe.run import MODEL

if TYPE_CHECKING:
    from nextstep.recipe.schema import Recipe

DOCUMENTS = 4
"""Held-out documents for every item of a task."""


def documents(scale: Scale) -> int:
    """Held-out documents."""
    return 8 if scale.tiny else DOCUMENTS * scale.items


def held_out_of(recipe: Recipe, unit: StudyUnit, model: Path | None = None) -> HeldOut:
    """The held-out documents of a unit's recipe.

    Args:
        recipe: whose sources they come from.
        unit: how many.
        model: folder with the text tokenizer; default the unit's own model.

    Raises:
        NextStepError: when its source or its image tokenizer cannot be had.
    """
    from nextstep.text.tokenizer import TextTokenizer

    tokenizer = TextTokenizer.from_folder(model or unit.run / MODEL)
    return held_out(recipe, unit.run, tokenizer, documents(unit.scale))


def held_out_loss(recipe: Recipe, unit: StudyUnit) -> Mapping[str, Mapping[str, float]]:
    """`im_loss` and `lm_loss` of a unit's model, item by item."""
    from nextstep.engine.pretrained import load_parts

    model = load_parts(unit.run / MODEL, keep_dtype=True).model.float()
    return losses(model, held_out_of(recipe, unit)).items


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
