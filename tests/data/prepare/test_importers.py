"""Importers: every kind of source becomes the same raw samples, and bad ones end nothing."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nextstep.data.documents import SampleError
from nextstep.data.ordered import ordered_map
from nextstep.data.prepare.build import build_set, guess_form, open_source
from nextstep.data.prepare.columns import choose_columns
from nextstep.data.prepare.folder import from_folder
from nextstep.data.prepare.importers import Item, from_datasets, from_parquet, from_table
from nextstep.data.shards import RawSample, ShardSet
from nextstep.errors import NextStepError
from tests.data.toys import bomb, noise, picture

datasets = pytest.importorskip("datasets")

EDIT = "<image_0>make it red<image_1>"
JPEG, WEBP = picture(5, form="JPEG"), picture(6, form="WEBP")


def good(items: Iterator[Item]) -> list[RawSample]:
    found = list(items)
    assert all(isinstance(item, RawSample) for item in found), found
    return [item for item in found if isinstance(item, RawSample)]


def broken(items: Iterator[Item]) -> list[tuple[str, str]]:
    return [(item.key, item.reason) for item in items if isinstance(item, SampleError)]


def test_a_folder_of_captioned_pictures(tmp_path: Path) -> None:
    deep = tmp_path / "deep"
    deep.mkdir()
    (tmp_path / "b.jpg").write_bytes(JPEG)
    (tmp_path / "b.txt").write_text("\ufeffa thing é\n", encoding="utf-8")
    (deep / "a-0.webp").write_bytes(WEBP)
    told = {"caption": "one", "caption_all": {"short": "1"}, "score": 3, "metadata": {"by": "me"}}
    (deep / "a-0.json").write_text(json.dumps(told))
    (tmp_path / "c.png").write_bytes(picture())
    (tmp_path / "c.json").write_text('["first", "second"]')
    (tmp_path / ".hidden.png").write_bytes(picture())
    samples = good(from_folder(tmp_path, "image_text"))
    assert [sample.origin for sample in samples] == ["b.jpg", "c.png", "deep/a-0.webp"]
    assert samples[0].record == {"caption": "a thing é", "metadata": {"origin": "b.jpg"}}
    assert samples[0].pictures == (JPEG,), "the file as it is"
    assert samples[1].record["caption"] == "first"
    assert samples[1].record["caption_all"] == ["first", "second"]
    assert samples[2].record == {
        **told, "metadata": {"by": "me", "origin": "deep/a-0.webp"},
    }  # fmt: skip
    (tmp_path / "d.png").write_bytes(picture())
    (tmp_path / "e.png").write_bytes(picture())
    (tmp_path / "e.json").write_text("{")
    (tmp_path / "f.png").write_bytes(picture())
    (tmp_path / "f.txt").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "g.png").write_bytes(picture())
    (tmp_path / "g.txt").write_text("  ")
    assert broken(from_folder(tmp_path, "image_text")) == [
        ("d.png", "missing caption"), ("e.png", "corrupt caption"),
        ("f.png", "corrupt caption"), ("g.png", "missing caption"),
    ]  # fmt: skip


def test_a_folder_of_edits_and_of_stories(tmp_path: Path) -> None:
    for name in ("a-0.jpg", "a-1.png", "b-0.png", "b-1.png", "b-10.png", "b-2.png", "lost-0.png"):
        (tmp_path / name).write_bytes(picture(len(name), form="PNG"))
    (tmp_path / "a.txt").write_text("make it red")
    (tmp_path / "b.txt").write_text("<image_3> and <image_1> as <image_0>, <image_2>")
    items = list(from_folder(tmp_path, "image_to_image"))
    assert [i.record["caption"] for i in items if isinstance(i, RawSample)] == [
        EDIT, (tmp_path / "b.txt").read_text(),
    ]  # fmt: skip
    assert broken(iter(items)) == [("lost-0.png", "missing caption")]
    named = tmp_path / "named"
    named.mkdir()
    (named / "x.png").write_bytes(picture(1))
    (named / "y.png").write_bytes(picture(2))
    (named / "s.json").write_text(
        '{"caption": "<image_1>, <image_0>", "images": ["x.png", "y.png"]}'
    )
    (named / "t.json").write_text('{"caption": "<image_0>", "images": ["none.png"]}')
    (named / "u.txt").write_text("no pictures")
    items = list(from_folder(named, "interleaved"))
    assert isinstance(items[0], RawSample)
    assert items[0].pictures == (picture(1), picture(2))
    assert "images" not in items[0].record
    assert broken(iter(items)) == [("t.json", "missing picture"), ("u.txt", "missing picture")]


def test_a_folder_of_texts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("once")
    (tmp_path / "b.json").write_text('{"content": "twice", "year": 1999}')
    (tmp_path / "c.json").write_text('{"year": 1999}')
    items = list(from_folder(tmp_path, "text"))
    assert isinstance(items[0], RawSample)
    assert isinstance(items[1], RawSample)
    assert items[0].record == {"text": "once", "metadata": {"origin": "a.txt"}}
    assert items[1].record == {"text": "twice", "year": 1999, "metadata": {"origin": "b.json"}}
    assert broken(iter(items)) == [("c.json", "missing caption")]


def test_json_lines(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(picture(1))
    path = tmp_path / "list.jsonl"
    rows = [
        {"file_name": "pictures/a.png", "text": " first ", "score": 0.5, "ok": True, "url": "x"},
        {"file_name": "pictures/none.png", "text": "second"},
        {"file_name": "pictures", "text": "a folder"},
        {"file_name": None, "text": "third"},
        {"file_name": "pictures/a.png", "text": None},
        {"file_name": 5, "text": "fourth"},
    ]
    lines = [json.dumps(row) for row in rows]
    path.write_text("\n".join([*lines, "", "{", "[]"]) + "\n")
    items = list(from_table(path, "image_text"))
    assert isinstance(items[0], RawSample)
    assert items[0].pictures == (picture(1),)
    assert items[0].record == {
        "caption": "first", "score": 0.5, "ok": True, "url": "x",
        "metadata": {"origin": "list.jsonl:1"},
    }  # fmt: skip
    assert broken(iter(items)) == [
        ("list.jsonl:2", "missing picture"), ("list.jsonl:3", "missing picture"),
        ("list.jsonl:4", "missing picture"), ("list.jsonl:5", "missing caption"),
        ("list.jsonl:6", "corrupt picture"), ("list.jsonl:8", "corrupt caption"),
        ("list.jsonl:9", "corrupt caption"),
    ]  # fmt: skip


def test_parquet(tmp_path: Path) -> None:
    table = pyarrow.table(
        {
            "before": [{"bytes": JPEG, "path": "x.jpg"}, {"bytes": None, "path": "here.webp"}],
            "after": [picture(1), picture(2)],
            "instruction": ["make it red", "<image>red<image>"],
            "tags": [["a", "b"], None],
            "blob": [b"1", b"2"],
            "score": [1.5, float("nan")],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "here.webp").write_bytes(WEBP)
    samples = good(from_parquet(tmp_path / "a.parquet", "image_to_image"))
    assert samples[0].pictures == (JPEG, picture(1))
    assert samples[0].record == {
        "caption": EDIT, "tags": ["a", "b"], "score": 1.5, "metadata": {"origin": "a.parquet:0"},
    }  # fmt: skip
    assert samples[1].pictures == (WEBP, picture(2))
    assert samples[1].record["caption"] == "<image>red<image>"
    assert "score" not in samples[1].record
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet")
    assert len(good(from_parquet(tmp_path, "image_to_image"))) == 4
    lists = pyarrow.table({"frames": [[JPEG, WEBP]], "caption": ["<image_1><image_0>"]})
    pyarrow.parquet.write_table(lists, tmp_path / "c.parquet")
    (story,) = good(from_parquet(tmp_path / "c.parquet", "interleaved"))
    assert story.pictures == (JPEG, WEBP)
    (tmp_path / "c.parquet").write_bytes(b"PAR1nonsense")
    with pytest.raises(NextStepError, match="is not a Parquet file"):
        from_parquet(tmp_path, "image_to_image")


@pytest.fixture(scope="module")
def hub_set() -> datasets.Dataset:
    features = datasets.Features(
        {
            "photo": datasets.Image(),
            "text": datasets.Value("string"),
            "frames": datasets.List(datasets.Image()),
            "likes": datasets.Value("int32"),
        }
    )
    rows = [
        {"photo": {"bytes": JPEG, "path": None}, "text": "one", "frames": [], "likes": 3},
        {"photo": {"bytes": WEBP, "path": None}, "text": "two", "likes": 4,
         "frames": [{"bytes": WEBP, "path": None}, {"bytes": JPEG, "path": None}]},
    ]  # fmt: skip
    return datasets.Dataset.from_list(rows, features=features)


def test_hugging_face_data_sets(hub_set: datasets.Dataset, tmp_path: Path) -> None:
    """An object, a stream, a saved folder and a folder with splits give the same samples."""
    hub_set.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": hub_set}).save_to_disk(str(tmp_path / "splits"))
    (tmp_path / "files").mkdir()
    hub_set.to_parquet(str(tmp_path / "files" / "train.parquet"))
    for source in (
        hub_set, hub_set.to_iterable_dataset(), tmp_path / "saved", tmp_path / "splits",
        tmp_path / "files",
    ):  # fmt: skip
        one, two = good(from_datasets(source, "image_text", ("photo",)))
        assert (one.pictures, two.pictures) == ((JPEG,), (WEBP,)), source
        assert one.record["caption"] == "one"
        assert one.record["likes"] == 3
        assert "frames" not in one.record
    (story,) = good(from_datasets(hub_set.select([1]), "interleaved", ("frames",)))
    assert story.pictures == (WEBP, JPEG)
    with pytest.raises(NextStepError, match="no split 'test'; it has train"):
        from_datasets(tmp_path / "splits", "image_text", split="test")
    with pytest.raises(NextStepError, match="--image-column"):
        from_datasets(hub_set.rename_column("photo", "still"), "image_text")
    (only,) = good(
        from_datasets(
            hub_set.select([0]).remove_columns("frames").rename_column("photo", "still"),
            "image_text",
        )
    )
    assert only.pictures == (JPEG,), "the only column of pictures needs no name"


def test_a_missing_data_set_is_reported_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NextStepError, match="cannot be read"):
        from_datasets(tmp_path / "none", "text")
    monkeypatch.setattr("nextstep.data.prepare.importers.find_spec", lambda name: None)
    with pytest.raises(NextStepError, match="pip install datasets"):
        from_datasets(tmp_path / "none", "text")


@pytest.mark.parametrize(
    ("names", "kind", "expected"),
    [
        ("image text", "image_text", ("image", "text")),
        ("Image Caption id", "image_text", ("Image", "Caption")),
        ("file_name caption_all", "image_text", ("file_name", "caption_all")),
        ("source target instruction", "image_to_image", ("source", "target", "instruction")),
        ("input_image edit_prompt edited_image", "image_to_image",
         ("input_image", "edited_image", "edit_prompt")),
        ("image_1 image_0 caption", "interleaved", ("image_0", "image_1", "caption")),
        ("images caption", "image_to_image", ("images", "caption")),
        ("text id", "text", ("text",)),
    ],
)  # fmt: skip
def test_columns_are_guessed(names: str, kind: str, expected: tuple[str, ...]) -> None:
    columns = choose_columns(names.split(), kind)
    assert (*columns.pictures, columns.caption) == expected


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"pictures": ("photo",)}, "no column 'photo'; the columns are a, b"),
        ({"caption": "c"}, "no column 'c'"),
        ({}, r"\(a, b\); name them in order with --image-column"),
        ({"pictures": ("a",)}, "name it with --caption-column"),
    ],
)
def test_columns_that_cannot_be_guessed(named: dict, said: str) -> None:
    with pytest.raises(NextStepError, match=said):
        choose_columns(["a", "b"], "image_text", **named)


def test_build_leaves_broken_samples_out_and_names_them(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    gif = io.BytesIO()
    Image.new("P", (8, 4)).save(gif, "GIF")
    files = {
        "a.png": picture(1), "b.jpg": noise()[:-900], "c.png": bomb(), "d.gif": gif.getvalue(),
        "e.png": b"nothing", "f.jpg": JPEG, "g.png": picture(2),
    }  # fmt: skip
    for name, data in files.items():
        (source / name).write_bytes(data)
        (source / name).with_suffix(".txt").write_text("a <image_3>" if name[0] == "g" else name)
    told = []
    report = build_set(
        open_source(str(source), "image_text"), tmp_path / "set", "toys", "image_text", 2,
        threads=3, on_item=told.append,
    )  # fmt: skip
    assert (report.samples, report.shards, len(told)) == (3, 2, 7)
    assert [(error.key, error.reason) for error in report.broken] == [
        ("b.jpg", "corrupt picture"), ("c.png", "decompression bomb"),
        ("e.png", "corrupt picture"), ("g.png", "wrong tag count"),
    ]  # fmt: skip
    assert report.reasons == {
        "corrupt picture": 2, "decompression bomb": 1, "wrong tag count": 1,
    }  # fmt: skip
    shards = ShardSet(tmp_path / "set")
    assert [shards.record(i)["metadata"]["origin"] for i in range(3)] == ["a.png", "d.gif", "f.jpg"]
    assert [shards.picture_files(i)[0] for i in (0, 2)] == [picture(1), JPEG]
    assert shards.pictures(1)[0].size == (8, 4), "a GIF is stored as PNG"
    headers_only = build_set(
        from_folder(source, "image_text"), tmp_path / "quick", "toys", "image_text",
        decode_pictures=False, limit=3,
    )  # fmt: skip
    assert headers_only.samples == 3
    assert [error.key for error in headers_only.broken] == ["c.png"], (
        "without decoding a cut JPEG passes"
    )


def test_build_does_not_depend_on_threads(tmp_path: Path) -> None:
    items = [RawSample({"caption": f"n {i}"}, (picture(i),), None, f"n{i}") for i in range(40)]
    for threads in (1, 4):
        build_set(items, tmp_path / f"{threads}", "toys", "image_text", 7, threads=threads)
    for path in sorted((tmp_path / "1").iterdir()):
        assert path.read_bytes() == (tmp_path / "4" / path.name).read_bytes()


def test_a_source_without_a_usable_sample_makes_nothing(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text("{\n")
    with pytest.raises(NextStepError, match=r"none of 1 samples .* list.jsonl:1: corrupt caption"):
        build_set(from_table(tmp_path / "list.jsonl", "text"), tmp_path / "set", "a", "text")
    (tmp_path / "list.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(NextStepError, match="--caption-column"):
        build_set(from_table(tmp_path / "list.jsonl", "text"), tmp_path / "set", "a", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["list.jsonl"]


def test_sources_are_distinguished_by_what_lies_there(
    hub_set: datasets.Dataset, tmp_path: Path
) -> None:
    hub_set.save_to_disk(str(tmp_path / "saved"))
    assert guess_form(str(tmp_path / "saved")) == "datasets"
    assert guess_form(str(tmp_path)) == "folder"
    for name, form in [("a.parquet", "parquet"), ("metadata.jsonl", "jsonl"), ("b.JSONL", "jsonl")]:
        (tmp_path / name).write_text("x")
        assert guess_form(str(tmp_path / name)) == form
    assert guess_form(str(tmp_path)) == "folder", "the folder reads its metadata.jsonl"
    (tmp_path / "metadata.jsonl").unlink()
    assert guess_form(str(tmp_path)) == "parquet"
    (tmp_path / "a.md").write_text("x")
    for source, form, said in [
        (str(tmp_path / "a.md"), None, "of no known form"),
        (str(tmp_path / "none"), None, "--form datasets"),
        (str(tmp_path), "xls", "unknown form 'xls'"),
        (str(tmp_path / "none.jsonl"), "jsonl", "there is no file"),
        (str(tmp_path / "none"), "folder", "there is no folder"),
        (str(tmp_path / "none"), "parquet", "there is no Parquet file"),
    ]:
        with pytest.raises(NextStepError, match=said):
            open_source(source, "text", form)
    with pytest.raises(NextStepError, match=r"without metadata.jsonl or .* has no columns"):
        open_source(str(tmp_path), "text", "folder", caption="a")
    with pytest.raises(NextStepError, match="unknown kind"):
        open_source(str(tmp_path), "poems", "folder")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NextStepError, match="holds no pictures"):
        open_source(str(tmp_path / "empty"), "image_text", "folder")


@given(st.lists(st.integers()), st.integers(1, 5))
def test_ordered_map_is_map(items: list[int], threads: int) -> None:
    assert list(ordered_map(lambda i: i * 2, items, threads)) == [i * 2 for i in items]


def test_ordered_map_holds_few_items() -> None:
    drawn, gate = 0, threading.Event()

    def source() -> Iterator[int]:
        nonlocal drawn
        for i in range(1000):
            drawn += 1
            yield i

    results = ordered_map(lambda i: gate.wait(5) and i, source(), 2)
    threading.Timer(0.05, gate.set).start()
    assert next(results) == 0
    time.sleep(0.05)
    assert drawn < 20
    results.close()
