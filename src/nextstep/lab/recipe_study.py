"""Studies whose arms are recipes: trained by `run_recipe`, planned by `estimate`."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from nextstep.estimate.counting import count_parameters, step_flops, step_positions
from nextstep.lab.study import Arm, Claim, Scale, StudyCost, StudyUnit
from nextstep.recipe.load import load_recipe, recipe_file
from nextstep.recipe.shapes import model_config

if TYPE_CHECKING:
    from nextstep.recipe.schema import Recipe

TINY: tuple[str, ...] = (
    "steps=3", "data.row_length=192", "data.rows=2", "data.micro_batch_rows=2",
    "data.window_rows=8", "schedule.warmup=1", "schedule.decay=1", "ema=0.5", "compile=false",
    "precision=fp32", "logging.every=1", "saving.milestones=[]",
    "samples.prompts=[a red apple]", "samples.settings.steps=2", "samples.settings.reasoning=false",
)  # fmt: skip
"""What makes a recipe a matter of seconds; the model's shape is `TINY_SHAPE`. An arm that sets one
of these keys sets it for tiny runs too, see `Scale.tiny`."""
TINY_SHAPE: dict[str, int] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16, "fm_head_dim": 32, "fm_head_layers": 1,
}  # fmt: skip
DECODER = "lab-decoder-nano"


class RecipeStudy(ABC):
    """What such studies share; a subclass gives arms, measurements and the verdict.

    Attributes:
        base: recipe that ships, or the one of `Scale.recipe`.
        tasks: of the world that are judged.
        levels: measurements of the same tasks, such as guidance scales; for the cost alone.
        same_data: whether all arms read the same samples in the same order.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    claim: ClassVar[Claim]
    base: ClassVar[str] = "lab-nano"
    tasks: ClassVar[tuple[str, ...]] = ()
    levels: ClassVar[int] = 1
    same_data: ClassVar[bool] = True

    @abstractmethod
    def arms(self, scale: Scale) -> Sequence[Arm]:
        """All arms."""

    def asked(self, scale: Scale) -> tuple[str, ...]:
        """Tasks that are judged; of a tiny run one."""
        return self.tasks[:1] if scale.tiny else self.tasks

    def further(self, unit: StudyUnit) -> tuple[str, ...]:
        """Changes on the recipe that only a unit knows, such as folders beside it."""
        return ()

    def recipe(self, arm: Arm, scale: Scale, seed: int = 0, further: Sequence[str] = ()) -> Recipe:
        """The recipe of an arm.

        Args:
            arm: which one.
            scale: of the study.
            seed: of the unit.
            further: changes after those of the arm.

        Raises:
            NextStepError: when recipe or changes are wrong.
        """
        file = recipe_file(scale.recipe or self.base)
        changes = [*scale.changes, *arm.changes, f"seed={seed}", *further]
        if scale.tiny:
            shape = [f"model.overrides.{name}={value}" for name, value in TINY_SHAPE.items()]
            changes = [*shape, *TINY, *changes]
        return load_recipe(file, changes)

    def cost(self, arm: Arm, scale: Scale) -> StudyCost:
        """What a unit of an arm takes."""
        recipe = self.recipe(arm, scale)
        config = model_config(recipe)
        return StudyCost(
            positions=step_positions(recipe) * recipe.steps,
            flops=step_flops(recipe, config) * recipe.steps,
            parameters=count_parameters(recipe, config).total,
            pictures=len(self.asked(scale)) * self.levels * items_of(scale),
        )

    def train(self, unit: StudyUnit) -> bool:
        """Train the arm's recipe, or go on with it."""
        from nextstep.recipe.run import run_recipe

        recipe = self.recipe(unit.arm, unit.scale, unit.seed, self.further(unit))
        return run_recipe(recipe, unit.run, where=f"lab {self.name}, {unit.arm.name}").finished


def decoder_recipe(changes: Sequence[str], tiny: bool) -> Recipe:
    """The recipe that refines a decoder for the latents of the shipped encoder.

    Raises:
        NextStepError: when a change is wrong.
    """
    small = ["steps=2", "tokenizer.crops.size=32", "tokenizer.crops.batch=2", "schedule.warmup=1",
             "schedule.decay=1", "precision=fp32"]  # fmt: skip
    return load_recipe(recipe_file(DECODER), [*changes, *(small if tiny else ())])


def items_of(scale: Scale) -> int:
    """Items of each task."""
    return scale.judged


def spent(log: Path) -> dict[str, float]:
    """What a run took, from its log: positions, flops of training and seconds.

    Rows give means since the row before. What an interruption took away is reckoned like the steps
    after it.

    Args:
        log: a run's log.jsonl.
    """
    rows = [row for line in log.read_text("utf-8").splitlines() if "loss" in (row := _row(line))]
    before = 0
    found = {"positions": 0.0, "flops": 0.0, "seconds": 0.0}
    for row in rows:
        steps, before = row["step"] - before, row["step"]
        took = steps / row["steps_per_s"]
        found["seconds"] += took
        found["flops"] += row.get("flops_per_s", math.nan) * took
        found["positions"] += row["tokens_per_s"] * took
    return found


def _row(line: str) -> Mapping[str, Any]:
    try:
        row: Mapping[str, Any] = json.loads(line)
    except ValueError:
        return {}
    return row
