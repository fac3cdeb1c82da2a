"""What a study is: arms that differ in one thing, trained alike, measured on the same items.

    arms x seeds -> Unit -> train -> measure -> Results -> conclude -> Conclusion

Every unit has a folder of its own, and what is finished there is not done again.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from nextstep.errors import NextStepError
from nextstep.evaluate.benchmarks.statistics import Estimate, Means, Row, estimates

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Verdict = Literal["reproduced", "not reproduced", "contradicted"]
TINY_ITEMS = 2
STUDIES: dict[str, str] = {
    "token-norm": "nextstep.lab.token_norm:TokenNorm",
    "head-size": "nextstep.lab.head_size:HeadSize",
    "context": "nextstep.lab.context:Context",
    "paradigms": "nextstep.lab.paradigms.study:Paradigms",
    "tokenizer": "nextstep.lab.tokenizer:Tokenizers",
    "small-sets": "nextstep.lab.small_sets:SmallSets",
    "scaling": "nextstep.lab.scaling:Scaling",
}
"""Name -> class."""
VALUE = "value"
"""Column of an item's value in the bootstrap."""


@dataclass(frozen=True)
class Claim:
    """What a study tests.

    Attributes:
        text: the published statement.
        source: paper, section, table or figure.
        larger: what a run would need that could decide more.
    """

    text: str
    source: str
    larger: str


@dataclass(frozen=True)
class Arm:
    """One variant.

    Attributes:
        name: of its folder and in CSV files.
        title: in legends and tables.
        changes: "key.path=value" on the study's recipe.
        needs: name of an arm whose unit of the same seed is trained before this one.
    """

    name: str
    title: str
    changes: tuple[str, ...] = ()
    needs: str = ""


@dataclass(frozen=True)
class Scale:
    """How large a study is run.

    Attributes:
        seeds: units of every arm.
        items: of each world task that is judged.
        tiny: a run of seconds that shows that the study works, and nothing else.
        recipe: recipe file in place of the study's own, for larger models and machines.
        changes: "key.path=value" on the recipe of every arm, before the arm's own.
    """

    seeds: int = 2
    items: int = 200
    tiny: bool = False
    recipe: str | None = None
    changes: tuple[str, ...] = ()

    @property
    def judged(self) -> int:
        """Items of each task that are really judged: a tiny run takes `TINY_ITEMS` at most."""
        return min(TINY_ITEMS, self.items) if self.tiny else self.items


@dataclass(frozen=True)
class StudyCost:
    """What one unit takes.

    Attributes:
        positions: of sequences that are trained on.
        flops: of forward and backward in training.
        parameters: of the model.
        pictures: drawn to measure it.
        seconds: further ones on one core, of what the operations leave out.
    """

    positions: float
    flops: float
    parameters: int
    pictures: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class StudyUnit:
    """One arm with one seed.

    Attributes:
        arm: which arm.
        seed: of weights, samples, their order and every draw.
        root: folder of the study.
        scale: of the study.
    """

    arm: Arm
    seed: int
    root: Path
    scale: Scale

    @property
    def folder(self) -> Path:
        """Where it trains and is measured."""
        return self.root / self.arm.name / f"seed-{self.seed}"

    @property
    def run(self) -> Path:
        """Folder of its training run."""
        return self.folder / "run"

    def beside(self, arm: str) -> Path:
        """Training run of another arm with the same seed."""
        return self.root / arm / f"seed-{self.seed}" / "run"


@dataclass(frozen=True)
class MeasuredUnit:
    """What was found of one unit.

    Attributes:
        values: name of a figure -> value.
        items: name of a figure that is a mean over items -> key of an item -> value; the same
            items in every arm.
        tables: name -> rows of further figures, each a mapping of columns.
        spent: what training took: positions, flops, seconds.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    items: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    spent: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Plot:
    """A figure of the card.

    Attributes:
        name: of its file, without ending.
        caption: what it shows.
        draw: draws on an empty matplotlib figure.
    """

    name: str
    caption: str
    draw: Callable[[Figure], None]


@dataclass(frozen=True)
class Table:
    """A table of the card.

    Attributes:
        title: over it.
        columns: heads.
        rows: cells as they are printed.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Conclusion:
    """What a study says.

    Attributes:
        verdict: on the claim.
        reason: the figures that decide it, in one or two sentences.
        tables, plots: for the card.
    """

    verdict: Verdict
    reason: str
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()


class Study(Protocol):
    """One study of the lab. `train` and `measure` may be called again after an interruption."""

    name: str
    title: str
    claim: Claim

    def arms(self, scale: Scale) -> Sequence[Arm]:
        """All arms; one that needs another stands behind it."""

    def cost(self, arm: Arm, scale: Scale) -> StudyCost:
        """What a unit of an arm takes."""

    def train(self, unit: StudyUnit) -> bool:
        """Train a unit, or go on with it; False when it was stopped before its end."""

    def measure(self, unit: StudyUnit) -> MeasuredUnit:
        """Measure a trained unit."""

    def conclude(self, results: StudyResults) -> Conclusion:
        """The verdict from all units."""


class StudyResults:
    """Measurements of all units.

    Args:
        arms: of the study, in order.
        measured: (name of an arm, seed) -> what was found.
        scale: that was run.
        root: folder of the study.
    """

    def __init__(
        self,
        arms: Sequence[Arm],
        measured: Mapping[tuple[str, int], MeasuredUnit],
        scale: Scale,
        root: Path = Path(),
    ) -> None:
        self.arms, self.measured, self.scale = tuple(arms), dict(measured), scale
        self.root = root

    @property
    def seeds(self) -> list[int]:
        """Seeds of the units."""
        return sorted({seed for _, seed in self.measured})

    def of(self, arm: str) -> list[MeasuredUnit]:
        """Units of an arm by seed."""
        return [self.measured[arm, seed] for seed in self.seeds if (arm, seed) in self.measured]

    def values(self, arm: str, figure: str) -> list[float]:
        """A figure of every seed: given, or the mean of its items."""
        found = []
        for one in self.of(arm):
            if figure in one.items:
                items = one.items[figure].values()
                found.append(sum(items) / len(items))
            elif figure in one.values:
                found.append(one.values[figure])
        return found

    def estimate(self, arm: str, figure: str) -> Estimate:
        """Mean over seeds and items with its 95 % interval; items are resampled within a seed.

        Raises:
            ValueError: when there are no items.
        """
        return estimates(self._rows(arm, figure), _mean_of_seeds)[VALUE]

    def difference(self, first: str, second: str, figure: str) -> Estimate:
        """How much higher a figure is for the first arm, on the same seeds and items.

        Raises:
            ValueError: when they share none.
        """
        return self.combined({first: 1.0, second: -1.0}, figure)

    def combined(self, weights: Mapping[str, float], figure: str) -> Estimate:
        """A weighted sum of a figure over arms, item by item on what all of them have.

        Args:
            weights: name of an arm -> its weight.
            figure: that is a mean over items.

        Raises:
            ValueError: when the arms share no item.
        """
        rows = [{row.key: row for row in self._rows(arm, figure)} for arm in weights]
        shared = [key for key in rows[0] if all(key in other for other in rows)]
        summed = [
            Row(
                key,
                rows[0][key].group,
                {
                    VALUE: sum(
                        weight * own[key].values[VALUE]
                        for weight, own in zip(weights.values(), rows, strict=True)
                    )
                },
            )
            for key in shared
        ]
        return estimates(summed, _mean_of_seeds)[VALUE]

    def _rows(self, arm: str, figure: str) -> list[Row]:
        return [
            Row(f"{seed}/{key}", str(seed), {VALUE: value})
            for seed in self.seeds
            if (arm, seed) in self.measured
            for key, value in self.measured[arm, seed].items.get(figure, {}).items()
        ]


def _mean_of_seeds(means: Means) -> dict[str, Any]:
    return {VALUE: means.mean_of_groups(VALUE)}


def study(name: str) -> Study:
    """The study of a name.

    Raises:
        NextStepError: when there is none.
    """
    if name not in STUDIES:
        raise NextStepError(f"the lab has no study '{name}'; choose from {', '.join(STUDIES)}")
    module, _, kind = STUDIES[name].partition(":")
    made: Study = getattr(importlib.import_module(module), kind)()
    return made
