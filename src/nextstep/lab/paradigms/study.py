"""`nextstep lab paradigms`: five ways to put pictures into the sequence, on one backbone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from nextstep.estimate.counting import mixture, on_meta, step_flops, step_positions
from nextstep.lab.heldout import held_out
from nextstep.lab.paradigms.discrete import softmax_flops
from nextstep.lab.paradigms.fsq import (
    LEVELS,
    QuantizerConfig,
    token_flops,
)
from nextstep.lab.paradigms.measuring import DRAWING, QUANTIZER, ParadigmMeasurement
from nextstep.lab.paradigms.parts import (
    CODED,
    Kind,
    ParadigmParts,
    network,
    parts_of,
)
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
from nextstep.recipe.run import run_recipe
from nextstep.recipe.shapes import model_config
from nextstep.train.parallel import Ranks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nextstep.recipe.schema import Recipe

QUANTIZER_STEPS = 3000
NO_CONTEXT_NOISE = ("loss.context_noise=0", "loss.context_noise_picture_prob=0")
DRAWS = "loss.head_batch_mul=3"
"""Diffusion draws a level, a share of clean tokens and a choice for every token."""
DOCUMENTS = 200
COLUMNS = (
    "score", "score reading", "lm_loss", "feature distance", "seconds a picture",
    "positions a picture",
)  # fmt: skip
"""Figures of the table; `score` is that of drawing."""


@dataclass(frozen=True)
class _Way:
    """What tells one arm from the others.

    Attributes:
        kind: its name.
        title: in tables.
        changes: on the recipe.
        length: further changes, which a tiny run leaves out.
    """

    kind: Kind
    title: str
    changes: tuple[str, ...] = ()
    length: tuple[str, ...] = ()


WAYS = (
    _Way("quantizer", "codes (FSQ) alone",
         ("samples=null", "loss.head_batch_mul=1", *NO_CONTEXT_NOISE),
         (f"steps={QUANTIZER_STEPS}", "schedule.decay=1000")),
    _Way("continuous", "continuous autoregression (ours)"),
    _Way("continuous-lm", "the same with LM loss on image tokens"),
    _Way("transfusion", "Transfusion", (DRAWS, *NO_CONTEXT_NOISE)),
    _Way("transfusion-causal", "Transfusion without intra-image attention",
         (DRAWS, *NO_CONTEXT_NOISE)),
    _Way("causal-diffusion", "causal diffusion", (DRAWS, *NO_CONTEXT_NOISE)),
    _Way("discrete", "discrete autoregression", ("loss.head_batch_mul=1", *NO_CONTEXT_NOISE)),
)  # fmt: skip
TRAINED = tuple(way.kind for way in WAYS if way.kind != QUANTIZER)


class Paradigms(RecipeStudy):
    """`nextstep lab paradigms`."""

    name: ClassVar[str] = "paradigms"
    title: ClassVar[str] = "Continuous, diffused and discrete image tokens in one sequence"
    claim: ClassVar[Claim] = Claim(
        "How pictures enter the sequence is a trade-off: no paradigm is best at drawing, at "
        "reading and text, and in the cost of a picture at once; continuous autoregression needs "
        "neither discrete tokens nor attention in both directions inside a picture.",
        "NextStep-1, arXiv 2508.10711, sections 1 and 5; Transfusion, arXiv 2408.11039, section 4; "
        "Chameleon, arXiv 2405.09818; Emu3, arXiv 2409.18869",
        "Pictures of 256 pixels and more, where 256 tokens depend on each other as 16 do not; "
        "text beyond captions, so that the modalities can disturb each other; a tuned recipe for "
        "every paradigm, not one for all.",
    )
    base: ClassVar[str] = "lab-paradigms"
    tasks: ClassVar[tuple[str, ...]] = DRAWING

    def arms(self, scale: Scale) -> Sequence[Arm]:
        """The quantizer first; the arms that read its codes need it."""
        return [
            Arm(way.kind, way.title, (*way.changes, *(() if scale.tiny else way.length)),
                QUANTIZER if way.kind in CODED else "")
            for way in WAYS
        ]  # fmt: skip

    def cost(self, arm: Arm, scale: Scale) -> StudyCost:
        """What a unit of an arm takes, by the arithmetic of its own kind."""
        recipe, kind = self.recipe(arm, scale), _kind(arm)
        config, steps = model_config(recipe), recipe.steps
        mix, positions = mixture(recipe.data), step_positions(recipe)
        targets, image = (positions * mix.documents * n for n in (mix.targets, mix.image))

        def levels(count: int) -> float:
            return step_flops(_with_levels(recipe, count), config)

        one, codes = levels(1), softmax_flops(config, _codes(), int(targets))
        a_level = levels(2) - one
        each = {
            "quantizer": image * token_flops(QuantizerConfig(config.token_size)),
            "continuous": step_flops(recipe, config),
            "continuous-lm": step_flops(recipe, config) + codes,
            "causal-diffusion": one - a_level / 2,  # half of the tokens are clean
            "discrete": one - a_level + codes,
        }
        model = on_meta(_Shape(kind), config)
        return StudyCost(
            positions=positions * steps,
            flops=each.get(kind, one) * steps,
            parameters=sum(p.numel() for p in model.parameters()),
            pictures=0 if kind == QUANTIZER else len(DRAWING) * items_of(scale),
        )

    def train(self, unit: StudyUnit) -> bool:
        """Train the arm's recipe, or go on with it."""
        kind = _kind(unit.arm)
        recipe = self.recipe(unit.arm, unit.scale, unit.seed)
        quantizer = self._measurement(unit).quantizer
        return run_recipe(
            recipe, unit.run, where=f"lab {self.name}, {unit.arm.name}",
            make_parts=parts_of(kind, quantizer),
        ).finished  # fmt: skip

    def measure(self, unit: StudyUnit) -> MeasuredUnit:
        """Scores, losses and costs of a trained unit."""
        recipe = self.recipe(unit.arm, unit.scale, unit.seed)
        asked = self._measurement(unit)
        parts = ParadigmParts(asked.kind, asked.quantizer, recipe, unit.run, Ranks(), self.name)
        try:
            tokenizer, image_tokenizer = parts.text_tokenizer, parts.image_tokenizer.float()
        finally:
            parts.close()
        took = spent(unit.run / "log.jsonl")
        if asked.kind == QUANTIZER:
            return replace(asked.ceilings(image_tokenizer), spent=took)
        count = 4 if unit.scale.tiny else DOCUMENTS
        documents = held_out(recipe, unit.run, tokenizer, count)
        found = asked.drawn(tokenizer, image_tokenizer)
        losses = {"lm_loss": asked.text_losses(parts, documents)}
        return replace(found, items={**found.items, **losses}, spent=took)

    def _measurement(self, unit: StudyUnit) -> ParadigmMeasurement:
        size = max(self.recipe(unit.arm, unit.scale).data.areas)
        return ParadigmMeasurement(unit, _kind(unit.arm), size)

    def conclude(self, results: StudyResults) -> Conclusion:
        """A trade-off, unless one arm leads every column."""
        means = {kind: _means(results, kind) for kind in TRAINED}
        leaders = {
            column: min(means, key=lambda kind: _rank(column, means[kind][column]))
            for column in COLUMNS
            if all(column in found for found in means.values())
        }
        first = set(leaders.values())
        ours = results.difference("continuous", "transfusion", "score")
        both = results.difference("transfusion", "transfusion-causal", "score")
        language = results.difference("continuous-lm", "continuous", "score")
        verdict: Verdict = "reproduced" if len(first) > 1 else "contradicted"
        if verdict == "reproduced" and max(found["score"] for found in means.values()) < LEAST:
            verdict = "not reproduced"  # nothing was learned that could be traded
        told = "; ".join(f"{column}: {leader}" for column, leader in leaders.items())
        reason = (
            f"Best in each column: {told}. Drawing, continuous less Transfusion: {ours:+.3f}; "
            f"intra-image attention in Transfusion: {both:+.3f}; LM loss on image tokens: "
            f"{language:+.3f}."
        )
        return Conclusion(verdict, reason, _tables(results, means), (_plot(results, means),))


LEAST = 0.2
"""Score of drawing below which the arms have learned too little to tell them apart."""


def _kind(arm: Arm) -> Kind:
    return next(way.kind for way in WAYS if way.kind == arm.name)


def _codes() -> int:
    return int(np.prod(LEVELS))


@dataclass(frozen=True)
class _Shape:
    """Makes the network of a kind from a config, for `on_meta`."""

    kind: Kind

    def __call__(self, config: Any) -> torch.nn.Module:
        return network(self.kind, config, _codes())


def _with_levels(recipe: Recipe, count: int) -> Recipe:
    loss = recipe.loss.model_copy(update={"head_batch_mul": count})
    return recipe.model_copy(update={"loss": loss})


def _means(results: StudyResults, kind: Kind) -> dict[str, float]:
    found = {}
    for column in (*COLUMNS, "cache reuse"):
        if values := results.values(kind, column):
            found[column] = statistics.fmean(values)
    return found


def _rank(column: str, value: float) -> float:
    """Lower is better."""
    return -value if column.startswith("score") else value


def _tables(results: StudyResults, means: Mapping[Kind, Mapping[str, float]]) -> Sequence[Table]:
    titles = {arm.name: arm.title for arm in results.arms}
    rows = []
    for kind, found in means.items():
        drawing, reading = (results.estimate(kind, n) for n in ("score", "score reading"))
        rows.append((
            titles[kind],
            f"{drawing:.2f}",
            f"{reading:.2f}",
            f"{found['lm_loss']:.3f}",
            f"{found['feature distance']:.3g}" if "feature distance" in found else "not measured",
            f"{found['seconds a picture']:.3f}",
            f"{found['positions a picture']:.0f}",
            f"{found['cache reuse']:.2f}",
        ))  # fmt: skip
    head = (
        "paradigm", "drawing", "reading", "text loss (nats)", "feature Frechet distance",
        "seconds a picture", "backbone positions a picture", "share computed once",
    )  # fmt: skip
    ceilings = [
        (name, f"{results.estimate(QUANTIZER, name):.2f}")
        for name in ("ceiling of continuous tokens", "ceiling of codes")
    ]
    return (
        Table("The paradigms", head, rows),
        Table("What the truth scores through the tokens", ("tokens", "drawing"), ceilings),
    )


def _plot(results: StudyResults, means: Mapping[Kind, Mapping[str, float]]) -> Plot:
    titles = {arm.name: arm.title for arm in results.arms}

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for kind, colour in zip(means, colours(len(means)), strict=True):
            found = results.estimate(kind, "score")
            with_intervals(
                axes, [means[kind]["positions a picture"]], [found], titles[kind], colour
            )
        axes.set_xscale("log")
        axes.set_xlabel("backbone positions computed for a picture, both branches of guidance")
        axes.set_ylabel("drawing score")
        axes.set_ylim(0, 1.02)
        axes.legend(fontsize=8)

    return Plot("score-and-cost", "Drawing score against what a picture costs.", paint)
