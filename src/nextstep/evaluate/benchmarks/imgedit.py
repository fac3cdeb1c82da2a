"""ImgEdit-Bench: three grades from 1 to 5 for every edit, by its type.

Ye et al. 2025 (arXiv 2505.20275) and its scorer, PKU-YuanGroup/ImgEdit, Benchmark/Basic.

Legend: R rows of a bootstrap (the set itself and its resamples).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from nextstep.errors import NextStepError
from nextstep.evaluate.benchmarks.base import (
    EDIT,
    Benchmark,
    Item,
    ItemOutput,
    Judges,
    Measurement,
    Role,
    missing_pictures,
)
from nextstep.evaluate.benchmarks.files import read_any_json, wanted
from nextstep.evaluate.benchmarks.statistics import Means
from nextstep.evaluate.judges.protocol import UnreadableError, ask_until_read
from nextstep.image.pictures import open_picture

EDITS, ORIGINALS, PROMPTS = "basic_edit.json", "origin_img", "prompts.json"
LOWEST, HIGHEST = 1, 5
ABOUT = {
    "style": ("Style Fidelity", "Content Preservation", "Rendering Quality"),
    "": ("Prompt Compliance", "Visual Seamlessness", "Physical & Detail Fidelity"),
}
"""What is graded, by type; the others share the last row."""
QUESTION = """The first image is the original, the second an edited version. The edit was asked for
in these words: "<edit_prompt>" (type of edit: {kind}).

Grade the second image on three scales from 1 (worst) to 5 (best):
{first}: was exactly what the words ask for done, and nothing else changed?
{second}: does what was changed fit in without visible seams, and is the rest preserved?
{third}: are light, perspective, texture and detail right?
The second and third grade must not be above the first.

Answer with one short line of reasoning and then exactly three lines:
{first}: <grade>
{second}: <grade>
{third}: <grade>"""


class ImgEdit(Benchmark):
    """The basic suite: single edits of nine types."""

    name: ClassVar[str] = "imgedit"
    title: ClassVar[str] = "ImgEdit-Bench"
    licence: ClassVar[str] = (
        "MIT by the card of its authors' huggingface.co/datasets/sysuyy/ImgEdit_recap_mask; the "
        "card of the benchmark itself was not seen"
    )
    source: ClassVar[str] = "github.com/PKU-YuanGroup/ImgEdit, Benchmark/Basic"
    data_help: ClassVar[str] = f"folder with {EDITS}, {ORIGINALS}/ and the official {PROMPTS}"
    data_patterns: ClassVar[Sequence[str]] = (EDITS, PROMPTS, f"{ORIGINALS}/**/*")
    kind: ClassVar[str] = EDIT
    repeats: ClassVar[int] = 1
    roles: ClassVar[Mapping[str, Role]] = {"judge": Role(("gpt-4o",), ("ask",), own_prompt=True)}
    primary: ClassVar[str] = "overall"
    published: ClassVar[Mapping[str, Mapping[str, float]]] = {"NextStep-1-Edit": {"overall": 3.71}}

    def read(self, data: Path) -> list[Item]:
        """See `Benchmark.read`; the official wording is used where its file is there."""
        edits = read_any_json(data / EDITS)
        if not isinstance(edits, dict):
            raise NextStepError(f"{data / EDITS} must hold a JSON object")
        if self.judge_prompt is None and (data / PROMPTS).exists():
            self.judge_prompt = (data / PROMPTS).read_text(encoding="utf-8")
        items = []
        for key, record in edits.items():
            where = f"'{key}' of {data / EDITS}"
            prompt, kind = (
                wanted(record, "prompt", str, where),
                wanted(record, "edit_type", str, where),
            )
            source = data / ORIGINALS / wanted(record, "id", str, where)
            items.append(Item(key, prompt, kind, {**record, "source": source}))
        return self.check_items(items, data)

    @classmethod
    def complete(cls, items: Sequence[Item]) -> bool:
        """See `Benchmark.complete`; nine types are what is known of the set."""
        return len({item.group for item in items}) == 9 and len(items) >= 700

    def sources(self, item: Item) -> list[Image.Image]:
        """See `Benchmark.sources`."""
        return [open_picture(item.record["source"])]

    def files(self, item: Item, model: str) -> list[str]:
        """See `Benchmark.files`."""
        return [f"{item.key}.png"]

    def lowest(self, item: Item) -> dict[str, float]:
        """See `Benchmark.lowest`."""
        return {"score": float(LOWEST)}

    def measure(self, item: Item, outputs: ItemOutput, judges: Judges) -> Measurement:
        """See `Benchmark.measure`."""
        measured = Measurement(self.lowest(item), missing_pictures(outputs))
        picture = outputs.pictures[0]
        if picture is None:
            return measured
        pictures = [*outputs.sources, picture]
        found = measured.attempt(
            "grades", None, ask_until_read, judges["judge"], self.question(item), pictures,
            read_grades,
        )  # fmt: skip
        if found is not None:
            measured.values = {"score": grade_of(found[0])}
            measured.evidence = {"grades": found[0], "answer": found[1]}
        return measured

    def question(self, item: Item) -> str:
        """What the judge is asked about an item."""
        first, second, third = ABOUT.get(item.group, ABOUT[""])
        ours = QUESTION.format(kind=item.group, first=first, second=second, third=third)
        return self.worded(item.group, ours).replace("<edit_prompt>", item.prompt)

    def metrics(self, means: Means) -> dict[str, np.ndarray]:
        """See `Benchmark.metrics`; overall is the mean of the types."""
        kinds = sorted({row.group for row in means.rows})
        return {
            "overall": means.mean_of_groups("score"),
            **{kind: means.of("score", kind) for kind in kinds},
        }

    def read_results(self, path: Path, items: Sequence[Item]) -> dict[str, Measurement]:
        """From result.json (the answers) or the file of average scores."""
        found = read_any_json(path)
        if not isinstance(found, dict):
            raise NextStepError(f"{path} is no result of ImgEdit")
        results = {}
        for key, value in found.items():
            if isinstance(value, int | float):
                results[key] = Measurement({"score": float(value)})
                continue
            try:
                grades = read_grades(value if isinstance(value, str) else "")
                results[key] = Measurement({"score": grade_of(grades)}, [], {"answer": value})
            except UnreadableError as error:
                results[key] = Measurement({"score": float(LOWEST)}, [f"grades: {error}"])
        return results


def read_grades(answer: str) -> list[int]:
    """The three grades of an answer: lines that end in ": 1" to ": 5".

    Raises:
        UnreadableError: when there are not three, or one is off the scale.
    """
    grades = []
    for line in answer.splitlines():
        _, colon, grade = line.strip().replace("*", "").rpartition(":")
        if colon and grade.strip().isdigit():
            grades.append(int(grade))
    if len(grades) != 3:
        raise UnreadableError(f"{len(grades)} grades instead of three")
    if any(not LOWEST <= grade <= HIGHEST for grade in grades):
        raise UnreadableError("a grade is not from 1 to 5")
    return grades


def grade_of(grades: Sequence[int]) -> float:
    """The mean of an edit's grades, rounded to two digits as the official scorer does."""
    return round(sum(grades) / len(grades), 2)
