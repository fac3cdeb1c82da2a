"""DPG-Bench: yes-or-no questions about long prompts, each of use only where its parents hold.

Hu et al. 2024 (arXiv 2403.05135) and its scorer in TencentQQGYLab/ELLA.

Legend: R rows of a bootstrap (the set itself and its resamples).
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from nextstep.errors import NextStepError
from nextstep.evaluate.benchmarks.base import (
    UNVERIFIED,
    Benchmark,
    Item,
    ItemOutput,
    Judges,
    Measurement,
    Output,
    Role,
    column_mean,
    missing_pictures,
)
from nextstep.evaluate.benchmarks.files import (
    cells_of,
    encoded,
    grid_of,
    read_picture,
    write_below,
)
from nextstep.evaluate.benchmarks.statistics import Means

COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")
SIDE = 2


@dataclass(frozen=True)
class Question:
    """A question about a prompt.

    Attributes:
        number: of the proposition.
        parents: numbers of the questions without which it makes no sense.
        category: such as "entity - whole".
        text: what is asked.
    """

    number: int
    parents: tuple[int, ...]
    category: str
    text: str


class DPGBench(Benchmark):
    """1,065 long prompts, four pictures each in one grid."""

    name: ClassVar[str] = "dpg-bench"
    title: ClassVar[str] = "DPG-Bench"
    licence: ClassVar[str] = UNVERIFIED
    source: ClassVar[str] = "github.com/TencentQQGYLab/ELLA, dpg_bench/dpg_bench.csv"
    data_help: ClassVar[str] = "dpg_bench.csv"
    roles: ClassVar[Mapping[str, Role]] = {
        "judge": Role(("damo/mplug_visual-question-answering_coco_large_en",), ("ask",))
    }
    primary: ClassVar[str] = "score"
    sizes: ClassVar[Mapping[str, int]] = {"": 1065}
    published: ClassVar[Mapping[str, Mapping[str, float]]] = {"NextStep-1": {"score": 85.28}}

    def read(self, data: Path) -> list[Item]:
        """See `Benchmark.read`."""
        try:
            with data.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
        except (OSError, UnicodeDecodeError) as error:
            raise NextStepError(f"{data} cannot be read: {error}") from None
        texts: dict[str, str] = {}
        questions: dict[str, list[Question]] = {}
        for line, row in enumerate(rows, 2):
            if any(row.get(name) is None for name in COLUMNS):
                raise NextStepError(f"line {line} of {data} lacks one of {', '.join(COLUMNS)}")
            texts[row["item_id"]] = row["text"]
            questions.setdefault(row["item_id"], []).append(
                _question(row, f"line {line} of {data}")
            )
        items = [Item(key, text, "", {"questions": questions[key]}) for key, text in texts.items()]
        return self.check_items(items, data)

    def files(self, item: Item, model: str) -> list[str]:
        """See `Benchmark.files`."""
        return [f"{item.key}.png"]

    def write(self, folder: Path, item: Item, output: Output, model: str) -> None:
        """Four pictures in a grid, which the scorer cuts by --resolution and --pic-num 4."""
        grid = grid_of([one.image for one in output.pictures], SIDE)
        record = output.pictures[0].settings
        write_below(folder, f"{item.key}.png", encoded(grid, f"{item.key}.png", record))

    def outputs(self, folder: Path, item: Item, model: str) -> ItemOutput:
        """See `Benchmark.outputs`."""
        grid = read_picture(folder / f"{item.key}.png")
        return ItemOutput([None] * self.repeats if grid is None else cells_of(grid, SIDE))

    def lowest(self, item: Item) -> dict[str, float]:
        """See `Benchmark.lowest`."""
        questions = item.record["questions"]
        return _values(questions, [{one.number: False for one in questions}])

    def measure(self, item: Item, outputs: ItemOutput, judges: Judges) -> Measurement:
        """See `Benchmark.measure`."""
        measured = Measurement(failures=missing_pictures(outputs))
        questions: list[Question] = item.record["questions"]
        answers: list[dict[int, bool]] = []
        said: list[list[str]] = []
        for picture in outputs.pictures:
            answers.append({one.number: False for one in questions})
            said.append([])
            for one in questions if picture is not None else ():
                ask = judges["judge"].ask
                text = measured.attempt(one.text, "", ask, one.text, [picture])
                said[-1].append(text)
                answers[-1][one.number] = is_yes(text)
        measured.values = _values(questions, answers)
        measured.evidence = {"answers": said}
        return measured

    def metrics(self, means: Means) -> dict[str, np.ndarray]:
        """See `Benchmark.metrics`; categories are shares of answered questions, without parents."""
        names = sorted({k[:-4] for row in means.rows for k in row.values if k.endswith(" yes")})
        by_category = {
            name: 100 * means.of(f"{name} yes") / means.of(f"{name} all") for name in names
        }
        return {"score": 100 * means.of("score"), **by_category}

    def read_results(self, path: Path, items: Sequence[Item]) -> dict[str, Measurement]:
        """From the results file of compute_dpg_bench.py: path, a score of each picture, mean."""
        found = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            name, *numbers = line.split(", ")
            try:
                scores = [float(number) for number in numbers]
            except ValueError:
                continue
            if name.endswith(".png") and len(scores) > 1:
                key = Path(name).name.split(".")[0]
                found[key] = Measurement({"score": scores[-1]}, [], {"scores": scores[:-1]})
        return found


def _question(row: Mapping[str, str], where: str) -> Question:
    try:
        parents = tuple(int(one) for one in row["dependency"].split(","))
        number = int(row["proposition_id"])
    except ValueError:
        raise NextStepError(f"{where} has a proposition or dependency that is no number") from None
    category = row["tuple"].split("(")[0].strip()
    return Question(number, parents, category, row["question_natural_language"])


def is_yes(answer: str) -> bool:
    """Whether an answer is yes: the word alone, in any case, with a full stop or without."""
    return answer.strip().strip(".!").lower() == "yes"


def score_of(questions: Sequence[Question], answers: Mapping[int, bool]) -> float:
    """Share of questions answered yes, a question with a parent answered no counting as no.

    Questions are gone through in their order and a no that comes from a parent passes on to
    children, as in the official scorer. A parent that is not among the questions holds.
    """
    holds = dict(answers)
    for one in questions:
        if any(parent and not holds.get(parent, True) for parent in one.parents):
            holds[one.number] = False
    return sum(holds[one.number] for one in questions) / len(questions)


def _values(
    questions: Sequence[Question], answers: Sequence[Mapping[int, bool]]
) -> dict[str, float]:
    values = {"score": column_mean([score_of(questions, one) for one in answers])}
    for one in questions:
        for name in {one.category, one.category.split("-")[0].strip()}:
            yes = column_mean([float(each[one.number]) for each in answers])
            values[f"{name} yes"] = values.get(f"{name} yes", 0.0) + yes
            values[f"{name} all"] = values.get(f"{name} all", 0.0) + 1
    return values
