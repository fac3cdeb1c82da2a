"""GenEval 2: how likely a vision-language model finds every atom of a prompt (Soft-TIFA).

Kamath et al. 2025 (arXiv 2512.16853). The set is CC BY-NC 4.0, so none of it ships here.

Legend: R rows of a bootstrap (the set itself and its resamples).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from nextstep.errors import NextStepError
from nextstep.evaluate.benchmarks.base import (
    Benchmark,
    Item,
    ItemOutput,
    Judges,
    Measurement,
    Role,
    missing_pictures,
)
from nextstep.evaluate.benchmarks.files import read_any_json, read_lines, wanted, write_below
from nextstep.evaluate.benchmarks.statistics import Means

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
SKILLS = ("object", "attribute", "count", "position", "verb")


class GenEval2(Benchmark):
    """800 prompts of three to ten atoms, one picture each."""

    name: ClassVar[str] = "geneval2"
    title: ClassVar[str] = "GenEval 2"
    licence: ClassVar[str] = "CC BY-NC 4.0"
    source: ClassVar[str] = "github.com/facebookresearch/GenEval2, geneval2_data.jsonl"
    data_help: ClassVar[str] = "geneval2_data.jsonl"
    repeats: ClassVar[int] = 1
    roles: ClassVar[Mapping[str, Role]] = {
        "judge": Role(("Qwen/Qwen3-VL-8B-Instruct",), ("yes_probability",))
    }
    primary: ClassVar[str] = "Soft-TIFA GM"

    def read(self, data: Path) -> list[Item]:
        """See `Benchmark.read`."""
        items = []
        for number, record in enumerate(read_lines(data)):
            where = f"line {number + 1} of {data}"
            prompt = wanted(record, "prompt", str, where)
            pairs = wanted(record, "vqa_list", list, where)
            skills = wanted(record, "skills", list, where)
            if not pairs or len(pairs) != len(skills) or any(len(pair) != 2 for pair in pairs):
                raise NextStepError(f"{where} needs a question, an answer and a skill of each atom")
            items.append(Item(f"{number:05d}", prompt, str(record.get("atom_count", "")), record))
        return self.check_items(items, data)

    @classmethod
    def complete(cls, items: Sequence[Item]) -> bool:
        """See `Benchmark.complete`; the set's number of prompts is what is known of it."""
        return len(items) == 800

    def files(self, item: Item, model: str) -> list[str]:
        """See `Benchmark.files`."""
        return [f"{item.key}.png"]

    def finish(self, folder: Path, items: Sequence[Item], model: str) -> None:
        """The list of picture files by prompt, which the scorer is given."""
        paths = {item.prompt: self.files(item, model)[0] for item in items}
        write_below(folder, "image_paths.json", json.dumps(paths, indent=2).encode())

    def lowest(self, item: Item) -> dict[str, float]:
        """See `Benchmark.lowest`."""
        return self._values(item, [0.0] * len(item.record["vqa_list"]))

    def measure(self, item: Item, outputs: ItemOutput, judges: Judges) -> Measurement:
        """See `Benchmark.measure`."""
        measured = Measurement(failures=missing_pictures(outputs))
        picture, judge = outputs.pictures[0], judges["judge"]
        likely = [0.0] * len(item.record["vqa_list"])
        if picture is not None:
            for number, (question, answer) in enumerate(item.record["vqa_list"]):
                asked, forms = f"{question} Answer in one word.", answer_forms(answer)
                likely[number] = measured.attempt(
                    question, 0.0, judge.yes_probability, asked, [picture], forms
                )
        measured.values = self._values(item, likely)
        measured.evidence = {"atoms": likely}
        return measured

    def metrics(self, means: Means) -> dict[str, np.ndarray]:
        """See `Benchmark.metrics`; times 100, as the paper prints them."""
        return {
            "Soft-TIFA GM": 100 * means.of("gm"),
            "Soft-TIFA AM": 100 * means.of("am"),
            **{
                skill: 100 * means.of(f"{skill} sum") / means.of(f"{skill} count")
                for skill in SKILLS
            },
        }

    def read_results(self, path: Path, items: Sequence[Item]) -> dict[str, Measurement]:
        """From the score lists of evaluation.py: a list of atoms for every prompt, in order."""
        lists = read_any_json(path)
        fits = isinstance(lists, list) and len(lists) == len(items)
        if not fits or any(
            not isinstance(atoms, list) or len(atoms) != len(item.record["vqa_list"])
            for atoms, item in zip(lists, items, strict=True)
        ):
            raise NextStepError(f"{path} has not one list of atoms for every prompt of the set")
        return {
            item.key: Measurement(self._values(item, atoms), [], {"atoms": atoms})
            for item, atoms in zip(items, lists, strict=True)
        }

    def _values(self, item: Item, likely: Sequence[float]) -> dict[str, float]:
        values = {"am": float(np.mean(likely)), "gm": geometric_mean(likely)}
        for skill, one in zip(item.record["skills"], likely, strict=True):
            values[f"{skill} sum"] = values.get(f"{skill} sum", 0.0) + one
            values[f"{skill} count"] = values.get(f"{skill} count", 0.0) + 1
        return values


def geometric_mean(values: Sequence[float]) -> float:
    """0 when any value is."""
    if min(values) <= 0:
        return 0.0
    return math.exp(sum(map(math.log, values)) / len(values))


def answer_forms(answer: str) -> list[str]:
    """The ways in which a right answer may begin: as given, capitalised, a number in digits."""
    word = str(answer).strip()
    forms = [word, word.lower(), word.capitalize()]
    if word.lower() in NUMBERS:
        forms.append(str(NUMBERS.index(word.lower())))
    return list(dict.fromkeys(forms))
