"""WISE: pictures that need knowledge of the world, graded by a model that is told the answer.

Niu et al. 2025 (arXiv 2503.07265) and its scorer, PKU-YuanGroup/WISE. The paper's number and the
later "verified" set have other prompts, other grades and other weights: two benchmarks here, whose
numbers are never put into one table.

Legend: R rows of a bootstrap (the set itself and its resamples).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
    Role,
    missing_pictures,
)
from nextstep.evaluate.benchmarks.files import read_any_json, read_lines, wanted
from nextstep.evaluate.benchmarks.statistics import Means
from nextstep.evaluate.judges.protocol import UnreadableError, ask_until_read

GRADES = ("consistency", "realism", "aesthetic_quality")
WEIGHTS = (0.7, 0.2, 0.1)
HIGHEST = 2
SYSTEM = "You grade generated images, strictly and only by the rules that you are given."
QUESTION = """Grade the image against the request below on three scales from 0 to 2.

Request: "{prompt}"
What it means: "{explanation}"

Consistency: 0 when the image misses what the request is about or contradicts it, 1 when only part
of it is right, 2 when everything that the request means is there without a fault.
Realism: 0 when the image could not exist physically or is plainly artificial, 1 when it is
believable with visible faults, 2 when it cannot be told from a photograph.
Aesthetic Quality: 0 when the image is unpleasant or poorly composed, 1 when it is ordinary, 2 when
it is outstanding.

Give a 2 rarely, and the lower grade in any doubt. Answer with exactly three lines:
Consistency: <grade>
Realism: <grade>
Aesthetic Quality: <grade>"""
VERIFIED_QUESTION = """Does the image show what the request below means, every necessary part of it?

Request: "{prompt}"
What it means: "{explanation}"

Answer with exactly one line, 1 when it does and 0 when anything necessary is wrong or missing:
Score: <0 or 1>"""


class Wise(Benchmark):
    """1,000 prompts of six kinds of knowledge, one picture each."""

    name: ClassVar[str] = "wise"
    title: ClassVar[str] = "WISE"
    licence: ClassVar[str] = UNVERIFIED
    source: ClassVar[str] = "github.com/PKU-YuanGroup/WISE, data/"
    data_help: ClassVar[str] = "folder of the three official JSON files"
    data_patterns: ClassVar[Sequence[str]] = ("*.json",)
    repeats: ClassVar[int] = 1
    roles: ClassVar[Mapping[str, Role]] = {
        "judge": Role(("gpt-4o-2024-05-13",), ("ask",), own_prompt=True)
    }
    primary: ClassVar[str] = "overall"
    sizes: ClassVar[Mapping[str, int]] = {
        "cultural": 400, "time": 167, "space": 133, "biology": 100, "physics": 100,
        "chemistry": 100,
    }  # fmt: skip
    published: ClassVar[Mapping[str, Mapping[str, float]]] = {
        "NextStep-1": dict(
            cultural=0.51, time=0.54, space=0.61, biology=0.52, physics=0.63, chemistry=0.48,
            overall=0.54,
        ),
        "NextStep-1 (Self-CoT)": dict(
            cultural=0.70, time=0.65, space=0.69, biology=0.63, physics=0.73, chemistry=0.52,
            overall=0.67,
        ),
        "NextStep-1 (rewritten prompts)": {"overall": 0.79},
        "NextStep-1 (rewritten prompts, Self-CoT)": {"overall": 0.83},
    }  # fmt: skip

    data_files: ClassVar[Sequence[str]] = (
        "cultural_common_sense.json", "spatio-temporal_reasoning.json", "natural_science.json",
    )  # fmt: skip
    weights: ClassVar[Mapping[str, float]] = {
        "cultural": 0.4, "time": 0.167, "space": 0.133, "biology": 0.1, "physics": 0.1,
        "chemistry": 0.1,
    }  # fmt: skip
    question: ClassVar[str] = QUESTION

    def read(self, data: Path) -> list[Item]:
        """See `Benchmark.read`."""
        items = []
        for name in self.data_files:
            records = read_any_json(data / name)
            if not isinstance(records, list):
                raise NextStepError(f"{data / name} must hold a list")
            for number, record in enumerate(records):
                where = f"entry {number} of {data / name}"
                key = wanted(record, "prompt_id", int, where)
                prompt = wanted(record, "Prompt", str, where)
                wanted(record, "Explanation", str, where)
                items.append(Item(str(key), prompt, self.category(key), record))
        return self.check_items(sorted(items, key=lambda item: int(item.key)), data)

    @classmethod
    def category(cls, number: int) -> str:
        """The kind of a prompt, by its number: the kinds follow one another in the set.

        Raises:
            NextStepError: for a number that the set does not have.
        """
        last = 0
        for name, size in cls.sizes.items():
            if last < number <= last + size:
                return name
            last += size
        raise NextStepError(f"prompts of WISE are numbered from 1 to {last}, not {number}")

    def files(self, item: Item, model: str) -> list[str]:
        """See `Benchmark.files`."""
        return [f"{item.key}.png"]

    def lowest(self, item: Item) -> dict[str, float]:
        """See `Benchmark.lowest`."""
        return grades_values((0, 0, 0))

    def measure(self, item: Item, outputs: ItemOutput, judges: Judges) -> Measurement:
        """See `Benchmark.measure`."""
        measured = Measurement(self.lowest(item), missing_pictures(outputs))
        picture = outputs.pictures[0]
        if picture is None:
            return measured
        template = self.judge_prompt or self.question
        question = template.replace("{prompt}", item.prompt)
        question = question.replace("{explanation}", str(item.record["Explanation"]))
        found = measured.attempt(
            "grades", None, ask_until_read, judges["judge"], question, [picture],
            self.read_answer, system=SYSTEM,
        )  # fmt: skip
        if found is not None:
            measured.values, measured.evidence = found[0], {"answer": found[1]}
        return measured

    def read_answer(self, answer: str) -> dict[str, float]:
        """Columns from a judge's answer.

        Raises:
            UnreadableError: when a grade is missing or off the scale.
        """
        return grades_values(read_grades(answer))

    def metrics(self, means: Means) -> dict[str, np.ndarray]:
        """See `Benchmark.metrics`; overall weighs the kinds as the official scorer does."""
        kinds = {name: means.of("score", name) for name in self.weights}
        overall = sum(weight * kinds[name] for name, weight in self.weights.items())
        return {"overall": np.asarray(overall), **kinds}

    def read_results(self, path: Path, items: Sequence[Item]) -> dict[str, Measurement]:
        """From the scores file of gpt_eval.py (or a folder of them)."""
        found = {}
        for file in sorted(path.glob("*scores_results.jsonl")) if path.is_dir() else [path]:
            for number, line in enumerate(read_lines(file)):
                where = f"line {number + 1} of {file}"
                key = str(wanted(line, "prompt_id", int, where))
                found[key] = self._imported(line, where)
        return found

    def _imported(self, line: Mapping[str, object], where: str) -> Measurement:
        grades = [wanted(line, name, (int, float), where) for name in GRADES]  # type: ignore[arg-type]
        # The official scorer writes 999 for an answer that it could not read.
        if any(not 0 <= grade <= HIGHEST for grade in grades):
            return Measurement(grades_values((0, 0, 0)), ["the official scorer could not read it"])
        return Measurement(grades_values(grades))


class WiseVerified(Wise):
    """The verified set: 1,000 prompts, right or wrong, other weights and another judge."""

    name: ClassVar[str] = "wise-verified"
    title: ClassVar[str] = "WISE-Verified"
    source: ClassVar[str] = "github.com/PKU-YuanGroup/WISE, data_verified/"
    roles: ClassVar[Mapping[str, Role]] = {
        "judge": Role(("Qwen3.5-35B-A3B",), ("ask",), own_prompt=True)
    }
    sizes: ClassVar[Mapping[str, int]] = {
        "cultural": 400, "time": 120, "space": 120, "biology": 120, "physics": 120,
        "chemistry": 120,
    }  # fmt: skip
    published: ClassVar[Mapping[str, Mapping[str, float]]] = {}
    data_files: ClassVar[Sequence[str]] = tuple(
        name.replace(".json", "_verified.json") for name in Wise.data_files
    )
    weights: ClassVar[Mapping[str, float]] = {
        "cultural": 0.4, "time": 0.12, "space": 0.12, "biology": 0.12, "physics": 0.12,
        "chemistry": 0.12,
    }  # fmt: skip
    question: ClassVar[str] = VERIFIED_QUESTION

    def lowest(self, item: Item) -> dict[str, float]:
        """See `Benchmark.lowest`."""
        return {"score": 0.0}

    def read_answer(self, answer: str) -> dict[str, float]:
        """See `Wise.read_answer`."""
        found = re.findall(r"score\W*([01])\b", answer, re.IGNORECASE)
        if len(set(found)) != 1:
            raise UnreadableError("no score of 0 or 1")
        return {"score": float(found[0])}

    def _imported(self, line: Mapping[str, object], where: str) -> Measurement:
        score = wanted(line, "score", (int, float), where)  # type: ignore[arg-type]
        if score not in (0, 1):
            return Measurement({"score": 0.0}, ["the official scorer could not read it"])
        return Measurement({"score": float(score)})


def read_grades(answer: str) -> tuple[int, int, int]:
    """Consistency, realism and aesthetic quality from an answer; the last of each counts.

    Raises:
        UnreadableError: when one is missing or not 0, 1 or 2.
    """
    found = {}
    pattern = r"(consistency|realism|aesthetic[ _]quality)\**\s*[:\uff1a]?\s*\**\s*(\d+(?:\.\d+)?)"
    for name, grade in re.findall(pattern, answer, re.IGNORECASE):
        found[name.lower().replace(" ", "_")] = grade
    try:
        grades = [int(found[name]) for name in GRADES]
    except (KeyError, ValueError):
        raise UnreadableError("three whole grades are needed") from None
    if any(grade > HIGHEST for grade in grades):
        raise UnreadableError("a grade is above 2")
    return grades[0], grades[1], grades[2]


def grades_values(grades: Sequence[float]) -> dict[str, float]:
    """Columns of three grades: the WiScore, and each grade."""
    score = sum(w * grade for w, grade in zip(WEIGHTS, grades, strict=True)) / HIGHEST
    return {"score": score, **dict(zip(GRADES, map(float, grades), strict=True))}
