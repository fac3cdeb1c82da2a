"""Small sets in the file formats of the official ones, and pictures as a model would make them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nextstep.engine.results import GeneratedPicture

SIZE = 32


def picture(number: int, size: tuple[int, int] = (SIZE, SIZE)) -> Image.Image:
    """A picture unlike all others, never black."""
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(1, 256, (size[1], size[0], 3), dtype=np.uint8))


def made(number: int) -> GeneratedPicture:
    return GeneratedPicture(picture(number), {"prompt": "p", "version": "0", "seed": number})


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def lines(path: Path, values: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def geneval(folder: Path) -> Path:
    tags = ["single_object", "two_object", "counting", "colors", "position", "color_attr"]
    values = []
    for number in range(8):
        include: list[dict[str, Any]] = [{"class": "cup", "count": 1}]
        if tags[number % 6] == "position":
            include.append({"class": "dog", "count": 1, "position": ["left of", 0]})
        tag = tags[number % 6]
        values.append({"tag": tag, "include": include, "prompt": f"a photo of {number} cups"})
    return lines(folder / "evaluation_metadata.jsonl", values)


def geneval2(folder: Path) -> Path:
    values = [
        {
            "prompt": f"{number} white cups",
            "atom_count": 2,
            "vqa_list": [["How many cups are in the image?", "two"], ["Are they white?", "Yes"]],
            "skills": ["count", "attribute"],
        }
        for number in range(8)
    ]
    return lines(folder / "geneval2_data.jsonl", values)


def genai_bench(folder: Path) -> Path:
    prompts = {f"{n:05d}": {"prompt": f"prompt {n}", "models": {}} for n in range(8)}
    skills = {"basic": [0, 1, 2, 3], "advanced": [4, 5, 6], "attribute": [0, 1], "counting": [4]}
    write_json(folder / "genai_image.json", prompts)
    write_json(folder / "genai_skills.json", skills)
    return folder


def dpg_bench(folder: Path) -> Path:
    rows = []
    asked = ((1, "0", "entity - whole"), (2, "1", "attribute - color"))
    for number in range(8):
        for proposition, parent, name in asked:
            rows.append({
                "item_id": f"part{number}", "text": f"a long prompt {number}", "keywords": "",
                "proposition_id": proposition, "dependency": parent, "category_broad": "",
                "category_detailed": "", "tuple": f"{name} (cup)",
                "question_natural_language": f"Is it {proposition}?",
            })  # fmt: skip
    write_csv(folder / "dpg_bench.csv", rows)
    return folder / "dpg_bench.csv"


def oneig(folder: Path, chinese: bool = False) -> Path:
    categories = [
        "Anime_Stylization", "Portrait", "General_Object", "Text_Rendering", "Knowledge_Reasoning",
    ]  # fmt: skip
    suffix = "_zh" if chinese else ""
    rows = [
        {
            "category": categories[n % 5], "id": f"{n:03d}",
            "prompt_cn" if chinese else "prompt_en": f"prompt {n}", "type": "", "prompt_length": "",
            "class": "Baroque" if n == 0 else "None",
        }
        for n in range(8)
    ]  # fmt: skip
    write_csv(folder / ("OneIG-Bench-ZH.csv" if chinese else "OneIG-Bench.csv"), rows)
    for number, name in enumerate(("anime", "human", "object")):
        asked = {"1": "Is there a cup?", "2": "Is it red?"}
        entry: dict[str, Any] = {"question": asked, "dependency": {"1": [0], "2": [1]}}
        if number:  # the official files hold either form
            entry = {name: json.dumps(value) for name, value in entry.items()}
        keys = {f"{n:03d}": entry for n in range(8) if n % 5 == number}
        write_json(folder / f"scripts/alignment/Q_D/{name}{suffix}.json", keys)
    text = "你好" if chinese else "Hello World"
    write_csv(
        folder / f"scripts/text/text_content{suffix}.csv", [{"id": "003", "text_content": text}]
    )
    write_json(folder / f"scripts/reasoning/gt_answer{suffix}.json", {"004": "a falling apple"})
    (folder / "style_references/baroque").mkdir(parents=True)
    picture(7).save(folder / "style_references/baroque/0.png")
    return folder


def oneig_zh(folder: Path) -> Path:
    return oneig(folder, chinese=True)


def wise(folder: Path, verified: bool = False) -> Path:
    suffix = "_verified" if verified else ""
    names = ["cultural_common_sense", "spatio-temporal_reasoning", "natural_science"]
    starts = [1, 401, 701]
    for name, start, count in zip(names, starts, (3, 3, 2), strict=True):
        entries = [
            {
                "prompt_id": start + n, "Prompt": f"prompt {start + n}", "Explanation": "because",
                "Category": name, "Subcategory": "x",
            }
            for n in range(count)
        ]  # fmt: skip
        write_json(folder / f"{name}{suffix}.json", entries)
    return folder


def wise_verified(folder: Path) -> Path:
    return wise(folder, verified=True)


def gedit(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def cell(number: int) -> dict[str, Any]:
        out = io.BytesIO()
        picture(100 + number, (48, 32)).save(out, "PNG")
        return {"bytes": out.getvalue(), "path": None}

    rows = [
        {
            "task_type": ["subject-add", "color_alter"][n % 2], "key": f"k{n % 4}",
            "instruction": f"add {n}", "instruction_language": ["en", "cn"][n // 4],
            "input_image": cell(n), "input_image_raw": cell(n), "Intersection_exist": n % 4 == 0,
        }
        for n in range(8)
    ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "train-0.parquet", row_group_size=3)
    return folder


def imgedit(folder: Path) -> Path:
    kinds = ["add", "style"]
    edits = {
        str(n): {"id": f"animal/{n}.jpg", "prompt": f"edit {n}", "edit_type": kinds[n % 2]}
        for n in range(8)
    }
    write_json(folder / "basic_edit.json", edits)
    (folder / "origin_img/animal").mkdir(parents=True)
    for number in range(8):
        picture(number, (48, 32)).save(folder / f"origin_img/animal/{number}.jpg")
    return folder


def unigenbench(folder: Path, language: str = "en") -> Path:
    points = {
        "Testpoints": ["Attribute - Color", "Style"],
        "Testpoint Description": ["red", "a sketch"],
    }
    rows = [
        {
            "index": n, f"prompt_{language}": f"prompt {n}",
            f"sub_dims_{language}": json.dumps(points),
        }
        for n in range(8)
    ]  # fmt: skip
    write_csv(folder / f"test_prompts_{language}.csv", rows)
    return folder / f"test_prompts_{language}.csv"


def unigenbench_zh(folder: Path) -> Path:
    return unigenbench(folder, "zh")


def ueval(folder: Path) -> Path:
    tasks = ["art", "space"]
    entries = [
        {
            "id": n, "prompt": f"how {n}", "task": tasks[n % 2],
            "text_rubrics": ["Names the cup."], "image_rubrics": ["Shows a cup.", "Is one style."],
        }
        for n in range(8)
    ]  # fmt: skip
    write_json(folder / "ueval.json", entries)
    return folder / "ueval.json"


SETS: dict[str, Callable[[Path], Path]] = {
    "geneval": geneval, "geneval2": geneval2, "genai-bench": genai_bench, "dpg-bench": dpg_bench,
    "oneig": oneig, "oneig-zh": oneig_zh, "wise": wise, "wise-verified": wise_verified,
    "gedit": gedit, "imgedit": imgedit, "unigenbench": unigenbench,
    "unigenbench-zh": unigenbench_zh, "ueval": ueval,
}  # fmt: skip
"""Benchmark -> writes its set of eight prompts, gives the path for --data."""


def tree(folder: Path) -> dict[str, bytes]:
    """Path -> contents of all files below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
