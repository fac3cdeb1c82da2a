"""`nextstep lab paradigms`: five ways to put pictures into the sequence, on one backbone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from PIL import Image

from nextstep.errors import ModelFileError
from nextstep.estimate.counting import mixture, on_meta, step_flops, step_positions
from nextstep.evaluate.benchmarks.scoring import Scored
from nextstep.evaluate.benchmarks.world import evaluate
from nextstep.evaluate.fidelity import Moments, frechet_distance
from nextstep.evaluate.world.detector import shipped_detector
from nextstep.evaluate.world.questions import WorldQuestion
from nextstep.evaluate.world.run import Plan
from nextstep.evaluate.world.scoring import Scorer
from nextstep.flow.solvers import SolverSettings, request_times
from nextstep.image.pictures import to_pixels
from nextstep.lab.heldout import HeldOut, held_out
from nextstep.lab.paradigms.answering import Ceiling, ParadigmAnswers, true_picture
from nextstep.lab.paradigms.discrete import softmax_flops
from nextstep.lab.paradigms.fsq import (
    LEVELS,
    QuantizedTokenizer,
    QuantizerConfig,
    token_flops,
)
from nextstep.lab.paradigms.parts import (
    CODED,
    DIFFUSION,
    Kind,
    ParadigmParts,
    load_paradigm,
    load_quantizer,
    network,
    parts_of,
)
from nextstep.lab.paradigms.sampling import DrawSettings
from nextstep.lab.plots import colours
from nextstep.lab.recipe_study import RecipeStudy, items_of, spent
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
from nextstep.lab.world_scores import EDITION, by_task, score_world
from nextstep.pipeline import NextStepPipeline
from nextstep.recipe.run import MODEL, run_recipe
from nextstep.recipe.shapes import model_config
from nextstep.train.parallel import Ranks
from nextstep.vae.perceptual import FeatureNet
from nextstep.vae.tokenizer import ImageTokenizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nextstep.recipe.schema import Recipe

QUANTIZER = "quantizer"
QUANTIZER_STEPS = 3000
DRAWING, READING = ("single", "two_objects"), ("read_style", "read_count", "read_where")
GUIDANCE, SOLVER = 2.5, SolverSettings("ab2", 12)
CODE_GUIDANCE = 1.5
"""Of codes, whose logits answer to guidance more than velocities do."""
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
        quantizer = _quantizer(unit) if kind in CODED else None
        return run_recipe(
            recipe, unit.run, where=f"lab {self.name}, {unit.arm.name}",
            make_parts=parts_of(kind, quantizer),
        ).finished  # fmt: skip

    def measure(self, unit: StudyUnit) -> MeasuredUnit:
        """Scores, losses and costs of a trained unit."""
        kind = _kind(unit.arm)
        recipe = self.recipe(unit.arm, unit.scale, unit.seed)
        ranks = Ranks()
        parts = ParadigmParts(
            kind, _quantizer(unit) if kind in CODED else None, recipe, unit.run, ranks, self.name
        )
        try:
            tokenizer, image_tokenizer = parts.text_tokenizer, parts.image_tokenizer.float()
        finally:
            parts.close()
        documents = held_out(recipe, unit.run, tokenizer, _documents(unit.scale))
        if kind == QUANTIZER:
            found = _ceilings(unit, image_tokenizer)
        else:
            found = _drawn(unit, kind, tokenizer, image_tokenizer, recipe)
            found.items["lm_loss"] = _text_losses(parts, unit, kind, documents)  # type: ignore[index]
        return replace(found, spent=spent(unit.run / "log.jsonl"))

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
            f"Best in each column: {told}. Drawing, continuous less Transfusion: {_signed(ours)}; "
            f"intra-image attention in Transfusion: {_signed(both)}; LM loss on image tokens: "
            f"{_signed(language)}."
        )
        return Conclusion(verdict, reason, _tables(results, means), (_plot(results, means),))


LEAST = 0.2
"""Score of drawing below which the arms have learned too little to tell them apart."""


def _kind(arm: Arm) -> Kind:
    return next(way.kind for way in WAYS if way.kind == arm.name)


def _quantizer(unit: StudyUnit) -> Path:
    return unit.beside(QUANTIZER) / MODEL


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


def _documents(scale: Scale) -> int:
    return 4 if scale.tiny else DOCUMENTS


def _ceilings(unit: StudyUnit, image_tokenizer: ImageTokenizer) -> MeasuredUnit:
    """What drawings can score at most, with and without codes."""
    items: dict[str, Mapping[str, float]] = {}
    quantized = QuantizedTokenizer(image_tokenizer, load_quantizer(unit.run / MODEL))
    for name, given in (("continuous tokens", None), ("codes", quantized)):
        found = _asked(unit, Ceiling(image_tokenizer, _side(unit), given), f"ceiling {name}")
        items[f"ceiling of {name}"] = by_task(found)["score"]
    return MeasuredUnit({}, items)


def _side(unit: StudyUnit) -> int:
    return max(Paradigms().recipe(unit.arm, unit.scale).data.areas)


def _tasks(scale: Scale, tasks: Sequence[str]) -> Sequence[str]:
    """Of a tiny run the first alone."""
    return tasks[:1] if scale.tiny else tasks


def _asked(
    unit: StudyUnit, answerer: Any, folder: str, tasks: Sequence[str] = DRAWING
) -> list[Scored]:
    """Ask and judge; what is answered already is kept."""
    scorer = Scorer(shipped_detector(EDITION), _side(unit))
    return evaluate(_plan(unit, tasks), answerer, scorer, unit.folder / folder, folder)


def _plan(unit: StudyUnit, tasks: Sequence[str]) -> Plan:
    count, size = items_of(unit.scale), _side(unit)
    return Plan.of(_tasks(unit.scale, tasks), ["seen"], count, size=size, edition=EDITION)


def _drawn(
    unit: StudyUnit, kind: Kind, tokenizer: Any, image_tokenizer: ImageTokenizer, recipe: Recipe
) -> MeasuredUnit:
    """Scores of drawing and reading, distance of features, cost of a picture."""
    size, model = _side(unit), unit.run / MODEL
    grid = (size // 16, size // 16)
    if kind in ("continuous", "continuous-lm"):
        # The product's engine draws and reads.
        pipeline = NextStepPipeline.from_pretrained(str(model))
        settings = {"guidance": GUIDANCE, "solver": SOLVER.name, "steps": SOLVER.steps}
        both = [
            score_world(
                pipeline,
                unit.folder / name,
                _tasks(unit.scale, tasks),
                items_of(unit.scale),
                settings,
            )
            for name, tasks in (("drawing", DRAWING), ("reading", READING))
        ]
        computed = 2 * grid[0] * grid[1]
    else:
        quantizer = _quantizer(unit) if kind == "discrete" else None
        guidance = CODE_GUIDANCE if kind == "discrete" else GUIDANCE
        answers = ParadigmAnswers(
            load_paradigm(model, quantizer), tokenizer, image_tokenizer, size,
            DrawSettings(grid, SOLVER, guidance),
        )  # fmt: skip
        both = [
            _asked(unit, answers, "drawing"),
            _asked(unit, answers, "reading", READING),
        ]
        computed = 2 * positions_drawn(kind, grid[0] * grid[1])
    drawing, reading = both
    items: dict[str, Mapping[str, float]] = {**by_task(drawing)}
    items["score reading"] = by_task(reading)["score"]
    values = {
        "seconds a picture": statistics.fmean(one.measured.evidence["seconds"] for one in drawing),
        "positions a picture": float(computed),
        "cache reuse": 1 - (computed - 2 * grid[0] * grid[1]) / computed,
    }
    distance = _feature_distance(unit)
    return MeasuredUnit(
        values | ({} if distance is None else {"feature distance": distance}), items
    )


def positions_drawn(kind: Kind, tokens: int) -> int:
    """Positions of one branch that the backbone computes for a picture: `CacheRows.computed`."""
    if kind not in DIFFUSION:
        return tokens
    return tokens * (len(request_times(SOLVER)) + 1)


def _feature_distance(unit: StudyUnit) -> float | None:
    """Frechet distance of EfficientNet-Lite0 features of the drawings to those of the truth.

    None where its weights are not installed.
    """
    try:
        network = FeatureNet.from_package()
    except ModelFileError:
        return None
    size, made, true = _side(unit), Moments(), Moments()
    plan = _plan(unit, DRAWING)
    for task, split in plan.pairs:
        for question in plan.questions(task, split):
            made.add(_features(network, _kept(unit, question)))
            true.add(_features(network, true_picture(question, size)))
    return frechet_distance(made, true)


@torch.no_grad()
def _features(network: FeatureNet, picture: np.ndarray) -> torch.Tensor:
    """[1, D]: the deepest features, averaged over the picture."""
    return network(to_pixels([picture]))[-1].mean((2, 3)).double()


def _kept(unit: StudyUnit, question: WorldQuestion) -> np.ndarray:
    """The picture that was drawn for a question, uint8 [H, W, 3]."""
    path = unit.folder / "drawing" / "images" / f"{question.key}-0.png"
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


@torch.no_grad()
def _text_losses(
    parts: ParadigmParts, unit: StudyUnit, kind: Kind, documents: HeldOut
) -> dict[str, float]:
    """Cross-entropy of the learned text of every document, in nats a position."""
    model = _trained(parts, unit, kind)
    found = {}
    for number, one in enumerate(documents.documents):
        batch = parts.stage.prepare(parts.stage.batch_of([[one]]), "cpu")
        count = parts.stage.counts(batch)["lm_loss"]
        if count:
            total = float(parts.stage.losses(model, batch)["lm_loss"])
            found[f"{number:05d}"] = round(total / count, 6)
    return found


def _trained(parts: ParadigmParts, unit: StudyUnit, kind: Kind) -> Any:
    """The trained model of an arm, to ask its stage for losses."""
    parts.stage.compile = False
    if kind in ("continuous", "continuous-lm"):
        pipeline = NextStepPipeline.from_pretrained(str(unit.run / MODEL))
        own = parts.model
        own.load_state_dict(pipeline.model.state_dict(), strict=False)
        return own.eval()
    quantizer = _quantizer(unit) if kind == "discrete" else None
    return load_paradigm(unit.run / MODEL, quantizer).model


def _means(results: StudyResults, kind: Kind) -> dict[str, float]:
    found = {}
    for column in (*COLUMNS, "cache reuse"):
        if values := results.values(kind, column):
            found[column] = statistics.fmean(values)
    return found


def _rank(column: str, value: float) -> float:
    """Lower is better."""
    return -value if column.startswith("score") else value


def _signed(found: Any) -> str:
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def _tables(results: StudyResults, means: Mapping[Kind, Mapping[str, float]]) -> Sequence[Table]:
    titles = {arm.name: arm.title for arm in results.arms}
    rows = []
    for kind, found in means.items():
        drawing, reading = (results.estimate(kind, n) for n in ("score", "score reading"))
        rows.append((
            titles[kind],
            f"{drawing.value:.2f} [{drawing.low:.2f}, {drawing.high:.2f}]",
            f"{reading.value:.2f} [{reading.low:.2f}, {reading.high:.2f}]",
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
        (name, f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}]")
        for name in ("ceiling of continuous tokens", "ceiling of codes")
        for one in [results.estimate(QUANTIZER, name)]
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
            bars = [[found.value - found.low], [found.high - found.value]]
            axes.errorbar([means[kind]["positions a picture"]], [found.value], yerr=bars,
                          marker="o", capsize=3, color=colour, label=titles[kind])  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlabel("backbone positions computed for a picture, both branches of guidance")
        axes.set_ylabel("drawing score")
        axes.set_ylim(0, 1.02)
        axes.legend(fontsize=8)

    return Plot("score-and-cost", "Drawing score against what a picture costs.", paint)
