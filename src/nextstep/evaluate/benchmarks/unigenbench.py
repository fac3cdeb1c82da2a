"""UniGenBench++: 600 prompts, each with one to ten points that hold or do not.

Wang et al. 2025 (arXiv 2510.18701) and its scorer, CodeGoat24/UniGenBench.

Legend: R rows of a bootstrap (the set itself and its resamples).
"""

from __future__ import annotations

import ast
import csv
import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from nextstep.errors import NextStepError
from nextstep.evaluate.benchmarks.base import (
    Benchmark,
    Item,
    ItemOutput,
    Judges,
    Measurement,
    Role,
    column_mean,
    missing_pictures,
)
from nextstep.evaluate.benchmarks.statistics import Means, mean_of
from nextstep.evaluate.judges.protocol import UnreadableError, ask_until_read

DIMENSIONS = (
    "Relationship", "Compound", "Attribute", "Entity Layout", "Action", "Grammar",
    "World Knowledge", "Style", "Text Generation", "Logical Reasoning",
)  # fmt: skip
QUESTION = """The image was generated from this prompt: "{prompt}"

Look only at what can be seen, and decide for each of these points whether the image fulfils it:
{points}

Answer in this form, one entry for each point in the same order:
<analysis>["<one sentence>", ...]</analysis>
<score>[<1 when it is fulfilled, otherwise 0>, ...]</score>"""


class UniGenBench(Benchmark):
    """600 English prompts, four pictures each."""

    name: ClassVar[str] = "unigenbench"
    title: ClassVar[str] = "UniGenBench++ (EN)"
    licence: ClassVar[str] = "MIT (card of huggingface.co/datasets/CodeGoat24/UniGenBench)"
    source: ClassVar[str] = "github.com/CodeGoat24/UniGenBench, data/test_prompts_en.csv"
    data_help: ClassVar[str] = "test_prompts_en.csv, or the long prompts"
    roles: ClassVar[Mapping[str, Role]] = {
        "judge": Role(("gemini-2.5-pro",), ("ask",), own_prompt=True)
    }
    primary: ClassVar[str] = "overall"
    sizes: ClassVar[Mapping[str, int]] = {"": 600}
    language: ClassVar[str] = "en"

    def read(self, data: Path) -> list[Item]:
        """See `Benchmark.read`."""
        try:
            with data.open(encoding="utf-8-sig", newline="") as file:
                rows = list(csv.DictReader(file))
        except (OSError, UnicodeDecodeError) as error:
            raise NextStepError(f"{data} cannot be read: {error}") from None
        items = []
        for line, row in enumerate(rows, 2):
            prompt = row.get(f"prompt_{self.language}")
            points = _points(row.get(f"sub_dims_{self.language}"))
            if not prompt or not points or not (row.get("index") or "").isdigit():
                raise NextStepError(
                    f"line {line} of {data} needs an index, a 'prompt_{self.language}' and test "
                    f"points in 'sub_dims_{self.language}'"
                )
            items.append(Item(row["index"], prompt, "", {"points": points}))
        return self.check_items(items, data)

    def files(self, item: Item, model: str) -> list[str]:
        """See `Benchmark.files`."""
        return [f"{item.key}_{number}.png" for number in range(self.repeats)]

    def lowest(self, item: Item) -> dict[str, float]:
        """See `Benchmark.lowest`."""
        return values_of(item.record["points"], [[0] * len(item.record["points"])])

    def measure(self, item: Item, outputs: ItemOutput, judges: Judges) -> Measurement:
        """See `Benchmark.measure`."""
        measured = Measurement(failures=missing_pictures(outputs))
        points = item.record["points"]
        nothing = [0] * len(points)
        told = "\n".join(f"- {name}: {about}" for name, about in points)
        question = (self.judge_prompt or QUESTION).replace("{prompt}", item.prompt)
        question = question.replace("{points}", told)
        read = functools.partial(read_points, count=len(points))
        scores = []
        for number, picture in enumerate(outputs.pictures):
            scores.append(nothing)
            if picture is not None:
                found = measured.attempt(
                    f"picture {number}", (nothing, ""), ask_until_read, judges["judge"], question,
                    [picture], read, max_tokens=2048,
                )  # fmt: skip
                scores[-1] = found[0]
        measured.values = values_of(points, scores)
        measured.evidence = {"scores": scores}
        return measured

    def metrics(self, means: Means) -> dict[str, np.ndarray]:
        """See `Benchmark.metrics`: shares of points by dimension; overall is their mean."""
        by_name = {
            name: 100 * means.of(f"{name} sum") / means.of(f"{name} count")
            for name in sorted(
                {k[:-4] for row in means.rows for k in row.values if k[-4:] == " sum"}
            )
        }
        first = {name: by_name[name] for name in DIMENSIONS if name in by_name}
        return {
            "overall": mean_of(list(first.values()), len(means.weights)),
            "points": 100 * means.of("points"),
            **first,
            **{name: value for name, value in by_name.items() if name not in first},
        }

    def read_results(self, path: Path, items: Sequence[Item]) -> dict[str, Measurement]:
        """From the results CSV of the official scripts, a row a picture."""
        scores: dict[str, list[list[int]]] = {}
        try:
            with path.open(encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    one = json.loads(row["result_json"])["score"]
                    scores.setdefault(row["index"], []).append([int(score) for score in one])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise NextStepError(f"{path} cannot be read as results: {error}") from None
        results = {}
        for item in items:
            each = scores.get(item.key, [])[: self.repeats]
            points = item.record["points"]
            if any(len(one) != len(points) for one in each):
                raise NextStepError(f"{path} has another number of points for prompt {item.key}")
            if each:
                lost = self.repeats - len(each)
                failures = ["the official scorer left a picture out"] * lost
                each += [[0] * len(points)] * lost
                results[item.key] = Measurement(values_of(points, each), failures, {"scores": each})
        return results


class UniGenBenchZh(UniGenBench):
    """600 Chinese prompts."""

    name: ClassVar[str] = "unigenbench-zh"
    title: ClassVar[str] = "UniGenBench++ (ZH)"
    source: ClassVar[str] = "github.com/CodeGoat24/UniGenBench, data/test_prompts_zh.csv"
    data_help: ClassVar[str] = "test_prompts_zh.csv, or the long prompts"
    language: ClassVar[str] = "zh"


Point = tuple[str, str]
"""Name of a test point, such as "Attribute - Color", and what it means in a prompt."""


def _points(text: str | None) -> list[Point]:
    try:
        told: dict[str, Any] = json.loads(text or "")
        names, about = told["Testpoints"], told["Testpoint Description"]
        return [(str(a).strip(), str(b)) for a, b in zip(names, about, strict=True)]
    except (ValueError, KeyError, TypeError):
        return []


def read_points(answer: str, count: int) -> list[int]:
    """A 0 or 1 for every point.

    Raises:
        UnreadableError: when there is no list of that length, or it holds something else.
    """
    found = re.search(r"<score>(.*?)</score>", answer, re.DOTALL)
    try:
        scores = ast.literal_eval(found.group(1).strip()) if found else None
    except (ValueError, SyntaxError):
        scores = None
    if not isinstance(scores, list) or len(scores) != count:
        raise UnreadableError(f"a score of each of {count} points is needed")
    if any(score not in (0, 1) for score in scores):
        raise UnreadableError("a score is neither 0 nor 1")
    return [int(score) for score in scores]


def values_of(points: Sequence[Point], scores: Sequence[Sequence[int]]) -> dict[str, float]:
    """Columns of an item: share of its points, and sums by dimension and sub-dimension."""
    values = {"points": column_mean([column_mean(one) for one in scores])}
    for number, (name, _) in enumerate(points):
        held = column_mean([one[number] for one in scores])
        for level in dict.fromkeys((name, name.split("-")[0].strip())):
            values[f"{level} sum"] = values.get(f"{level} sum", 0.0) + held
            values[f"{level} count"] = values.get(f"{level} count", 0.0) + 1
    return values
