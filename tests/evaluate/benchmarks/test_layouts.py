"""The folders that official scorers read, file by file against trees made by hand."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextstep.errors import NextStepError
from nextstep.evaluate.benchmarks import benchmark_class
from nextstep.evaluate.benchmarks.base import Item, Output
from nextstep.evaluate.benchmarks.files import data_hash
from nextstep.image.encode import encode
from tests.evaluate.benchmarks.official import SETS, SIZE, made, picture, tree

RECORD = {
    "nextstep": json.dumps({"prompt": "p", "version": "0", "seed": 0}),
    "Software": "open-nextstep 0",
    "Description": "p",
}


def png(number: int) -> bytes:
    texts = RECORD | {"nextstep": json.dumps({"prompt": "p", "version": "0", "seed": number})}
    return encode(picture(number), "PNG", texts)


def grid_pixels() -> np.ndarray:
    """Four pictures in reading order, set together by hand."""
    cells = [np.asarray(picture(n)) for n in range(4)]
    return np.concatenate([np.concatenate(cells[:2], 1), np.concatenate(cells[2:], 1)])


def written(name: str, folder: Path, model: str = "m") -> tuple[dict[str, bytes], list[Item]]:
    """All files after the first item of a set was written and the set finished."""
    benchmark = benchmark_class(name)()
    items = benchmark.read(SETS[name](folder / "set"))[:1]
    out = folder / "images"
    out.mkdir()
    output = Output([made(n) for n in range(benchmark.repeats)], "some words")
    benchmark.write(out, items[0], output, model)
    benchmark.finish(out, items, model)
    assert all((out / file).is_file() for file in benchmark.files(items[0], model))
    return tree(out), items


def test_geneval(tmp_path: Path) -> None:
    metadata = (
        b'{"tag": "single_object", "include": [{"class": "cup", "count": 1}], '
        b'"prompt": "a photo of 0 cups"}'
    )
    assert written("geneval", tmp_path)[0] == {
        "00000/metadata.jsonl": metadata,
        "00000/samples/00000.png": png(0),
        "00000/samples/00001.png": png(1),
        "00000/samples/00002.png": png(2),
        "00000/samples/00003.png": png(3),
    }


def test_geneval2(tmp_path: Path) -> None:
    assert written("geneval2", tmp_path)[0] == {
        "00000.png": png(0),
        "image_paths.json": b'{\n  "0 white cups": "00000.png"\n}',
    }


def test_genai_bench(tmp_path: Path) -> None:
    files, _ = written("genai-bench", tmp_path)
    assert list(files) == [f"m-{n}/00000.jpeg" for n in range(4)]
    with Image.open(io.BytesIO(files["m-0/00000.jpeg"])) as opened:
        assert (opened.format, opened.size) == ("JPEG", (SIZE, SIZE))
        apart = np.asarray(opened).astype(int) - np.asarray(picture(0))
        assert np.abs(apart).max() <= 4  # the best quality that JPEG has


def test_dpg_bench(tmp_path: Path) -> None:
    files, _ = written("dpg-bench", tmp_path)
    assert files == {"part0.png": encode(Image.fromarray(grid_pixels()), "PNG", RECORD)}


@pytest.mark.parametrize("name", ["oneig", "oneig-zh"])
def test_oneig(name: str, tmp_path: Path) -> None:
    files, _ = written(name, tmp_path)
    assert list(files) == ["anime/m/000.webp"]
    with Image.open(io.BytesIO(files["anime/m/000.webp"])) as opened:
        assert opened.format == "WEBP"
        assert (np.asarray(opened.convert("RGB")) == grid_pixels()).all()


@pytest.mark.parametrize("name", ["wise", "wise-verified"])
def test_wise(name: str, tmp_path: Path) -> None:
    assert written(name, tmp_path)[0] == {"1.png": png(0)}


def test_gedit(tmp_path: Path) -> None:
    files, _ = written("gedit", tmp_path)
    assert files == {
        "m/fullset/subject-add/en/k0.png": png(0),
        "m/fullset/subject-add/en/k0_SRCIMG.png": encode(picture(100, (48, 32))),
    }


def test_imgedit(tmp_path: Path) -> None:
    assert written("imgedit", tmp_path)[0] == {"0.png": png(0)}


@pytest.mark.parametrize("name", ["unigenbench", "unigenbench-zh"])
def test_unigenbench(name: str, tmp_path: Path) -> None:
    assert written(name, tmp_path)[0] == {f"0_{n}.png": png(n) for n in range(4)}


def test_ueval(tmp_path: Path) -> None:
    files, _ = written("ueval", tmp_path)
    assert list(files) == ["answers/0.json", "images/0_0.png", "model_outputs.json"]
    assert files["images/0_0.png"] == png(0)
    assert files["model_outputs.json"].decode() == (
        '[\n  {\n    "id": "0",\n    "text_answer": "some words",\n'
        '    "image_answer": [\n      "images/0_0.png"\n    ]\n  }\n]'
    )


@pytest.mark.parametrize("name", SETS)
def test_pictures_are_read_back_as_they_were_made(name: str, tmp_path: Path) -> None:
    benchmark = benchmark_class(name)()
    items = benchmark.read(SETS[name](tmp_path / "set"))
    assert len(items) == 8
    out = tmp_path / "images"
    out.mkdir()
    output = Output([made(n) for n in range(benchmark.repeats)], "some words")
    benchmark.write(out, items[0], output, "m")
    outputs = benchmark.outputs(out, items[0], "m")
    assert len(outputs.pictures) == benchmark.repeats
    if name not in ("genai-bench", "gedit"):  # one is JPEG, the other resized for its judge
        for number, one in enumerate(outputs.pictures):
            assert one is not None
            assert one.tobytes() == picture(number).tobytes()
    missing = benchmark.outputs(out, items[1], "m")
    assert list(missing.pictures) == [None] * benchmark.repeats


def test_a_damaged_picture_counts_as_missing(tmp_path: Path) -> None:
    benchmark = benchmark_class("wise")()
    item = benchmark.read(SETS["wise"](tmp_path / "set"))[0]
    (tmp_path / "1.png").write_bytes(png(0)[:200])
    assert list(benchmark.outputs(tmp_path, item, "m").pictures) == [None]


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_known_by_its_own_files(name: str, tmp_path: Path) -> None:
    data, patterns = SETS[name](tmp_path / "set"), benchmark_class(name).data_patterns
    before = data_hash(data, patterns)
    # What a scorer writes beside the set does not make it another one.
    (tmp_path / "set/results").mkdir()
    (tmp_path / "set/results/scores.csv").write_text("1")
    assert data_hash(data, patterns) == before
    files = [data] if data.is_file() else sorted(p for p in data.rglob("*") if p.is_file())
    for file in files:
        if "results" not in file.parts:
            kept = file.read_bytes()
            file.write_bytes(kept + b" ")
            assert data_hash(data, patterns) != before
            file.write_bytes(kept)
    assert data_hash(data, patterns) == before
    with pytest.raises(NextStepError, match="there is no file or folder"):
        data_hash(tmp_path / "nowhere", patterns)


def test_a_set_of_a_known_version_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = SETS["wise"](tmp_path)
    benchmark = benchmark_class("wise")()
    found = benchmark.set_hash(data)
    assert benchmark.version_of(found).endswith("the hash of the official set is not pinned")

    pinned = benchmark_class("wise")()
    monkeypatch.setattr(type(pinned), "official_hashes", {found: "version of June"})
    assert pinned.version_of(found) == f"set {found[:12]}: the official version of June"
    first = next(data.iterdir())
    first.write_text(first.read_text() + "\n")
    assert "none of the official versions" in pinned.version_of(pinned.set_hash(data))
    assert benchmark_class("world")().version_of("00") == ""
