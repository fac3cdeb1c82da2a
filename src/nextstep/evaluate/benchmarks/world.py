"""The emoji world as a benchmark: its set is a plan, its judge ships with this package.

RUN/images/TASK/SPLIT/00000.json     texts, names of picture files and seconds of one answer
RUN/images/TASK/SPLIT/00000-0.png    its pictures
RUN/card.json                        the scores by task, split and group

Legend: R rows of a bootstrap (the set itself and its resamples).
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from PIL import Image

from nextstep.errors import NextStepError
from nextstep.evaluate.benchmarks.base import (
    Item,
    ItemOutput,
    Judges,
    Measurement,
    Output,
    OwnBenchmark,
    Role,
)
from nextstep.evaluate.benchmarks.files import (
    read_any_json,
    read_lines,
    read_picture,
    write_below,
)
from nextstep.evaluate.benchmarks.generation import OWN_SET, Run, Settings, generate, made_by
from nextstep.evaluate.benchmarks.scoring import Scored, score
from nextstep.evaluate.benchmarks.statistics import Means, Row
from nextstep.evaluate.judges.protocol import Judge
from nextstep.evaluate.world import answering
from nextstep.evaluate.world.answering import Answer, Answerer, round_trip
from nextstep.evaluate.world.card import group_metrics, run_card
from nextstep.evaluate.world.detector import shipped_detector
from nextstep.evaluate.world.questions import WorldQuestion
from nextstep.evaluate.world.run import Plan
from nextstep.evaluate.world.scoring import Scorer, Verdict
from nextstep.image.encode import encode
from nextstep.model.folder import find_folder, read_model_config, vae_folder
from nextstep.utils.files import write_json
from nextstep.vae.files import load_image_tokenizer
from nextstep.world import examples
from nextstep.world.scenes import render

if TYPE_CHECKING:
    from nextstep.evaluate.benchmarks.report import Report
    from nextstep.pipeline import NextStepPipeline
    from nextstep.vae.tokenizer import ImageTokenizer

TOGETHER = 32
"""Questions that are answered before their answers are written, and judged together."""
PICTURES_BEFORE = 3
"""Given pictures that a sheet shows at most; a recall has eight, and the last tell enough."""


class WorldJudge(Judge):
    """The scorer of the emoji world, which knows what every picture should show.

    Args:
        scorer: that judges answers.
    """

    name = "world-scorer"
    deterministic = True

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def verdicts(
        self, questions: Sequence[WorldQuestion], answers: Sequence[Answer]
    ) -> list[Verdict]:
        """Verdicts on answers, in their order."""
        return self.scorer.judge(list(questions), [answer.outputs for answer in answers])


@dataclass(frozen=True)
class WorldOutput(Output):
    """An answer as it was made.

    Attributes:
        answer: texts and pictures in the order in which they were asked for.
    """

    answer: Answer = field(default_factory=lambda: Answer((), 0.0))


@dataclass(frozen=True)
class WorldItemOutput(ItemOutput):
    """An answer as it is judged.

    Attributes:
        answer: None when a part of it is missing or damaged.
    """

    answer: Answer | None = None


class World(OwnBenchmark):
    """Fixed scenes of the emoji world, made by this package; the world itself knows the truth.

    Args:
        judge_prompt: see `Benchmark`; nobody is asked in words here.
        answerer: who answers, when that is neither a pipeline nor the truth.
    """

    name: ClassVar[str] = "world"
    title: ClassVar[str] = "Emoji world"
    licence: ClassVar[str] = "Apache-2.0, made by this package"
    source: ClassVar[str] = "nextstep.world"
    data_help: ClassVar[str] = "plan of an earlier run, its set.json"
    repeats: ClassVar[int] = 1
    own_set: ClassVar[bool] = True
    judged_together: ClassVar[int] = TOGETHER
    roles: ClassVar[Mapping[str, Role]] = {"scorer": Role((WorldJudge.name,), ())}
    primary: ClassVar[str] = "all"

    def __init__(self, judge_prompt: str | None = None, answerer: Answerer | None = None) -> None:
        super().__init__(judge_prompt)
        self.answerer = answerer

    def read(self, data: Path) -> list[Item]:
        """See `Benchmark.read`."""
        plan = Plan.read(data)
        asked = [one for pair in plan.pairs for one in plan.questions(*pair)]
        items = [
            Item(
                one.key, one.example.prompt(one.asked[-1]), f"{one.task}/{one.split}",
                {"question": one, "plan": plan},
            )
            for one in asked
        ]  # fmt: skip
        return self.check_items(items, data)

    def set_hash(self, data: Path) -> str:
        """See `Benchmark.set_hash`; other tasks and more items of them are the same set."""
        return Plan.read(data).identity()

    @classmethod
    def complete(cls, items: Sequence[Item]) -> bool:
        """See `Benchmark.complete`; there are no published numbers to compare with."""
        return True

    def together(self, batch_size: int) -> int:
        """See `Benchmark.together`; conversations go side by side."""
        return max(TOGETHER, batch_size)

    def make(
        self, pipeline: NextStepPipeline | None, items: Sequence[Item], batch_size: int
    ) -> list[Output]:
        """See `OwnBenchmark.make`; questions are put as they stand."""
        plan: Plan = items[0].record["plan"]
        asked: list[WorldQuestion] = [item.record["question"] for item in items]
        if self.answerer is not None:
            return _answered(self.answerer, asked)
        if plan.answers != "model":
            tokenizer = None
            if plan.answers == "decoded" and pipeline is not None:
                tokenizer = pipeline.image_tokenizer
            return _answered(answering.Truth(plan.size, tokenizer), asked)
        assert pipeline is not None
        vocabulary, pipeline.vocabulary = pipeline.vocabulary, None
        try:
            return _answered(answering.ModelAnswerer(pipeline, plan.size, batch_size), asked)
        finally:
            pipeline.vocabulary = vocabulary

    def files(self, item: Item, model: str) -> list[str]:
        """See `Benchmark.files`; the record comes last, so what it names is there."""
        question: WorldQuestion = item.record["question"]
        parts = [question.example.parts[place] for place in question.asked]
        pictures = [n for n, part in enumerate(parts) if isinstance(part, examples.ImagePart)]
        return [*(f"{item.key}-{number}.png" for number in pictures), f"{item.key}.json"]

    def write(self, folder: Path, item: Item, output: Output, model: str) -> None:
        """See `Benchmark.write`."""
        assert isinstance(output, WorldOutput)
        question: WorldQuestion = item.record["question"]
        told = []
        for number, part in enumerate(output.answer.outputs):
            if isinstance(part, str):
                told.append({"text": part})
                continue
            name = f"{item.key}-{number}.png"
            prompt = question.example.prompt(question.asked[number])
            data = encode(Image.fromarray(part), texts={"prompt": prompt})
            write_below(folder, name, data)
            told.append({"picture": name.rpartition("/")[2]})
        record = {"outputs": told, "seconds": round(output.answer.seconds, 4)}
        text = json.dumps(record, ensure_ascii=False, indent=2)
        write_below(folder, f"{item.key}.json", text.encode())

    def outputs(self, folder: Path, item: Item, model: str) -> WorldItemOutput:
        """See `Benchmark.outputs`."""
        path = folder / f"{item.key}.json"
        if not path.exists():
            return WorldItemOutput([None], sources=self.sources(item))
        record = read_any_json(path)
        outputs = [
            one["text"] if "text" in one else read_picture(path.parent / one["picture"])
            for one in record["outputs"]
        ]
        pictures = [one for one in outputs if not isinstance(one, str)]
        text = "\n".join(one for one in outputs if isinstance(one, str))
        whole = tuple(one if isinstance(one, str) else np.asarray(one) for one in outputs)
        answer = None if None in pictures else Answer(whole, record["seconds"])
        return WorldItemOutput(pictures, text, self.sources(item), answer)

    def sources(self, item: Item) -> list[Image.Image]:
        """The last of the pictures that the model is given."""
        question: WorldQuestion = item.record["question"]
        given = [
            part.scene
            for place, part in enumerate(question.example.parts)
            if isinstance(part, examples.ImagePart) and place not in question.asked
        ]
        size = item.record["plan"].size
        return [Image.fromarray(render(scene, size)) for scene in given[-PICTURES_BEFORE:]]

    def lowest(self, item: Item) -> dict[str, float]:
        """See `Benchmark.lowest`."""
        return {"score": 0.0}

    def measure(self, item: Item, outputs: ItemOutput, judges: Judges) -> Measurement:
        """See `Benchmark.measure`."""
        return self.measure_all([item], [outputs], judges)[0]

    def measure_all(
        self, items: Sequence[Item], outputs: Sequence[ItemOutput], judges: Judges
    ) -> list[Measurement]:
        """See `Benchmark.measure_all`; all pictures are looked at together."""
        judge = judges["scorer"]
        if not isinstance(judge, WorldJudge):
            raise NextStepError(f"the judge {judge.name} does not know the emoji world's scenes")
        answers = {
            item.key: one.answer
            for item, one in zip(items, outputs, strict=True)
            if isinstance(one, WorldItemOutput) and one.answer is not None
        }
        there = [item for item in items if item.key in answers]
        verdicts = judge.verdicts(
            [item.record["question"] for item in there], [answers[item.key] for item in there]
        )
        told = {verdict.key: verdict for verdict in verdicts}
        return [
            _measured(told[item.key], answers[item.key].seconds)
            if item.key in told
            else Measurement(self.lowest(item), ["the answer is missing or cannot be read"])
            for item in items
        ]

    def metrics(self, means: Means) -> dict[str, np.ndarray]:
        """See `Benchmark.metrics`: all items, groups of tasks, tasks, and what is told of them.

        A group's mean is that of its tasks.
        """
        pairs = [(task, split) for task, _, split in (g.partition("/") for g in means.groups)]
        found = {"all": means.of("score"), **group_metrics(means, pairs)}
        for pair in means.groups:
            found[pair] = means.of("score", pair)
            columns = dict.fromkeys(
                column for row in means.rows if row.group == pair for column in row.values
            )
            found |= {f"{pair}: {c}": means.of(c, pair) for c in columns if c != "score"}
        return found

    def own_judges(self, manifest: Mapping[str, Any], items: Sequence[Item]) -> dict[str, Judge]:
        """See `Benchmark.own_judges`; edits are measured through the model's image tokenizer."""
        weights, plan = manifest["weights"], items[0].record["plan"]
        folder = find_folder(weights["model"])
        vae = vae_folder(folder, read_model_config(folder), weights["vae"])
        return {"scorer": judge_for(plan, load_image_tokenizer(vae, torch.float32))}

    def write_more(self, report: Report) -> list[Path]:
        """The scores by task, split and group, for programs."""
        path = report.run.folder / "card.json"
        write_json(path, run_card(report))
        return [path]


def judge_for(plan: Plan, tokenizer: ImageTokenizer) -> WorldJudge:
    """The shipped scorer for a plan's pictures, which went through an image tokenizer."""
    detector = shipped_detector(plan.edition)
    return WorldJudge(Scorer(detector, plan.size, lambda picture: round_trip(picture, tokenizer)))


def _answered(who: Answerer, asked: Sequence[WorldQuestion]) -> list[Output]:
    """Answers to questions, those of one task together."""
    return [
        WorldOutput((), answer=answer)
        for _, some in itertools.groupby(asked, key=lambda one: one.task)
        for answer in who.answer(list(some))
    ]


def begin(
    plan: Plan,
    folder: Path,
    pipeline: NextStepPipeline,
    model: str,
    batch_size: int = 8,
    limit: int | None = None,
    weights: Mapping[str, str | None] | None = None,
) -> tuple[Run, Settings]:
    """A run of a plan, new or gone on with, and the settings to make it with.

    Args:
        plan: what is asked.
        folder: of the run.
        pipeline: model and tokenizers.
        model: its name in reports.
        batch_size: pictures made together.
        limit: items at most, taken evenly; None for all.
        weights: see `Run.begin`.

    Raises:
        NextStepError: when the folder holds another run, or files of something else.
    """
    settings, benchmark = Settings(plan.size, plan.seed, batch_size, limit, {}), World()
    producer = made_by(benchmark, pipeline, model, settings)
    return _begun(plan, folder, benchmark, producer, settings, weights), settings


def evaluate(
    plan: Plan,
    answerer: Answerer,
    scorer: Scorer,
    folder: Path,
    who: str,
    on_items: Callable[[int], None] | None = None,
) -> list[Scored]:
    """Ask somebody everything that is not answered yet, and judge what is not judged yet.

    Args:
        plan: what to ask.
        answerer: who answers.
        scorer: who judges.
        folder: of the run, new or gone on with.
        who: name of the answerer that tells it from others, such as a hash of its weights.
        on_items: told how many items are answered whenever some are.

    Raises:
        NextStepError: when the folder holds another run.
    """
    settings, benchmark = Settings(plan.size, plan.seed, sampling={}), World(answerer=answerer)
    producer = {"model": who, "model_hash": who, "adapter": {}, "settings": {}, "versions": {}}
    run = _begun(plan, folder, benchmark, producer, settings, None)
    generate(run, None, settings, on_items)
    return score(run, {"scorer": WorldJudge(scorer)}, WorldJudge.name)


def _begun(
    plan: Plan, folder: Path, benchmark: World, producer: Mapping[str, Any], settings: Settings,
    weights: Mapping[str, str | None] | None,
) -> Run:  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / OWN_SET
        path.write_text(plan.to_json(), "utf-8")
        return Run.begin_as(folder, benchmark, path, producer, settings, weights)


def _measured(verdict: Verdict, seconds: float) -> Measurement:
    """A verdict in columns; a part of the task is a column of its own."""
    values = {"score": verdict.score, **verdict.measures}
    if verdict.part:
        values[verdict.part] = verdict.score
    evidence = {"reasons": list(verdict.reasons), "part": verdict.part, "seconds": seconds}
    return Measurement(values, [], evidence)


def earlier_rows(path: Path) -> list[Row]:
    """What an evaluation of an earlier version measured, from its verdicts.jsonl.

    Raises:
        NextStepError: when the file is damaged.
    """
    try:
        return [
            Row(one["key"], one["key"].rpartition("/")[0], {"score": float(one["score"])})
            for one in read_lines(path)
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NextStepError(f"{path} cannot be read as verdicts: {error}") from None
