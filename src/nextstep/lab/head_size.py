"""Flow heads of three sizes, on a frozen backbone and trained with it; backbones of three sizes.

As published the heads are fresh and trained alone on the backbone of a trained model. That measures
what a head adds to states that were learned for another one. Trained jointly, the backbone can
serve each head; halving and doubling the backbone shows what a change of size is worth there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from nextstep.estimate.counting import count_parameters
from nextstep.lab.heldout import held_out_loss
from nextstep.lab.recipe_study import RecipeStudy, spent
from nextstep.lab.report import colours, with_intervals
from nextstep.lab.study import (
    Arm,
    Claim,
    Conclusion,
    MeasuredUnit,
    Plot,
    Scale,
    StudyResults,
    StudyUnit,
    Table,
    Verdict,
)
from nextstep.lab.world_scores import world_items
from nextstep.recipe.run import MODEL
from nextstep.recipe.shapes import model_config

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADS: dict[str, tuple[int, int]] = {"small": (3, 96), "base": (6, 144), "large": (12, 192)}
"""Name -> layers, width: half the published depths, and widths in their proportion."""
BACKBONES: dict[str, int] = {"half": 3, "double": 12}
"""Name -> layers; the recipe's own backbone has 6."""
STEPS, HEAD_STEPS = 2_000, 800
BASE = "joint-base"
FROZEN = (
    "embed_tokens.*", "layers.*", "norm.*", "image_in_projector.*", "image_out_projector.*",
    "image_row_embed.*", "image_column_embed.*",
)  # fmt: skip
"""All but the flow head; the language-model head is tied to the embedding."""
LOSS = "im_loss"


class HeadSize(RecipeStudy):
    """`nextstep lab head-size`."""

    name: ClassVar[str] = "head-size"
    title: ClassVar[str] = "Size of the flow head against size of the backbone"
    claim: ClassVar[Claim] = Claim(
        "The size of the flow head hardly matters, so the backbone models the distribution and the "
        "head is only a sampler: fresh heads of 40M, 157M and 528M on a trained backbone reach "
        "0.55, 0.55 and 0.56 on GenEval.",
        "arXiv 2508.10711, tables 6 and 7",
        "A backbone a hundred times the head, as published (here heads are 8 to 92 % of it), "
        "drawings that need a rich distribution, such as photographs, and more seeds.",
    )
    tasks: ClassVar[tuple[str, ...]] = ("single", "two_objects", "position")

    def arms(self, scale: Scale) -> Sequence[Arm]:
        """Three heads trained jointly, two more backbones, three heads on the frozen backbone."""
        heads = {name: _head(name, scale.tiny) for name in HEADS}
        steps = 3 if scale.tiny else STEPS
        joint = [
            Arm(f"joint-{name}", f"{name} head, trained jointly", (*head, f"steps={steps}"))
            for name, head in heads.items()
        ]
        backbones = [
            Arm(
                f"backbone-{name}", f"{name} the backbone, base head",
                (
                    *heads["base"], f"steps={steps}",
                    f"model.overrides.num_hidden_layers={layers // (3 if scale.tiny else 1)}",
                ),
            )
            for name, layers in BACKBONES.items()
        ]  # fmt: skip
        frozen = [
            Arm(
                f"frozen-{name}", f"{name} head, fresh on the frozen backbone",
                (*head, *_alone(scale.tiny)), needs=BASE,
            )
            for name, head in heads.items()
        ]  # fmt: skip
        return [*joint, *backbones, *frozen]

    def further(self, unit: StudyUnit) -> tuple[str, ...]:
        """Frozen arms start from the trained model of the base arm with the same seed."""
        return (f"model.folder={unit.beside(BASE) / MODEL}",) if unit.arm.needs else ()

    def measure(self, unit: StudyUnit) -> MeasuredUnit:
        """Held-out loss, scores and parameters."""
        recipe = self.recipe(unit.arm, unit.scale, unit.seed, self.further(unit))
        counts = count_parameters(recipe, model_config(recipe))
        return MeasuredUnit(
            values={"head parameters": counts.head, "backbone parameters": counts.backbone},
            items={**held_out_loss(recipe, unit), **world_items(unit, self.asked(unit.scale))},
            spent=spent(unit.run / "log.jsonl"),
        )

    def conclude(self, results: StudyResults) -> Conclusion:
        """What eleven times the head is worth, against what four times the backbone is."""
        frozen = results.difference("frozen-small", "frozen-large", LOSS)
        joint = results.difference("joint-small", "joint-large", LOSS)
        backbone = results.difference("backbone-half", "backbone-double", LOSS)
        apart = results.combined(
            {
                "backbone-half": 0.5, "backbone-double": -0.5, "frozen-small": -1.0,
                "frozen-large": 1.0,
            },
            LOSS,
        )  # fmt: skip
        score = results.difference("frozen-large", "frozen-small", "score")
        verdict: Verdict = "not reproduced"
        if apart.low > 0 and score.low <= 0.02:
            verdict = "reproduced"
        elif frozen.low > backbone.high:
            verdict = "contradicted"
        return Conclusion(
            verdict,
            f"From the small to the large head, fresh on the frozen backbone, the held-out loss "
            f"falls by {frozen:.4f} and the score changes by {score * 100:+.1f} points; trained "
            f"jointly the loss falls by {joint:.4f}. From half to double the backbone it falls by "
            f"{backbone:.4f}. Reproduced means that the head is worth clearly less than half of "
            "what the backbone is.",
            [_table(results)],
            [
                Plot("loss", "Held-out flow-matching loss against parameters of head and backbone.",
                     lambda figure: _draw(figure, results, LOSS, "held-out flow-matching loss")),
                Plot("score", "Score of the world's tasks against the same.",
                     lambda figure: _draw(figure, results, "score", "share of pictures right")),
            ],
        )  # fmt: skip


def _head(name: str, tiny: bool) -> tuple[str, ...]:
    layers, width = HEADS[name]
    if tiny:
        layers, width = layers // 3, width // 6
    return f"model.overrides.fm_head_layers={layers}", f"model.overrides.fm_head_dim={width}"


def _alone(tiny: bool) -> tuple[str, ...]:
    """The head alone is trained; the folder is put in when the base arm has one."""
    return (
        f"model.folder={BASE}", "model.fresh_head=true", f"model.freeze=[{', '.join(FROZEN)}]",
        "steps=3" if tiny else f"steps={HEAD_STEPS}",
    )  # fmt: skip


def _table(results: StudyResults) -> Table:
    rows = []
    for arm in results.arms:
        loss, score = results.estimate(arm.name, LOSS), results.estimate(arm.name, "score")
        head = results.values(arm.name, "head parameters")[0]
        backbone = results.values(arm.name, "backbone parameters")[0]
        rows.append((
            arm.title, f"{head / 1e6:.2f} M", f"{backbone / 1e6:.2f} M",
            f"{loss:.4f}", f"{score * 100:.1f}",
        ))  # fmt: skip
    head_of = ("arm", "head", "backbone", "held-out flow-matching loss", "score, %")
    return Table("Every arm", head_of, rows)


def _draw(figure: Figure, results: StudyResults, name: str, label: str) -> None:
    axes = figure.subplots()
    lines = {
        "head, backbone frozen": [f"frozen-{size}" for size in HEADS],
        "head, trained jointly": [f"joint-{size}" for size in HEADS],
        "backbone, base head": ["backbone-half", BASE, "backbone-double"],
    }
    for (title, arms), colour in zip(lines.items(), colours(len(lines)), strict=True):
        part = "backbone parameters" if "half" in arms[0] else "head parameters"
        x = [results.values(arm, part)[0] / 1e6 for arm in arms]
        with_intervals(axes, x, [results.estimate(arm, name) for arm in arms], title, colour)
    axes.set(xscale="log", xlabel="parameters of what varies, millions", ylabel=label)
    axes.legend()
