"""How far back a model sees: characters that come back after many other pictures.

Every item of the task `recall` shows four to eight characters, by sight or by words, and asks for
one of them again; its score needs the right object, colour and style. Two arms train on equal
positions, one on all items, one on short ones alone. The short one is also asked with rotary
positions stretched for twice its context (NTK-aware scaling: the base of the frequencies grows by
factor^(d / (d - 2)), d the size of a head), which needs no training. The shipped nano model, at its
own 128 pixels, is measured beside them.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from nextstep.evaluate.world.run import Plan
from nextstep.lab.recipe_study import RecipeStudy, items_of, spent
from nextstep.lab.report import colours, with_intervals
from nextstep.lab.study import (
    Arm,
    Claim,
    Conclusion,
    MeasuredUnit,
    Plot,
    Scale,
    StudyCost,
    StudyResults,
    StudyUnit,
    Table,
    Verdict,
)
from nextstep.lab.world_scores import EDITION, world_items
from nextstep.model.folder import SHIPPED
from nextstep.recipe.run import MODEL
from nextstep.utils.files import new_folder, read_json, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nextstep.evaluate.benchmarks.statistics import Estimate

TASK, STRETCHED, FACTOR = "recall", "stretched", 2.0
STEPS = 2_500
WORST = 0.10
"""Loss of score from near to far up to which memory counts as kept."""
ABLE = 0.2
"""Score of near items below which nothing can be said."""


@dataclass(frozen=True)
class Back:
    """Where the answer of an item lies.

    Attributes:
        distance: pictures between the character and its return, itself counted.
        pictures: that stand before the asked one.
    """

    distance: int
    pictures: int


PARTS: dict[str, Callable[[Back], bool]] = {
    "near": lambda one: one.distance <= 4,
    "far": lambda one: one.distance >= 6,
    "few pictures": lambda one: one.pictures <= 5,
    "many pictures": lambda one: one.pictures >= 7,
}
"""Name of a group of items -> whether an item belongs to it."""
DISTANCES = range(4, 9)
"""Of the task; every one is a group too, "distance N"."""


def groups(back: Back) -> list[str]:
    """Names of the groups that an item belongs to."""
    return [name for name, belongs in PARTS.items() if belongs(back)] + [
        f"distance {back.distance}"
    ]


def backs(count: int) -> dict[str, Back]:
    """Key of every item -> where its answer lies."""
    found = {}
    for question in Plan.of([TASK], ["seen"], count, edition=EDITION).questions(TASK, "seen"):
        names = [scene.items[0].name for scene in question.example.scenes]
        before = len(names) - 1
        found[question.key] = Back(before - names.index(names[-1]), before)
    return found


def parted(
    items: Mapping[str, Mapping[str, float]], known: Mapping[str, Back]
) -> dict[str, dict[str, float]]:
    """Scores of the groups that have items, "score GROUP" with the condition behind."""
    found: dict[str, dict[str, float]] = {}
    for name, scores in items.items():
        _, mark, condition = name.partition("@")
        for key, score in scores.items():
            for part in groups(known[key]):
                found.setdefault(f"score {part}{mark}{condition}", {})[key] = score
    return found


def stretched(folder: Path, target: Path, factor: float) -> Path:
    """A model folder with rotary positions for contexts `factor` times as long.

    Raises:
        NextStepError: when the target exists and is no copy of this kind.
    """
    if target.exists():
        return target
    with new_folder(target) as scratch:
        shutil.copytree(folder, scratch, dirs_exist_ok=True)
        config = read_json(scratch / "config.json")
        d = config["head_dim"]
        config["rope_theta"] *= factor ** (d / (d - 2))
        config["max_position_embeddings"] = int(config["max_position_embeddings"] * factor)
        write_json(scratch / "config.json", config)
    return target


class Context(RecipeStudy):
    """`nextstep lab context`."""

    name: ClassVar[str] = "context"
    title: ClassVar[str] = "Recall against distance and number of pictures"
    claim: ClassVar[Claim] = Claim(
        "One causal sequence keeps what its earlier pictures showed, so characters can be drawn "
        "again consistently through long interleaved contexts.",
        "arXiv 2508.10711, which trains on videos of the same characters for this; it reports no "
        "figure",
        "Contexts of thousands of tokens, pictures of more than one character, and a model that "
        "draws every near item right.",
    )
    tasks: ClassVar[tuple[str, ...]] = (TASK,)
    levels: ClassVar[int] = 2
    same_data: ClassVar[bool] = False

    def arms(self, scale: Scale) -> Sequence[Arm]:
        """All items, short items alone, and the shipped model."""
        mixture = (
            "data.sources[0].world.options.tasks={single: 0.3, recall: 0.7}",
            "data.sources[0].kind=interleaved", "data.sources[0].expected_text=100",
            "data.sources[0].expected_pictures=5", f"steps={3 if scale.tiny else STEPS}",
        )  # fmt: skip
        long = ("data.row_length=512", "data.rows=4", "data.micro_batch_rows=4")
        short = ("data.row_length=256", "data.rows=8", "data.micro_batch_rows=8")
        return [
            Arm("long", "trained on all items", (*mixture, *long)),
            Arm("short", "trained on items of up to 256 positions", (*mixture, *short)),
            Arm("shipped", "the shipped nano model, not trained here"),
        ]

    def cost(self, arm: Arm, scale: Scale) -> StudyCost:
        """The shipped model is measured alone."""
        if arm.name == "shipped":
            return StudyCost(0, 0, 0, items_of(scale))
        return super().cost(arm, scale)

    def train(self, unit: StudyUnit) -> bool:
        """Train the arms that are trained."""
        return unit.arm.name == "shipped" or super().train(unit)

    def measure(self, unit: StudyUnit) -> MeasuredUnit:
        """Scores by distance and number of pictures."""
        known = backs(items_of(unit.scale))
        if unit.arm.name == "shipped":
            return MeasuredUnit(
                items=parted(world_items(unit, [TASK], model=SHIPPED["nano"]), known)
            )
        items = world_items(unit, [TASK])
        if unit.arm.name == "short":
            folder = stretched(unit.run / MODEL, unit.folder / STRETCHED, FACTOR)
            items |= world_items(unit, [TASK], STRETCHED, model=folder)
        return MeasuredUnit(items=parted(items, known), spent=spent(unit.run / "log.jsonl"))

    def conclude(self, results: StudyResults) -> Conclusion:
        """Whether far items are remembered like near ones, and what stretching gives."""
        near, far = (_known(results, "long", f"score {part}") for part in ("near", "far"))
        fall, width = near.value - far.value, _width(near, far)
        verdict: Verdict = "not reproduced"
        if near.value >= ABLE and fall + width <= WORST:
            verdict = "reproduced"
        elif fall - width > WORST:
            verdict = "contradicted"
        plain, wide = (
            _known(results, "short", f"score many pictures{mark}") for mark in ("", f"@{STRETCHED}")
        )
        return Conclusion(
            verdict,
            f"Trained on all items the model draws {100 * near.value:.1f} % of the characters "
            f"right that were shown 4 pictures ago and {100 * far.value:.1f} % of those from "
            f"6 or more ago, {100 * fall:.1f} points less (give or take {100 * width:.1f}). "
            f"Trained on short items alone it draws {100 * plain.value:.1f} % right after 7 or "
            f"more pictures, and {100 * wide.value:.1f} % with positions stretched for twice the "
            f"context. Kept means a fall of at most {100 * WORST:.0f} points from a near score of "
            f"{100 * ABLE:.0f} % or more.",
            [_table(results)],
            [Plot("distance", "Characters drawn right against the distance to their last picture.",
                  lambda figure: _draw(figure, results))],
        )  # fmt: skip


def _known(results: StudyResults, arm: str, name: str) -> Estimate:
    """An estimate; of a group without items, that of all."""
    from nextstep.evaluate.benchmarks.statistics import Estimate

    try:
        return results.estimate(arm, name)
    except ValueError:
        return Estimate(math.nan, math.nan, math.nan)


def _width(first: Estimate, second: Estimate) -> float:
    """Half the interval of a difference of two groups of unlike items."""
    return math.hypot(first.high - first.low, second.high - second.low) / 2


def _conditions(results: StudyResults) -> list[tuple[str, str, str]]:
    """Title, arm and what stands behind its figures' names, of every line of table and plot."""
    lines = [(arm.title, arm.name, "") for arm in results.arms]
    lines.append((f"short items, positions stretched by {FACTOR:g}", "short", f"@{STRETCHED}"))
    return lines


def _table(results: StudyResults) -> Table:
    parts = ("near", "far", "few pictures", "many pictures")
    rows = []
    for title, arm, mark in _conditions(results):
        found = [_known(results, arm, f"score {part}{mark}") for part in parts]
        rows.append((title, *(
            "none" if math.isnan(one.value) else f"{one * 100:.1f}" for one in found
        )))  # fmt: skip
    head = ("arm", "4 pictures ago", "6 or more ago", "up to 5 pictures", "7 or more")
    return Table("Characters drawn right, %", head, rows)


def _draw(figure: Figure, results: StudyResults) -> None:
    axes = figure.subplots()
    lines = _conditions(results)
    for (title, arm, mark), colour in zip(lines, colours(len(lines)), strict=True):
        found = {n: _known(results, arm, f"score distance {n}{mark}") for n in DISTANCES}
        there = {n: one for n, one in found.items() if not math.isnan(one.value)}
        with_intervals(axes, list(there), list(there.values()), title, colour)
    axes.set(xlabel="pictures since the character was shown", ylabel="share drawn right")
    axes.set_xticks(list(DISTANCES))
    axes.set_ylim(0, 1)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=8)
