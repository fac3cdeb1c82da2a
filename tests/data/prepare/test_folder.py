"""Folders of pictures as people keep them: every caption is found, everything else is named."""

from __future__ import annotations

import csv
import io
import json
import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from nextstep.data.documents import SampleError
from nextstep.data.prepare.build import build_set, guess_form, open_source
from nextstep.data.prepare.columns import Item
from nextstep.data.prepare.folder import PictureFolder, from_folder
from nextstep.data.shard_writer import RawSample
from nextstep.errors import NextStepError
from nextstep.image import formats
from tests.data.test_webdataset import shard
from tests.data.toys import picture


def put(folder: Path, name: str, content: str | bytes | None = None) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        content = picture(len(name))
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def found(folder: Path, kind: str = "image_text", **asked: object) -> dict[str, str]:
    """Origin -> caption of samples, or reason of what is left out."""
    items: list[Item] = list(from_folder(folder, kind, **asked))  # type: ignore[arg-type]
    told = {i.key: i.reason for i in items if isinstance(i, SampleError)}
    return told | {i.origin: str(i.record["caption"]) for i in items if isinstance(i, RawSample)}


def sources(folder: Path) -> dict[str, str]:
    items = from_folder(folder, "image_text")
    return {i.origin: i.caption_source for i in items if isinstance(i, RawSample)}


def as_csv(rows: list[dict[str, object]], delimiter: str = ",") -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


ROWS: list[dict[str, object]] = [
    {"file_name": "a.png", "text": "a red, ripe apple", "score": 5},
    {"file_name": "sub/b.jpg", "text": 'a "green" pear', "score": 0.5},
]
JSONL = "\n".join(json.dumps(row) for row in ROWS)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.jsonl", JSONL), ("metadata.jsonl", JSONL.replace("sub/b", r"sub\\b")),
        ("metadata.csv", as_csv(ROWS)), ("metadata.csv", as_csv(ROWS, ";")),
        ("metadata.csv", as_csv(ROWS, "\t")),
        ("metadata.csv", as_csv(ROWS).replace("sub/", "sub\\")),
        ("metadata.jsonl", "\ufeff" + JSONL), ("Metadata.CSV", "\ufeff" + as_csv(ROWS)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_tables_lead_a_folder(tmp_path: Path, name: str, text: str, encoding: str) -> None:
    if encoding == "utf-16" and text.startswith("\ufeff"):
        pytest.skip("UTF-16 has a mark of its own")
    put(tmp_path, "a.png")
    put(tmp_path, "sub/b.jpg", picture(2, form="JPEG"))
    put(tmp_path, "a.txt", "not this one")
    put(tmp_path, "c.png")
    put(tmp_path, "c.txt", "beside it")
    put(tmp_path, "d.png")
    put(tmp_path, name, text.encode(encoding))
    assert found(tmp_path) == {
        "a.png": "a red, ripe apple", "sub/b.jpg": 'a "green" pear', "c.png": "beside it",
        "d.png": "missing caption",
    }  # fmt: skip
    assert sources(tmp_path) == {"a.png": name, "sub/b.jpg": name, "c.png": ".txt files"}
    items = [i for i in from_folder(tmp_path, "image_text") if isinstance(i, RawSample)]
    assert [item.record.get("score") for item in items] == [5, 0.5, None]


def test_tables_in_folders_name_pictures_beside_them(tmp_path: Path) -> None:
    put(tmp_path, "train/cats/1.png")
    put(tmp_path, "train/cats/metadata.csv", "file_name,text\n1.png,a cat\nnone.png,lost\n")
    put(tmp_path, "dogs/metadata.jsonl", '{"file_name": "../dogs/2.png", "caption": "a dog"}\n{')
    put(tmp_path, "dogs/2.png")
    assert found(tmp_path) == {
        "train/cats/1.png": "a cat", "train/cats/metadata.csv:3": "missing picture",
        "dogs/2.png": "a dog", "dogs/metadata.jsonl:2": "corrupt caption",
    }  # fmt: skip


def test_a_table_of_edits(tmp_path: Path) -> None:
    for name in ("before.png", "after.png"):
        put(tmp_path, name)
    put(tmp_path, "LICENSE.txt", "free")
    row = {"source": "before.png", "target": "after.png", "instruction": "make it red"}
    put(tmp_path, "metadata.csv", as_csv([row]))
    assert found(tmp_path, "image_to_image") == {
        "metadata.csv:2": "<image_0>make it red<image_1>"
    }  # fmt: skip


def test_columns_of_tables_can_be_named(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    put(tmp_path, "metadata.csv", "wo,was\na.png,ein Apfel\n")
    with pytest.raises(NextStepError, match="--image-column"):
        found(tmp_path)
    assert found(tmp_path, pictures=("wo",), caption="was") == {"a.png": "ein Apfel"}


def test_captions_beside_pictures(tmp_path: Path) -> None:
    captions = {
        "a.caption": "as kohya's tools write it", "b.v2.final.txt": "dots in the name",
        "c.jpg.txt": "the whole name", "d.TXT": "in capitals", "e.json": '{"caption": "json"}',
        "f.json": '{"url": "x", "score": 4}', "f.txt": "text beside numbers",
        "g.json": '{"caption": "of two"}', "g.txt": "the record counts",
        unicodedata.normalize("NFD", "h é.txt"): "composed otherwise",
    }  # fmt: skip
    for name, text in captions.items():
        put(tmp_path, name, text)
    for name in ("a.png", "b.v2.final.png", "c.jpg", "d.PNG", "e.jfif", "f.jpe", "g.webp",
                 unicodedata.normalize("NFC", "h é.png")):  # fmt: skip
        put(tmp_path, name)
    assert list(found(tmp_path).values()) == [
        "as kohya's tools write it", "dots in the name", "the whole name", "in capitals", "json",
        "text beside numbers", "of two", "composed otherwise",
    ]  # fmt: skip
    kinds = list(sources(tmp_path).values())
    assert kinds == [".caption files", *[".txt files"] * 3, ".json files", ".txt files",
                     ".json files", ".txt files"]  # fmt: skip


def test_stray_texts_are_named_and_change_nothing(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    put(tmp_path, "LICENSE.txt", "free")
    put(tmp_path, "notes.json", "[1, 2")
    assert not PictureFolder.scan(tmp_path).has_captions
    put(tmp_path, "a.txt", "an apple")
    assert PictureFolder.scan(tmp_path).has_captions
    assert found(tmp_path) == {
        "a.png": "an apple", "LICENSE.txt": "text without a picture",
        "notes.json": "text without a picture",
    }  # fmt: skip


def test_encodings(tmp_path: Path) -> None:
    text = "Äpfel und süß"
    put(tmp_path, "a.txt", text.encode("utf-16"))
    put(tmp_path, "b.txt", text.encode("utf-8-sig"))
    put(tmp_path, "c.txt", text.encode("cp1252"))
    put(tmp_path, "d.txt", text.encode("utf-32"))
    put(tmp_path, "e.txt", text.encode("utf-16-be"))
    put(tmp_path, "f.json", json.dumps({"caption": text}, ensure_ascii=False).encode("cp1252"))
    for name in "abcdef":
        put(tmp_path, f"{name}.png")
    plain = found(tmp_path)
    assert [plain[f"{name}.png"] for name in "abd"] == [text] * 3
    assert [plain[f"{name}.png"] for name in "cef"] == ["corrupt caption"] * 3
    errors = [i for i in from_folder(tmp_path, "image_text") if isinstance(i, SampleError)]
    assert all("--encoding" in error.detail for error in errors)
    named = found(tmp_path, encoding="cp1252")
    assert [named[f"{name}.png"] for name in "abcdf"] == [text] * 5
    put(tmp_path, "g/metadata.jsonl", json.dumps({"file_name": "g.png", "text": "苹果"},
                                                 ensure_ascii=False).encode("gbk"))  # fmt: skip
    put(tmp_path, "g/g.png")
    assert found(tmp_path / "g") == {
        "metadata.jsonl:1": "corrupt caption", "g.png": "missing caption"
    }  # fmt: skip
    assert found(tmp_path / "g", encoding="gbk") == {"g.png": "苹果"}
    with pytest.raises(NextStepError, match="unknown encoding 'x'"):
        from_folder(tmp_path, "image_text", encoding="x")


def test_a_bad_csv_ends_with_its_place(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    put(tmp_path, "metadata.csv", 'file_name,text\na.png,an apple\nb.png,"never closed\n')
    assert found(tmp_path) == {"a.png": "an apple", "metadata.csv:2": "corrupt caption"}


def test_pictures_that_are_not_read_are_counted_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "readable", lambda: formats.FORMATS)
    for name in ("a.heic", "b.JXL", "c.cr2"):
        put(tmp_path, name, b"some picture")
    put(tmp_path, "d.avif", _encoded("AVIF"))
    put(tmp_path, "d.txt", "an apple")
    report = build_set(
        open_source(str(tmp_path), "image_text"), tmp_path / "out", "a", "image_text"
    )
    assert report.samples == 1
    assert [(error.key, error.reason) for error in report.broken] == [
        ("a.heic", "unread format"), ("b.JXL", "unread format"), ("c.cr2", "unread format"),
    ]  # fmt: skip
    assert "open-nextstep[heif]" in str(report.broken[0])
    assert report.captions == {".txt files": 1}


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    put(tmp_path, "in/a.png")
    put(tmp_path, "in/a.txt", "an apple")
    put(tmp_path, "elsewhere/b.png")
    put(tmp_path, "elsewhere/b.txt", "a pear")
    put(tmp_path, "in/.hidden/c.png")
    put(tmp_path, "in/._a.png", b"a resource fork")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "broken.png").symlink_to(tmp_path / "nowhere.png")
    assert found(tmp_path / "in") == {
        "a.png": "an apple", "link/b.png": "a pear", "broken.png": "unreadable file",
    }  # fmt: skip


def test_shards_are_read_as_folders_are(tmp_path: Path) -> None:
    shard_folder = tmp_path / "in"
    shard_folder.mkdir()
    shard(shard_folder / "a.tar", {
        "x.1.jpg": picture(1, form="JPEG"), "x.1.txt": b"one", "y.png": picture(2),
    })  # fmt: skip
    for source in (shard_folder, shard_folder / "a.tar"):
        assert guess_form(str(source)) == "shards"
        out = tmp_path / source.name.replace(".", "-")
        report = build_set(open_source(str(source), "image_text"), out / "set", "s", "image_text")
        assert report.samples == 1
        assert [error.reason for error in report.broken] == ["missing caption"]
        assert list(report.captions.values()) == [1]


def test_a_digest_changes_with_every_picture_and_text(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    put(tmp_path, "a.txt", "an apple")
    seen = [PictureFolder.scan(tmp_path).digest()]
    assert PictureFolder.scan(tmp_path).digest() == seen[0]
    put(tmp_path, "a.txt", "an appel")
    seen.append(PictureFolder.scan(tmp_path).digest())
    put(tmp_path, "b.png")
    seen.append(PictureFolder.scan(tmp_path).digest())
    large = put(tmp_path, "c.png", bytes(2**21))
    seen.append(PictureFolder.scan(tmp_path).digest())
    os.utime(large, ns=(1, 1))
    seen.append(PictureFolder.scan(tmp_path).digest())
    assert len(set(seen)) == 5


def _encoded(form: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(buffer, form)
    return buffer.getvalue()
