"""Loss against parameters and positions: a law is fitted to four sizes, and extrapolated.

The law is that of Hoffmann et al. 2022 (arXiv 2203.15556, section 3.3):
loss = floor + A / parameters^a + B / positions^b, fitted with a Huber loss on its logarithm.

The shipped nano model answers the same documents, which are of its own size and edition, so the law
tells how many positions of this study its loss is worth.

Legend: five parameters of the law: log A, log B, log E, alpha, beta.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from nextstep.engine.pretrained import load_parts
from nextstep.lab.heldout import held_out_of, losses
from nextstep.lab.recipe_study import RecipeStudy, spent
from nextstep.lab.report import colours
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
from nextstep.model.folder import SHIPPED
from nextstep.recipe.run import MODEL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nextstep.config import NextStepConfig

SIZES: dict[str, tuple[int, int, int]] = {
    "eighth": (128, 4, 2), "quarter": (192, 5, 3), "half": (256, 6, 4), "nano": (320, 8, 5),
}  # fmt: skip
"""Name -> width, layers, attention heads of 64; shares of nano's parameters, roughly."""
STEPS = 1_400
MILESTONES = (175, 350, 700, STEPS)
GOOD, BAD = 0.02, 0.05
"""Mean relative error of the extrapolated loss up to which the law counts as confirmed, and from
which as refuted."""
LOSS = "im_loss"
SHIPPED_ARM = "shipped"


@dataclass(frozen=True)
class Law:
    """A fitted law.

    Attributes:
        floor, a, alpha, b, beta: loss = floor + a / parameters^alpha + b / positions^beta.
    """

    floor: float
    a: float
    alpha: float
    b: float
    beta: float

    def positions(self, parameters: float, loss: float) -> float | None:
        """Positions after which a size has a loss; None where it never has."""
        left = loss - float(self(parameters, math.inf))
        return (self.b / left) ** (1 / self.beta) if left > 0 and self.beta else None

    def __call__(self, parameters: Any, positions: Any) -> Any:
        """Loss at parameters and positions, numbers or arrays."""
        return self.floor + self.a * parameters**-self.alpha + self.b * positions**-self.beta


def fit(parameters: Sequence[float], positions: Sequence[float], loss: Sequence[float]) -> Law:
    """Fit the law from several starts; the best counts.

    Args:
        parameters, positions, loss: one of each a point.
    """
    from scipy.optimize import least_squares

    N, D, measured = (np.asarray(one, np.float64) for one in (parameters, positions, loss))
    n, d = N / N.min(), D / D.min()  # so that all coefficients are of the size of the loss

    def errors(x: np.ndarray) -> np.ndarray:
        floor, a, b = np.exp(x[:3])
        return np.log(floor + a * n ** -x[3] + b * d ** -x[4]) - np.log(measured)

    lowest = float(measured.min())
    found = [
        least_squares(
            errors, [np.log(lowest * share), np.log(lowest / 4), np.log(lowest / 4), power, power],
            bounds=([-20, -20, -20, 0, 0], [5, 5, 5, 3, 3]), loss="huber", f_scale=1e-2,
            max_nfev=300,
        )
        for share in (0.3, 0.9)
        for power in (0.2, 0.8)
    ]  # fmt: skip
    best = min(found, key=lambda one: one.cost).x
    floor, a, b = np.exp(best[:3])
    alpha, beta = float(best[3]), float(best[4])
    return Law(float(floor), float(a * N.min() ** alpha), alpha, float(b * D.min() ** beta), beta)


def counted(config: NextStepConfig) -> int:
    """Parameters of a model without its embeddings."""
    from nextstep.estimate.counting import on_meta
    from nextstep.model.nextstep import NextStepModel

    model = on_meta(NextStepModel, config)
    return sum(p.numel() for name, p in model.named_parameters() if "embed" not in name)


class Scaling(RecipeStudy):
    """`nextstep lab scaling`."""

    name: ClassVar[str] = "scaling"
    title: ClassVar[str] = "Loss against parameters and positions"
    claim: ClassVar[Claim] = Claim(
        "The loss of one next-token model of text and images falls as a power law in parameters "
        "and training tokens, so that small models foretell larger ones.",
        "Hoffmann et al. 2022, arXiv 2203.15556, section 3.3, shown there for text",
        "Sizes over two orders of magnitude and a run of its own, with a rate that falls, for "
        "every number of positions.",
    )

    def arms(self, scale: Scale) -> Sequence[Arm]:
        """Four sizes with flow heads of the same width, and the shipped model."""
        sizes = [
            Arm(name, f"{name} ({width} wide)", (*_pictures(scale.tiny), *_size(name, scale.tiny)))
            for name, (width, _, _) in SIZES.items()
        ]
        return [*sizes, Arm(SHIPPED_ARM, "the shipped nano model", _pictures(scale.tiny))]

    def cost(self, arm: Arm, scale: Scale) -> StudyCost:
        """The shipped model is measured alone."""
        return StudyCost(0, 0, 0) if arm.name == SHIPPED_ARM else super().cost(arm, scale)

    def train(self, unit: StudyUnit) -> bool:
        """Train the four sizes."""
        return unit.arm.name == SHIPPED_ARM or super().train(unit)

    def measure(self, unit: StudyUnit) -> MeasuredUnit:
        """Held-out loss of every milestone."""
        recipe = self.recipe(unit.arm, unit.scale, unit.seed)
        if unit.arm.name == SHIPPED_ARM:
            model = load_parts(SHIPPED["nano"], keep_dtype=True).model.float()
            found = losses(model, held_out_of(recipe, unit, SHIPPED["nano"]))
            return replace(found, values={"parameters": counted(model.config)})
        took = spent(unit.run / "log.jsonl")
        steps = [*recipe.saving.milestones, recipe.steps]
        points: list[dict[str, Any]] = []
        found, held = MeasuredUnit(), None
        for step in dict.fromkeys(steps):
            name = MODEL if step == recipe.steps else f"step-{step:08d}"
            parts = load_parts(unit.run / name, keep_dtype=True)
            held = held or held_out_of(recipe, unit)
            found = losses(parts.model.float(), held)
            means = {key: sum(one.values()) / len(one) for key, one in found.items.items()}
            share = step / recipe.steps
            points.append(
                {
                    "parameters": counted(parts.model.config), "step": step,
                    "positions": took["positions"] * share, "flops": took["flops"] * share, **means,
                }
            )  # fmt: skip
        return MeasuredUnit(items=found.items, tables={"points": points}, spent=took)

    def conclude(self, results: StudyResults) -> Conclusion:
        """Fit all but the largest size, foretell it, then fit all."""
        points = [
            {**row, "arm": arm}
            for (arm, _), one in results.measured.items()
            for row in one.tables.get("points", ())
        ]
        largest = max(points, key=lambda row: row["parameters"])["arm"]
        known = [row for row in points if row["arm"] != largest]
        asked = [row for row in points if row["arm"] == largest]
        told = _fitted(known)
        errors = [abs(told(r["parameters"], r["positions"]) / r[LOSS] - 1) for r in asked]
        law, error = _fitted(points), float(np.mean(errors))
        shipped = results.estimate(SHIPPED_ARM, LOSS).value
        worth = law.positions(results.values(SHIPPED_ARM, "parameters")[0], shipped)
        stands = "below all that it foretells for its size" if worth is None else (
            f"the loss that it foretells for {worth / 1e6:.1f} M positions of this study"
        )  # fmt: skip
        verdict: Verdict = "not reproduced"
        if error <= GOOD:
            verdict = "reproduced"
        elif error >= BAD:
            verdict = "contradicted"
        return Conclusion(
            verdict,
            f"A law fitted to the three smaller sizes foretells the held-out flow-matching loss of "
            f"the largest with a mean error of {error:.1%} (at most {GOOD:.0%} counts as "
            f"reproduced, {BAD:.0%} and more as contradicted). Fitted to all: "
            f"{law.floor:.3f} + {law.a:.3g} / N^{law.alpha:.2f} + {law.b:.3g} / D^{law.beta:.2f}. "
            f"The shipped model's loss is {shipped:.4f}, {stands}.",
            [_table(results)],
            [Plot("loss", "Held-out flow-matching loss against positions, with the fitted law.",
                  lambda figure: _draw(figure, points, law))],
        )  # fmt: skip


def _pictures(tiny: bool) -> tuple[str, ...]:
    """Pictures of the size that the shipped model draws."""
    if tiny:
        return ()
    return (
        "data.areas=[128]", "data.sources[0].world.options.pixels=128", "samples.height=128",
        "samples.width=128",
    )  # fmt: skip


def _size(name: str, tiny: bool) -> tuple[str, ...]:
    width, layers, heads = SIZES[name]
    steps = STEPS
    milestones = list(MILESTONES[:-1])
    if tiny:
        width, layers, heads = 16 * layers // 2, 1, 1
        steps, milestones = 3, [1, 2]
    shape = {
        "hidden_size": width, "intermediate_size": width * 27 // 10 // 16 * 16,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads,
        "fm_head_dim": width,
    }  # fmt: skip
    return (
        *(f"model.overrides.{key}={value}" for key, value in shape.items()),
        f"steps={steps}", f"saving.milestones={milestones}", "schedule.kind=constant",
        "schedule.decay=0",
    )  # fmt: skip


def _fitted(points: Sequence[dict[str, Any]]) -> Law:
    return fit(*([row[name] for row in points] for name in ("parameters", "positions", LOSS)))


def _table(results: StudyResults) -> Table:
    rows = []
    for arm in results.arms:
        points = results.of(arm.name)[0].tables.get("points")
        parameters = (
            points[-1]["parameters"] if points else results.values(arm.name, "parameters")[0]
        )
        image, text = (results.estimate(arm.name, name) for name in (LOSS, "lm_loss"))
        rows.append((
            arm.title, f"{parameters / 1e6:.2f} M",
            f"{points[-1]['positions'] / 1e6:.2f} M" if points else "see its card",
            f"{image:.4f}", f"{text:.4f}",
        ))  # fmt: skip
    head = ("size", "parameters without embeddings", "positions", "flow-matching loss", "text loss")
    return Table("Held-out loss at the end", head, rows)


def _draw(figure: Figure, points: Sequence[dict[str, Any]], law: Law) -> None:
    axes = figure.subplots()
    arms = list(dict.fromkeys(row["arm"] for row in points))
    for arm, colour in zip(arms, colours(len(arms)), strict=True):
        mine = [row for row in points if row["arm"] == arm]
        parameters = mine[0]["parameters"]
        label = f"{arm}, {parameters / 1e6:.2f} M"
        axes.scatter(
            [row["positions"] for row in mine], [row[LOSS] for row in mine], color=colour,
            label=label,
        )  # fmt: skip
        line = np.geomspace(
            min(row["positions"] for row in mine), max(row["positions"] for row in mine), 50
        )
        axes.plot(line, law(float(parameters), line), color=colour, linewidth=1)
    axes.set(xscale="log", xlabel="positions trained", ylabel="held-out flow-matching loss")
    axes.legend(title="size, parameters without embeddings")
