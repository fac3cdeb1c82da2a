"""OneIG-Bench: alignment, rendered text, reasoning, style and diversity, in English or Chinese.

Chang et al. 2025 (arXiv 2506.07977) and its scorer, OneIG-Bench/OneIG-Benchmark.

Legend: R rows of a bootstrap, D size of an embedding.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from nextstep.errors import NextStepError
from nextstep.evaluate import text_match
from nextstep.evaluate.benchmarks.base import (
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
    cells_of,
    encoded,
    grid_of,
    read_any_json,
    read_picture,
    write_below,
)
from nextstep.evaluate.benchmarks.statistics import Means, mean_of

FOLDERS = {
    "Anime_Stylization": "anime",
    "Portrait": "human",
    "General_Object": "object",
    "Text_Rendering": "text",
    "Knowledge_Reasoning": "reasoning",
    "Multilingualism": "multilingualism",
}
"""Category of the set -> folder of its pictures."""
ALIGNED = ("anime", "human", "object", "multilingualism")
QUESTIONS = {
    "alignment": "{question} Look at the image and answer with Yes or No alone.",
    "text": "Write down all text that stands in the image, each piece once, and nothing else. "
    "If there is none, answer: No text recognized.",
}
"""What judges are asked, by role."""
REFERENCES = "style_references"
"""Folder with a folder of reference pictures for every style."""
SIDE = 2
NAMES = ("alignment", "text", "reasoning", "style", "diversity")


class OneIG(Benchmark):
    """1,120 English prompts, four pictures each in one grid."""

    name: ClassVar[str] = "oneig"
    title: ClassVar[str] = "OneIG-Bench (EN)"
    licence: ClassVar[str] = "CC BY-NC 4.0"
    source: ClassVar[str] = "github.com/OneIG-Bench/OneIG-Benchmark"
    data_help: ClassVar[str] = "folder of the official repository"
    data_patterns: ClassVar[Sequence[str]] = (
        "OneIG-Bench*.csv", "scripts/alignment/Q_D/*.json", "scripts/text/*.csv",
        "scripts/reasoning/*.json", f"{REFERENCES}/**/*",
    )  # fmt: skip
    roles: ClassVar[Mapping[str, Role]] = {
        "alignment": Role(
            ("Qwen/Qwen2.5-VL-7B-Instruct",), ("ask",), own_prompt=True, optional=True
        ),
        "text": Role(("Qwen/Qwen2.5-VL-7B-Instruct",), ("ask",), own_prompt=True, optional=True),
        "reasoning": Role(("microsoft/LLM2CLIP-Openai-L-14-336",), ("embed",), optional=True),
        "style": Role(("CSD ViT-L",), ("embed",), optional=True),
        "style2": Role(("xingpng/OneIG-StyleEncoder",), ("embed",), optional=True),
        "diversity": Role(("DreamSim ensemble",), ("embed",), optional=True),
    }
    primary: ClassVar[str] = "overall"
    sizes: ClassVar[Mapping[str, int]] = {
        "anime": 245, "human": 244, "object": 206, "text": 200, "reasoning": 225,
    }  # fmt: skip
    published: ClassVar[Mapping[str, Mapping[str, float]]] = {
        "NextStep-1": {
            "alignment": 0.826, "text": 0.507, "reasoning": 0.224, "style": 0.332,
            "diversity": 0.199, "overall": 0.417,
        }
    }  # fmt: skip

    csv_name: ClassVar[str] = "OneIG-Bench.csv"
    suffix: ClassVar[str] = ""
    prompt_column: ClassVar[str] = "prompt_en"
    most_distance: ClassVar[int] = 100

    def read(self, data: Path) -> list[Item]:
        """See `Benchmark.read`."""
        questions = {
            folder: _object(data / "scripts/alignment/Q_D" / f"{folder}{self.suffix}.json")
            for folder in ALIGNED
        }
        texts = {
            row["id"]: row["text_content"]
            for row in _rows(data / f"scripts/text/text_content{self.suffix}.csv", optional=True)
        }
        answers = _object(data / f"scripts/reasoning/gt_answer{self.suffix}.json")
        items = []
        for line, row in enumerate(_rows(data / self.csv_name), 2):
            folder = FOLDERS.get(row.get("category", "").replace(" ", "_"))
            prompt, number = row.get(self.prompt_column), row.get("id")
            if folder is None or not prompt or not number:
                raise NextStepError(
                    f"line {line} of {data / self.csv_name} lacks a known category, an id or "
                    f"'{self.prompt_column}'"
                )
            asked = _questions(questions.get(folder, {}).get(number))
            record = {
                "id": number,
                "questions": asked,
                "text": texts.get(number) if folder == "text" else None,
                "answer": answers.get(number) if folder == "reasoning" else None,
                "style": _style(row.get("class")) if folder == "anime" else None,
                "references": data / REFERENCES,
            }
            items.append(Item(f"{folder}/{number}", prompt, folder, record))
        return self.check_items(items, data)

    def files(self, item: Item, model: str) -> list[str]:
        """See `Benchmark.files`."""
        return [f"{item.group}/{model}/{item.record['id']}.webp"]

    def write(self, folder: Path, item: Item, output: Output, model: str) -> None:
        """Four pictures in a grid, without loss."""
        name = self.files(item, model)[0]
        grid = grid_of([one.image for one in output.pictures], SIDE)
        write_below(folder, name, encoded(grid, name))

    def outputs(self, folder: Path, item: Item, model: str) -> ItemOutput:
        """See `Benchmark.outputs`; a black cell is a picture that could not be made."""
        grid = read_picture(folder / self.files(item, model)[0])
        if grid is None:
            return ItemOutput([None] * self.repeats)
        return ItemOutput([cell if any(cell.tobytes()) else None for cell in cells_of(grid, SIDE)])

    def lowest(self, item: Item) -> dict[str, float]:
        """See `Benchmark.lowest`."""
        values = {"diversity": 0.0}
        if item.record["questions"]:
            values["alignment"] = 0.0
        if item.record["text"] is not None:
            values |= _text_values([text_match.match("", item.record["text"])] * self.repeats)
        if item.record["answer"] is not None:
            values["reasoning"] = 0.0
        if item.record["style"] is not None:
            values["style"] = 0.0
        return values

    def measure(self, item: Item, outputs: ItemOutput, judges: Judges) -> Measurement:
        """See `Benchmark.measure`; parts whose role has no judge are left out."""
        measured = Measurement(
            failures=[
                f"picture {n} is missing or black"
                for n, p in enumerate(outputs.pictures)
                if p is None
            ]
        )
        record, pictures = item.record, outputs.pictures
        if record["questions"] and "alignment" in judges:
            scores = [self._aligned(record, one, judges, measured) for one in pictures]
            measured.values["alignment"] = column_mean(scores)
        if record["text"] is not None and "text" in judges:
            read = [self._read(one, judges, measured) for one in pictures]
            measured.evidence["read"] = read
            matches = [text_match.match(one, record["text"]) for one in read]
            measured.values |= _text_values(matches)
        if record["answer"] is not None and "reasoning" in judges:
            measured.values["reasoning"] = _reasoned(record["answer"], pictures, judges)
        if record["style"] is not None and {"style", "style2"} & set(judges):
            measured.values["style"] = _styled(record, pictures, judges)
        if "diversity" in judges:
            measured.values["diversity"] = _spread(pictures, judges)
        return measured

    def metrics(self, means: Means) -> dict[str, np.ndarray]:
        """See `Benchmark.metrics`; a part that nobody judged is NaN, and then so is overall."""
        apart = np.minimum(self.most_distance, means.of("distance"))
        missed = 1 - means.of("found") / means.of("asked")
        found = {
            "alignment": means.of("alignment"),
            "text": 1 - apart * (1 - means.of("exact")) * missed / self.most_distance,
            "reasoning": means.of("reasoning"),
            "style": means.of("style"),
            "diversity": means.of("diversity"),
        }
        return {"overall": mean_of(list(found.values()), len(means.weights)), **found}

    def read_results(self, path: Path, items: Sequence[Item]) -> dict[str, Measurement]:
        """From the folder of the official scorer's CSV files, one for every part."""
        results = {item.key: Measurement() for item in items}
        by_key = {item.key: item for item in items}
        for part in NAMES:
            for file in sorted(path.glob(f"{part}_prompt_score_*.csv")):
                for row in _rows(file):
                    index, cell = list(row.values())[:2]
                    item = by_key.get(_key(part, index))
                    if item is not None:
                        _import(results[item.key], part, cell, item)
        return {key: one for key, one in results.items() if one.values}

    def _aligned(
        self, record: Mapping[str, Any], picture: Image.Image | None, judges: Judges,
        measured: Measurement,
    ) -> float:  # fmt: skip
        if picture is None:
            return 0.0
        answers = {}
        for number, (question, _) in record["questions"].items():
            asked = self.worded("alignment", QUESTIONS["alignment"])
            asked = asked.replace("{question}", question)
            said = measured.attempt(question, "", judges["alignment"].ask, asked, [picture])
            answers[number] = said.strip().strip(".").lower() == "yes"
        parents = {number: ids for number, (_, ids) in record["questions"].items()}
        return aligned_share(answers, parents)

    def _read(self, picture: Image.Image | None, judges: Judges, measured: Measurement) -> str:
        if picture is None:
            return ""
        asked = self.worded("text", QUESTIONS["text"])
        return str(measured.attempt("text", "", judges["text"].ask, asked, [picture]))


class OneIGZh(OneIG):
    """1,320 Chinese prompts."""

    name: ClassVar[str] = "oneig-zh"
    title: ClassVar[str] = "OneIG-Bench (ZH)"
    sizes: ClassVar[Mapping[str, int]] = {**OneIG.sizes, "multilingualism": 200}
    published: ClassVar[Mapping[str, Mapping[str, float]]] = {}
    csv_name: ClassVar[str] = "OneIG-Bench-ZH.csv"
    suffix: ClassVar[str] = "_zh"
    prompt_column: ClassVar[str] = "prompt_cn"
    most_distance: ClassVar[int] = 50


def aligned_share(answers: Mapping[int, bool], parents: Mapping[int, Sequence[int]]) -> float:
    """Share of questions that hold, one with a parent answered no counting as no.

    The parents' own answers decide: unlike DPG-Bench a no does not pass on to grandchildren.
    """
    holds = [
        yes and all(answers.get(parent, True) for parent in parents.get(number, ()) if parent)
        for number, yes in answers.items()
    ]
    return sum(holds) / len(holds)


def _text_values(matches: Sequence[text_match.Match]) -> dict[str, float]:
    return {
        "distance": column_mean([one.distance for one in matches]),
        "exact": column_mean([float(one.exact) for one in matches]),
        "found": column_mean([one.found for one in matches]),
        "asked": column_mean([one.asked for one in matches]),
    }


def _reasoned(answer: str, pictures: Sequence[Image.Image | None], judges: Judges) -> float:
    there = [one for one in pictures if one is not None]
    if not there:
        return 0.0
    judge = judges["reasoning"]
    alike = judge.embed(there) @ judge.embed([answer])[0]
    return float(alike.sum() / len(pictures))


def _styled(
    record: Mapping[str, Any], pictures: Sequence[Image.Image | None], judges: Judges
) -> float:
    """Likeness to the nearest reference of the style, the mean of both encoders."""
    folder = record["references"] / record["style"]
    references = [read_picture(path) for path in sorted(folder.glob("*"))]
    known = [one for one in references if one is not None]
    if not known:
        raise NextStepError(f"style needs reference pictures in {folder}")
    there = [one for one in pictures if one is not None]
    if not there:
        return 0.0
    found = []
    for role in ("style", "style2"):
        if role in judges:
            alike = (judges[role].embed(there) @ judges[role].embed(known).T).max(1)
            found.append(np.maximum(alike, 0).sum() / len(pictures))
    return float(np.mean(found))


def _spread(pictures: Sequence[Image.Image | None], judges: Judges) -> float:
    """Mean distance (1 - cosine) of all pairs of a prompt's pictures; missing ones add nothing."""
    there = [one for one in pictures if one is not None]
    pairs = len(list(combinations(pictures, 2)))
    if len(there) < 2:
        return 0.0
    embedded = judges["diversity"].embed(there)
    apart = [float(1 - a @ b) for a, b in combinations(embedded, 2)]
    return sum(apart) / pairs


def _key(part: str, index: str) -> str:
    """Key of an item from a row of the official results: "anime_000", or the number alone."""
    if part in ("alignment", "diversity"):
        folder, _, number = index.rpartition("_")
        return f"{folder}/{number}"
    folder = "anime" if part == "style" else part
    return f"{folder}/{index.zfill(3)}"


def _import(measured: Measurement, part: str, cell: str, item: Item) -> None:
    """Take over one cell; an empty one is a prompt without a usable picture."""
    if not cell:
        measured.failures.append(f"{part}: the official scorer has no score")
        lowest = OneIG.lowest(OneIG(), item)
        names = ("distance", "exact", "found", "asked") if part == "text" else (part,)
        measured.values |= {name: lowest[name] for name in names if name in lowest}
    elif part == "text":
        distance, exact, share = json.loads(cell)
        asked = text_match.match("", item.record["text"]).asked
        measured.values |= {
            "distance": distance, "exact": exact, "found": share * asked, "asked": float(asked),
        }  # fmt: skip
    else:
        measured.values[part] = float(cell)


def _rows(path: Path, optional: bool = False) -> list[dict[str, str]]:
    if optional and not path.exists():
        return []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise NextStepError(f"{path} cannot be read: {error}") from None


def _object(path: Path) -> dict[str, Any]:
    """The object in an optional file of the official repository."""
    found = read_any_json(path) if path.exists() else {}
    if not isinstance(found, dict):
        raise NextStepError(f"{path} must hold a JSON object")
    return found


def _questions(entry: Any) -> dict[int, tuple[str, list[int]]]:
    """Number -> (question, parents); the official file keeps both as objects or as JSON text."""
    if entry is None:
        return {}
    parts = [entry.get("question", {}), entry.get("dependency", {})]
    texts, parents = (json.loads(one) if isinstance(one, str) else one for one in parts)
    return {
        int(number): (text, [int(one) for one in parents.get(number, [])])
        for number, text in texts.items()
    }


def _style(name: str | None) -> str | None:
    if not name or name.strip().lower() in ("none", "nan"):
        return None
    return name.strip().lower().replace(" ", "_")
