"""GEdit-Bench: edits graded for meaning and for quality, in English and Chinese.

Liu et al. 2025 (arXiv 2504.17761), graded by VIEScore (Ku et al. 2023, arXiv 2312.14867).

Legend: R rows of a bootstrap (the set itself and its resamples).
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

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
    Output,
    Role,
    missing_pictures,
)
from nextstep.evaluate.benchmarks.files import encoded, read_picture, write_below
from nextstep.evaluate.benchmarks.statistics import Means, mean_of
from nextstep.evaluate.judges.protocol import UnreadableError, ask_until_read
from nextstep.image.pictures import open_picture

TASKS = (
    "background_change", "color_alter", "material_alter", "motion_change", "ps_human",
    "style_change", "subject-add", "subject-remove", "subject-replace", "text_change",
    "tone_transfer",
)  # fmt: skip
TASK_SIZES = (40, 40, 40, 40, 70, 60, 60, 57, 60, 99, 40)
LANGUAGES = ("en", "cn")
AREA = 512 * 512
"""Pixels at which both pictures are judged."""
HIGHEST = 10
FORM = """Answer with nothing but a JSON object of this form:
{"score": [<first score>, <second score>], "reasoning": "<one sentence>"}"""
QUESTIONS = {
    "semantics": """The first image is the original, the second an edited version of it. The edit
was asked for in these words: <instruction>

Give two scores from 0 to 10.
First, success: 0 when the words were not followed at all, 10 when they were followed perfectly.
Second, restraint: 0 when the edited image is a wholly different scene, 10 when it is the original
with the least change that the words need.
"""
    + FORM,
    "quality": """The image was made by a computer. Judge the picture alone, whatever it shows.

Give two scores from 0 to 10.
First, naturalness: 0 when light, shadows, distances or the scene as a whole look wrong, 10 when
all of it looks natural.
Second, freedom from artefacts: 0 when it is full of distortions, marks, blur or unnatural limbs,
10 when there is none.
"""
    + FORM,
}


class GEdit(Benchmark):
    """606 edits in both languages; scores are of each language apart."""

    name: ClassVar[str] = "gedit"
    title: ClassVar[str] = "GEdit-Bench"
    licence: ClassVar[str] = "MIT"
    source: ClassVar[str] = "huggingface.co/datasets/stepfun-ai/GEdit-Bench"
    data_help: ClassVar[str] = "folder with the data set's arrow or parquet files"
    data_patterns: ClassVar[Sequence[str]] = ("**/*.arrow", "**/*.parquet")
    kind: ClassVar[str] = EDIT
    repeats: ClassVar[int] = 1
    roles: ClassVar[Mapping[str, Role]] = {
        "judge": Role(("gpt-4.1", "gpt-4.1-2025-04-14"), ("ask",), own_prompt=True)
    }
    primary: ClassVar[str] = "EN overall"
    sizes: ClassVar[Mapping[str, int]] = {
        f"{language}/{task}": size
        for language in LANGUAGES
        for task, size in zip(TASKS, TASK_SIZES, strict=True)
    }
    published: ClassVar[Mapping[str, Mapping[str, float]]] = {
        "NextStep-1-Edit": {
            "EN semantics": 7.15, "EN quality": 7.01, "EN overall": 6.58,
            "CN semantics": 6.88, "CN quality": 7.02, "CN overall": 6.40,
        }
    }  # fmt: skip

    def __init__(self, judge_prompt: str | None = None) -> None:
        super().__init__(judge_prompt)
        self._group: tuple[tuple[Path, int], Any] | None = None

    def read(self, data: Path) -> list[Item]:
        """See `Benchmark.read`; pictures stay in their files until they are wanted."""
        found = [p for p in data.rglob("*") if p.suffix in (".parquet", ".arrow")]
        columns = ["task_type", "key", "instruction", "instruction_language", "Intersection_exist"]
        items = []
        for file in sorted(found) if data.is_dir() else [data]:
            try:
                for group, table in enumerate(_tables(file, columns)):
                    rows = table.to_pylist()
                    items += [_item(row, file, group, n) for n, row in enumerate(rows)]
            except (OSError, ValueError, KeyError) as error:
                raise NextStepError(f"{file} cannot be read as GEdit-Bench: {error}") from None
        return self.check_items(items, data)

    def sources(self, item: Item) -> list[Image.Image]:
        """The raw input picture."""
        return [self._picture(item, "input_image_raw")]

    def files(self, item: Item, model: str) -> list[str]:
        """See `Benchmark.files`."""
        language, task = item.group.split("/")
        return [f"{model}/fullset/{task}/{language}/{item.record['key']}.png"]

    def write(self, folder: Path, item: Item, output: Output, model: str) -> None:
        """The source stands beside the result, as the scorer wants it."""
        source = self.files(item, model)[0].removesuffix(".png") + "_SRCIMG.png"
        write_below(folder, source, encoded(self._picture(item, "input_image"), source))
        super().write(folder, item, output, model)

    def outputs(self, folder: Path, item: Item, model: str) -> ItemOutput:
        """Both pictures at the area of 512 x 512, as the official scorer shows them."""
        name = self.files(item, model)[0]
        made = read_picture(folder / name)
        source = read_picture(folder / (name.removesuffix(".png") + "_SRCIMG.png"))
        source = source or self._picture(item, "input_image")
        return ItemOutput([None if made is None else at_area(made)], sources=[at_area(source)])

    def lowest(self, item: Item) -> dict[str, float]:
        """See `Benchmark.lowest`."""
        return self._values(item, 0.0, 0.0)

    def measure(self, item: Item, outputs: ItemOutput, judges: Judges) -> Measurement:
        """See `Benchmark.measure`."""
        measured = Measurement(self.lowest(item), missing_pictures(outputs))
        picture = outputs.pictures[0]
        if picture is None:
            return measured
        scores = {}
        for part, pictures in (("semantics", [*outputs.sources, picture]), ("quality", [picture])):
            question = self.worded(part, QUESTIONS[part]).replace("<instruction>", item.prompt)
            found = measured.attempt(
                part, ((0.0,), ""), ask_until_read, judges["judge"], question, pictures,
                read_scores,
            )  # fmt: skip
            scores[part], measured.evidence[part] = min(found[0]), found[1]
        measured.values = self._values(item, scores["semantics"], scores["quality"])
        return measured

    def metrics(self, means: Means) -> dict[str, np.ndarray]:
        """See `Benchmark.metrics`: means of a task's edits, then of the tasks, by language."""
        found: dict[str, np.ndarray] = {}
        for subset, prefix in (("", ""), (" intersection", "intersection ")):
            for language in LANGUAGES:
                groups = [f"{language}/{task}" for task in TASKS]
                for part in ("semantics", "quality", "overall"):
                    name = f"{language.upper()}{subset} {part}"
                    found[name] = means.mean_of_groups(prefix + part, groups)
        for language in LANGUAGES:
            tasks = {task: means.of("overall", f"{language}/{task}") for task in TASKS}
            found |= {f"{language.upper()} {task}": value for task, value in tasks.items()}
        return {name: value for name, value in found.items() if not np.isnan(value[0])} or {
            "EN overall": mean_of([], len(means.weights))
        }

    def read_results(self, path: Path, items: Sequence[Item]) -> dict[str, Measurement]:
        """From the CSV files of test_gedit_score.py below a folder."""
        by_name = {(item.record["key"], item.group.split("/")[0]): item for item in items}
        results = {}
        for file in sorted(path.rglob("*.csv")) if path.is_dir() else [path]:
            with file.open(encoding="utf-8", newline="") as opened:
                for row in csv.DictReader(opened):
                    item = by_name.get(
                        (row.get("key") or "", row.get("instruction_language") or "")
                    )
                    # The official column is spelled like this.
                    meaning = row.get("sementics_score") or row.get("semantics_score")
                    if item is None or not meaning or not row.get("quality_score"):
                        continue
                    values = self._values(item, float(meaning), float(row["quality_score"]))
                    results[item.key] = Measurement(values)
        return results

    def _values(self, item: Item, semantics: float, quality: float) -> dict[str, float]:
        values = {
            "semantics": semantics,
            "quality": quality,
            "overall": math.sqrt(semantics * quality),
        }
        if item.record["intersection"]:
            values |= {f"intersection {name}": value for name, value in list(values.items())}
        return values

    def _picture(self, item: Item, column: str) -> Image.Image:
        file, group, row = item.record["place"]
        if self._group is None or self._group[0] != (file, group):
            names = ["input_image", "input_image_raw"]
            table = next(itertools.islice(_tables(file, names), group, None))
            self._group = (file, group), table
        cell = self._group[1][column][row].as_py()
        return open_picture(io.BytesIO(cell["bytes"]))


def _tables(file: Path, columns: list[str]) -> Iterator[Any]:
    """Parts of a file one after another: row groups of parquet, batches of an arrow stream."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise NextStepError(
            "reading the data set needs pyarrow: pip install 'open-nextstep[data]'"
        ) from None
    if file.suffix == ".arrow":
        with pyarrow.memory_map(str(file)) as mapped:
            for batch in pyarrow.ipc.open_stream(mapped):
                yield batch.select(columns)
        return
    opened = pyarrow.parquet.ParquetFile(file)
    for group in range(opened.num_row_groups):
        yield opened.read_row_group(group, columns)


def _item(row: Mapping[str, Any], file: Path, group: int, number: int) -> Item:
    language, task = row["instruction_language"], row["task_type"]
    if language not in LANGUAGES or task not in TASKS:
        raise ValueError(f"there is no task '{task}' in the language '{language}'")
    record = {
        "key": row["key"],
        "intersection": bool(row["Intersection_exist"]),
        "place": (file, group, number),
    }
    return Item(f"{language}/{task}/{row['key']}", row["instruction"], f"{language}/{task}", record)


def at_area(picture: Image.Image, area: int = AREA) -> Image.Image:
    """A picture of about this many pixels in its own shape."""
    width = math.sqrt(area * picture.width / picture.height)
    return picture.resize((max(1, int(width)), max(1, int(area / width))))


def read_scores(answer: str) -> tuple[float, ...]:
    """The two scores of an answer: "score": [a, b] in a JSON object, with or without a fence.

    Raises:
        UnreadableError: when there are not two, or one is not from 0 to 10.
    """
    found = re.search(r"\{.*\}", answer, re.DOTALL)
    try:
        scores = json.loads(found.group())["score"] if found else None
        values = tuple(float(score) for score in scores or ())
    except (ValueError, KeyError, TypeError):
        values = ()
    if len(values) != 2 or not all(0 <= value <= HIGHEST for value in values):
        raise UnreadableError("two scores from 0 to 10 are needed")
    return values
