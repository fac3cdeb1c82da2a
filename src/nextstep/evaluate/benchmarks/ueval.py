"""UEval: answers of text and pictures together, each against a list of rubrics.

Li et al. 2026 (arXiv 2601.22155) and its scorer, zlab-princeton/UEval (MIT). Among the rubrics are
those that ask whether pictures agree with one another and with their steps.

Legend: R rows of a bootstrap (the set itself and its resamples).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from nextstep.errors import NextStepError
from nextstep.evaluate.benchmarks.base import (
    INTERLEAVED,
    Benchmark,
    Item,
    ItemOutput,
    Judges,
    Measurement,
    Output,
    Role,
    column_mean,
)
from nextstep.evaluate.benchmarks.files import (
    encoded,
    read_any_json,
    read_picture,
    wanted,
    write_below,
)
from nextstep.evaluate.benchmarks.statistics import Means
from nextstep.evaluate.judges.protocol import UnreadableError, ask_until_read

OPEN = ("art", "life", "tech", "exercise")
CLOSED = ("space", "textbook", "diagram", "paper")
FORM = """Answer with nothing but a JSON object of this form, true only when the criterion is met
completely and false when anything is missing or cannot be told:
{"criteria_met": <true or false>}"""
QUESTIONS = {
    "text": """A question was answered in words. Decide whether the answer meets one criterion.

Question: {question}
Answer: {answer}
Criterion: {rubric}

"""
    + FORM,
    "image": """A question was answered with the images above. Decide whether they meet one
criterion. What is asked for must be seen in the images; words written into an image do not count
for it. Where the criterion is about steps, an image needs to show the main action of its step.

Question: {question}
Words of the answer: {answer}
Criterion: {rubric}

"""
    + FORM,
}


class UEval(Benchmark):
    """1,000 questions of eight tasks, answered in text and pictures."""

    name: ClassVar[str] = "ueval"
    title: ClassVar[str] = "UEval"
    licence: ClassVar[str] = "MIT"
    source: ClassVar[str] = "huggingface.co/datasets/zlab-princeton/UEval, as JSON"
    data_help: ClassVar[str] = "JSON list of the test split"
    kind: ClassVar[str] = INTERLEAVED
    repeats: ClassVar[int] = 1
    roles: ClassVar[Mapping[str, Role]] = {
        "judge": Role(("gemini-2.5-pro",), ("ask",), own_prompt=True)
    }
    primary: ClassVar[str] = "overall"

    @classmethod
    def complete(cls, items: Sequence[Item]) -> bool:
        """See `Benchmark.complete`; the number of questions and of tasks is what is known."""
        return len(items) == 1000 and len({item.group for item in items}) == 8

    def read(self, data: Path) -> list[Item]:
        """See `Benchmark.read`."""
        records = read_any_json(data)
        if not isinstance(records, list):
            raise NextStepError(f"{data} must hold a list")
        items = []
        for number, record in enumerate(records):
            where = f"entry {number} of {data}"
            prompt = wanted(record, "prompt", str, where)
            task = str(record.get("task") or record.get("task_type") or "").lower()
            if task not in (*OPEN, *CLOSED) or "id" not in record:
                raise NextStepError(f"{where} needs an id and a known task, not '{task}'")
            kept = {
                part: [_criterion(one) for one in record.get(f"{part}_rubrics") or ()]
                for part in ("text", "image")
            }
            if not any(kept.values()):
                raise NextStepError(f"{where} has no rubrics")
            items.append(Item(str(record["id"]), prompt, task, kept))
        return self.check_items(items, data)

    def files(self, item: Item, model: str) -> list[str]:
        """The answer; its pictures are named in it."""
        return [f"answers/{item.key}.json"]

    def write(self, folder: Path, item: Item, output: Output, model: str) -> None:
        """Pictures first, then the answer that names them."""
        names, hashes = [], []
        for number, picture in enumerate(output.pictures):
            names.append(f"images/{item.key}_{number}.png")
            data = encoded(picture.image, names[-1], picture.settings)
            hashes.append(hashlib.sha256(data).hexdigest())
            write_below(folder, names[-1], data)
        answer = {
            "id": item.key, "text_answer": output.text, "image_answer": names, "sha256": hashes,
        }  # fmt: skip
        text = json.dumps(answer, ensure_ascii=False, indent=2)
        write_below(folder, self.files(item, model)[0], text.encode())

    def outputs(self, folder: Path, item: Item, model: str) -> ItemOutput:
        """See `Benchmark.outputs`."""
        path = folder / self.files(item, model)[0]
        if not path.exists():
            return ItemOutput([None])
        answer = read_any_json(path)
        pictures = [read_picture(folder / name) for name in answer["image_answer"]]
        return ItemOutput(pictures, str(answer["text_answer"]))

    def finish(self, folder: Path, items: Sequence[Item], model: str) -> None:
        """All answers in one list, which the official scorer is given."""
        answers = []
        for item in items:
            answer = read_any_json(folder / self.files(item, model)[0])
            answers.append({k: answer[k] for k in ("id", "text_answer", "image_answer")})
        text = json.dumps(answers, ensure_ascii=False, indent=2)
        write_below(folder, "model_outputs.json", text.encode())

    def lowest(self, item: Item) -> dict[str, float]:
        """See `Benchmark.lowest`."""
        return rates({part: [False] * len(item.record[part]) for part in ("text", "image")})

    def measure(self, item: Item, outputs: ItemOutput, judges: Judges) -> Measurement:
        """See `Benchmark.measure`; without a text or a picture its rubrics are not met."""
        measured = Measurement()
        pictures = [one for one in outputs.pictures if one is not None]
        if len(pictures) < max(1, len(outputs.pictures)):
            measured.failures.append("a picture is missing, or there is none")
        if not outputs.text and item.record["text"]:
            measured.failures.append("there is no text")
        satisfied: dict[str, list[bool]] = {}
        for part, seen, there in (
            ("text", [], bool(outputs.text)), ("image", pictures, bool(pictures)),
        ):  # fmt: skip
            satisfied[part] = [
                there and self._met(item, part, rubric, outputs.text, seen, judges, measured)
                for rubric in item.record[part]
            ]
        measured.values, measured.evidence = rates(satisfied), {"met": satisfied}
        return measured

    def _met(
        self, item: Item, part: str, rubric: str, text: str, seen: Sequence[Image.Image],
        judges: Judges, measured: Measurement,
    ) -> bool:  # fmt: skip
        question = self.worded(part, QUESTIONS[part])
        for name, value in (("question", item.prompt), ("answer", text), ("rubric", rubric)):
            question = question.replace(f"{{{name}}}", value)
        found = measured.attempt(
            rubric[:60], None, ask_until_read, judges["judge"], question, seen, read_met
        )
        return found is not None and found[0]

    def metrics(self, means: Means) -> dict[str, np.ndarray]:
        """See `Benchmark.metrics`: rates times 100; overall is the mean of the tasks."""
        return {
            "overall": 100 * means.mean_of_groups("rate"),
            "text": 100 * means.of("text"),
            "image": 100 * means.of("image"),
            **{task: 100 * means.of("rate", task) for task in (*CLOSED, *OPEN)},
        }

    def read_results(self, path: Path, items: Sequence[Item]) -> dict[str, Measurement]:
        """From the results file of ueval_eval.py."""
        told = read_any_json(path)
        entries = told.get("items", told.get("results")) if isinstance(told, dict) else None
        if not isinstance(entries, list):
            raise NextStepError(f"{path} is no result of UEval")
        results = {}
        for entry in entries:
            satisfied = {
                part: [is_met(one.get("criteria_met")) for one in entry.get(f"{part}_results", ())]
                for part in ("text", "image")
            }
            results[str(entry["id"])] = Measurement(rates(satisfied), [], {"met": satisfied})
        return results


def _criterion(rubric: Any) -> str:
    return str(rubric.get("criterion", "") if isinstance(rubric, dict) else rubric)


def is_met(value: Any) -> bool:
    """Whether a criterion is met: true or a word for it; "not sure" is no."""
    if isinstance(value, str):
        return value.strip().lower() in ("true", "yes", "y", "1")
    return value is True


def read_met(answer: str) -> bool:
    """The verdict of an answer.

    Raises:
        UnreadableError: when there is no object with "criteria_met".
    """
    found = re.search(r"\{[^{}]*\}", answer)
    try:
        return is_met(json.loads(found.group())["criteria_met"]) if found else _unread()
    except (ValueError, KeyError, TypeError):
        return _unread()


def _unread() -> bool:
    raise UnreadableError('an object with "criteria_met" is needed')


def rates(satisfied: Mapping[str, Sequence[bool]]) -> dict[str, float]:
    """Columns of an item: the share of rubrics met in text and in pictures, and their mean."""
    found = {
        part: column_mean([float(one) for one in some]) for part, some in satisfied.items() if some
    }
    return {**found, "rate": column_mean(list(found.values()))}
