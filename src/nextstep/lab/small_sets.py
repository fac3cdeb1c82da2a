"""`nextstep lab small-sets`: fine-tuning on 10, 100 and 1,000 pictures, LoRA and all weights.

The pictures show objects that the model knows in a drawing style under a word that it does not
know. Asked for are other objects under that word (what was learned), the very pictures of the set
(what was learned by heart), and the drawings of the core world (what was forgotten).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from nextstep.data.documents import Document, derived_seed
from nextstep.engine.pretrained import Parts, load_parts, merge_adapter_folder
from nextstep.evaluate.world.answering import ModelAnswerer
from nextstep.evaluate.world.detector import shipped_detector
from nextstep.evaluate.world.scoring import Scorer
from nextstep.finetune.run import ADAPTER, MODEL, RUN, SHEET, finetune
from nextstep.finetune.settings import FinetuneSettings
from nextstep.image.pictures import to_pixels
from nextstep.lab.heldout import HeldOut, losses
from nextstep.lab.recipe_study import items_of, spent
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
from nextstep.lab.style_set import Shot, shots, write_set
from nextstep.lab.world_scores import by_task, score_world
from nextstep.pipeline import NextStepPipeline
from nextstep.text.sequence import build_sequence, text_to_image
from nextstep.train.flops import Work, train_flops
from nextstep.world.scenes import render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASE = "nano"
JUDGED = "core-144"
"""Edition whose styles the scorer tells apart."""
KEPT_TASKS = ("single", "two_objects")
SIZES = (10, 100, 1000)
SHORT = 0.3
"""Share of the default number of steps that the short arms take."""
TINY_SIZES, TINY_STEPS = (3,), 2
LOSS_PICTURES = 64
LOST, LEARNED = 0.05, 0.1
"""Loss of score from which something counts as forgotten; gain from which a style is learned."""
UNTRAINED = "untrained"


@dataclass(frozen=True)
class _Way:
    """One way to fine-tune.

    Attributes:
        pictures: of the set; 0 leaves the model as it is.
        full: train all weights instead of an adapter.
        short: take `SHORT` of the steps.
    """

    pictures: int
    full: bool = False
    short: bool = False

    @property
    def name(self) -> str:
        """Of the arm."""
        if not self.pictures:
            return UNTRAINED
        return f"{'full' if self.full else 'lora'}-{self.pictures}{'-short' * self.short}"

    @property
    def title(self) -> str:
        """In tables."""
        if not self.pictures:
            return "untrained"
        steps = f", {SHORT:.0%} of the steps" if self.short else ""
        return f"{'all weights' if self.full else 'LoRA'}, {self.pictures:,} pictures{steps}"


class SmallSets:
    """`nextstep lab small-sets`."""

    name: ClassVar[str] = "small-sets"
    title: ClassVar[str] = "Fine-tuning on few pictures"
    claim: ClassVar[Claim] = Claim(
        "Fine-tuning this kind of model on small sets is unstable: it learns little, or it "
        "overfits and forgets; steady gains need about a million samples.",
        "NextStep-1, arXiv 2508.10711, section 6.3",
        "Photographs in place of drawings, the released weights, and skills that are further from "
        "what the model knows than a style.",
    )

    def arms(self, scale: Scale) -> Sequence[Arm]:
        """The untrained model first."""
        return [Arm(way.name, way.title) for way in _ways(scale)]

    def settings(self, unit: StudyUnit) -> FinetuneSettings:
        """What is asked of `finetune`."""
        way = _way(unit.arm, unit.scale)
        return FinetuneSettings(
            data=unit.folder / "pictures",
            output=unit.run,
            model=unit.scale.recipe or BASE,
            full=way.full,
            steps=_steps(way, unit.scale),
            batch=2 if unit.scale.tiny else None,
            prompts=(shots(1, unit.seed, False)[0].caption,),
            sheets=0,
            seed=unit.seed,
        )

    def cost(self, arm: Arm, scale: Scale) -> StudyCost:
        """What a unit of an arm takes."""
        way = _way(arm, scale)
        with torch.device("meta"):
            from nextstep.estimate.counting import on_meta
            from nextstep.model.folder import find_folder, read_model_config
            from nextstep.model.nextstep import NextStepModel

            config = read_model_config(find_folder(scale.recipe or BASE))
            parameters = sum(p.numel() for p in on_meta(NextStepModel, config).parameters())
        length, tokens = 96, 64
        batch = FinetuneSettings(Path(), Path()).batch_of(way.pictures) if way.pictures else 0
        samples = (2 if scale.tiny else batch) * _steps(way, scale)
        work = Work(
            samples * length, samples * length * length / 2, samples * (length - tokens),
            samples * tokens, samples * tokens, config.fm_head_batch_mul,
        )  # fmt: skip
        pictures = (2 + len(_tasks(scale))) * items_of(scale)
        return StudyCost(samples * length, train_flops(config, work), parameters, pictures)

    def train(self, unit: StudyUnit) -> bool:
        """Fine-tune, or go on with it."""
        way = _way(unit.arm, unit.scale)
        if not way.pictures or (unit.run / SHEET).exists():
            return True
        settings = self.settings(unit)
        size = _parts(settings.model).defaults.height
        write_set(settings.data, shots(way.pictures, unit.seed, held_out=False), size)
        return finetune(settings, tell=lambda _: None).finished

    def measure(self, unit: StudyUnit) -> MeasuredUnit:
        """What was learned, learned by heart, and forgotten."""
        way = _way(unit.arm, unit.scale)
        parts = _trained(unit, way)
        pipeline = NextStepPipeline(*parts)
        items: dict[str, Mapping[str, float]] = {}
        count = items_of(unit.scale)
        for figure, held_out in (("score new objects", True), ("score own objects", False)):
            pool = shots(count, unit.seed, held_out)
            items[figure], items[f"object of {figure}"] = _scores(pipeline, pool)
        kept = score_world(pipeline, unit.folder / "kept", _tasks(unit.scale), count)
        items["score kept"] = by_task(kept)["score"]
        few = min(LOSS_PICTURES, 2 * count)
        own = min(few, way.pictures or few)
        for figure, pool in (
            ("loss own pictures", shots(own, unit.seed, held_out=False)),
            ("loss new objects", shots(few, unit.seed, held_out=True)),
        ):
            items[figure] = losses(parts.model.float(), _documents(parts, pool)).items["im_loss"]
        took = spent(unit.run / RUN / "log.jsonl") if way.pictures else {}
        return MeasuredUnit({}, items, {}, took)

    def conclude(self, results: StudyResults) -> Conclusion:
        """Stable where a set teaches the style and costs little of what was known."""
        ways = [way for way in _ways(results.scale) if way.pictures]
        gains, lost = (
            {way.name: results.difference(way.name, UNTRAINED, figure) for way in ways}
            for figure in ("score new objects", "score kept")
        )
        good = [
            way for way in ways
            if gains[way.name].low > LEARNED and lost[way.name].low > -LOST
        ]  # fmt: skip
        bad = [
            way for way in ways
            if gains[way.name].high < LEARNED or lost[way.name].high < -LOST
        ]  # fmt: skip
        verdict: Verdict = "not reproduced"
        if len(bad) == len(ways):
            verdict = "reproduced"
        elif good:
            verdict = "contradicted"
        told = [f"{way.title}: {gains[way.name]:+.2f} and {lost[way.name]:+.2f}" for way in ways]
        reason = (
            "Score of new objects in the new style, and of what was known, less the untrained "
            f"model's: {'; '.join(told)}. A set is learned well when the first gains {LEARNED} and "
            f"the second loses less than {LOST}."
        )
        return Conclusion(verdict, reason, [_table(results)], [_plot(results)])


def _tasks(scale: Scale) -> Sequence[str]:
    return KEPT_TASKS[:1] if scale.tiny else KEPT_TASKS


def _ways(scale: Scale) -> tuple[_Way, ...]:
    if scale.tiny:
        return (_Way(0), *(_Way(n, full) for n in TINY_SIZES for full in (False, True)))
    every = [_Way(n, full) for n in SIZES for full in (False, True)]
    return (_Way(0), *every, *(_Way(n, short=True) for n in SIZES))


def _way(arm: Arm, scale: Scale) -> _Way:
    return next(way for way in _ways(scale) if way.name == arm.name)


def _steps(way: _Way, scale: Scale) -> int:
    if not way.pictures:
        return 0
    if scale.tiny:
        return TINY_STEPS
    steps = FinetuneSettings(Path(), Path()).steps_of(way.pictures)
    return round(steps * SHORT) if way.short else steps


def _parts(model: str) -> Parts:
    return load_parts(model)._replace(vocabulary=None)


def _trained(unit: StudyUnit, way: _Way) -> Parts:
    """The model of an arm, its adapter merged."""
    base = unit.scale.recipe or BASE
    if way.full:
        return _parts(str(unit.run / MODEL))
    parts = _parts(base)
    if way.pictures:
        merge_adapter_folder(parts, unit.run / ADAPTER)
    return parts


def _scores(
    pipeline: NextStepPipeline, pool: Sequence[Shot]
) -> tuple[dict[str, float], dict[str, float]]:
    """Of every picture asked for: all right; and the object right, whatever its style."""
    size = pipeline.defaults.height
    asked = [shot.question(index) for index, shot in enumerate(pool)]
    answers = ModelAnswerer(pipeline, size).answer(asked)
    outputs = [answer.outputs for answer in answers]
    scorer = Scorer(shipped_detector(JUDGED), size)
    verdicts = scorer.judge(asked, outputs)
    right = {f"{n:05d}": verdict.score for n, verdict in enumerate(verdicts)}
    named = {
        f"{n:05d}": float(not any(f" {shot.label} asked," in reason for reason in verdict.reasons))
        for n, (verdict, shot) in enumerate(zip(verdicts, pool, strict=True))
    }
    return right, named


def _documents(parts: Parts, pool: Sequence[Shot]) -> HeldOut:
    """Captions with the image tokens of their pictures."""
    size, tokenizer = parts.defaults.height, parts.image_tokenizer.float()
    grid = tokenizer.grid(size, size)
    found = []
    for number, shot in enumerate(pool):
        tokens = tokenizer.encode_tokens(to_pixels([render(shot.scene, size)]))[0].clone()
        sequence = build_sequence(text_to_image(shot.caption, grid), parts.text_tokenizer)
        key = derived_seed("lab small sets loss", number)
        found.append((Document(f"{number:05d}", sequence, (0,), key), [tokens.float()]))
    return HeldOut(found, tokenizer)


FIGURES = (
    "score new objects", "score own objects", "score kept", "loss own pictures", "loss new objects",
)  # fmt: skip


def _table(results: StudyResults) -> Table:
    rows = []
    for arm in results.arms:
        cells = [f"{results.estimate(arm.name, figure):.3f}" for figure in FIGURES]
        gap = statistics.fmean(results.values(arm.name, "loss new objects")) - statistics.fmean(
            results.values(arm.name, "loss own pictures")
        )
        rows.append((arm.title, *cells, f"{gap:+.3f}"))
    head = (
        "fine-tuning", "new objects", "own objects", "what was known", "loss, own pictures",
        "loss, new objects", "gap",
    )  # fmt: skip
    return Table("Learned, learned by heart, forgotten", head, rows)


def _plot(results: StudyResults) -> Plot:
    def paint(figure: Figure) -> None:
        axes = figure.subplots(1, 2, sharey=True)
        for one, name, title in zip(
            axes, ("score new objects", "score kept"), ("new style, new objects", "what was known"),
            strict=True,
        ):  # fmt: skip
            base = results.estimate(UNTRAINED, name)
            one.axhline(base.value, color="#888888", linestyle=":", label="untrained")
            ways = [way for way in _ways(results.scale) if way.pictures]
            lines = list(dict.fromkeys((way.full, way.short) for way in ways))
            for (full, short), colour in zip(lines, colours(len(lines)), strict=True):
                mine = [way for way in ways if (way.full, way.short) == (full, short)]
                label = "all weights" if full else f"LoRA{', fewer steps' * short}"
                found = [results.estimate(way.name, name) for way in mine]
                with_intervals(one, [way.pictures for way in mine], found, label, colour)
            one.set_xscale("log")
            one.set_xlabel("pictures")
            one.set_title(title)
        axes[0].set_ylabel("score")
        axes[0].legend(fontsize=8)

    return Plot("sets", "Score against the size of the set.", paint)
