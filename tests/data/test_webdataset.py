"""Shards that other tools write: captions as texts, keys of any form, other encodings."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from nextstep.data.documents import SampleError
from nextstep.data.shard_index import index_path
from nextstep.data.shards import ShardSet
from nextstep.errors import NextStepError
from tests.data.toys import picture


def shard(path: Path, members: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def captions(shards: ShardSet) -> dict[str, str]:
    entries = [shards.entry(index) for index in range(len(shards))]
    return {e.key.split("/", 2)[2]: e.captions["caption"] for e in entries}


@pytest.mark.parametrize("ending", ["txt", "caption", "TXT"])
@pytest.mark.parametrize(
    "key",
    ["000001", "img.v2.final", "my-photo-7", "deep/folder/a.b", "é ü", "x" * 120, "./00", "a-0-1"],
)
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_captions_as_texts_belong_to_the_picture_of_their_name(
    tmp_path: Path, ending: str, key: str, form: int
) -> None:
    shard(tmp_path / "a.tar", {f"{key}.jpg": picture(1, form="JPEG"), f"{key}.{ending}":
                               b" a red apple\n", f"{key}.cls": b"3"}, form)  # fmt: skip
    shards = ShardSet(tmp_path)
    assert shards.kind == "image_text"
    assert captions(shards) == {key.removeprefix("./"): "a red apple"}
    assert len(shards.pictures(0)) == 1
    # The index beside it says the same.
    assert captions(ShardSet(tmp_path)) == captions(shards)


def test_neighbours_whose_names_share_a_beginning_stay_apart(tmp_path: Path) -> None:
    names = ["0.1", "0.2", "0", "0-1", "0-2"]
    members = {f"{name}.png": picture(n) for n, name in enumerate(names)}
    members |= {f"{name}.txt": name.encode() for name in names}
    shard(tmp_path / "a.tar", members)
    assert captions(ShardSet(tmp_path)) == {name: name for name in names}


def test_a_record_without_a_caption_takes_the_text(tmp_path: Path) -> None:
    record = json.dumps({"url": "http://example.org/a.jpg", "score": 5}).encode()
    told = b'{"caption": "from the record"}'
    shard(tmp_path / "a.tar", {
        "a.jpg": picture(1, form="JPEG"), "a.txt": b"from the text", "a.json": record,
        "b.jpg": picture(2, form="JPEG"), "b.txt": b"text", "b.json": told,
    })  # fmt: skip
    shards = ShardSet(tmp_path)
    assert captions(shards) == {"a": "from the text", "b": "from the record"}
    assert shards.entry(0).numbers == {"score": 5.0}


def test_texts_in_other_encodings_are_named_or_read_as_asked(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", {
        "a.png": picture(1), "a.txt": "Äpfel".encode("cp1252"),
        "b.png": picture(2), "b.txt": "Äpfel".encode("utf-16"),
        "c.png": picture(3), "c.txt": "Äpfel".encode("utf-16-le"),
        "d.png": picture(4), "d.txt": "Äpfel".encode(),
    })  # fmt: skip
    shards = ShardSet(tmp_path)
    for index, reason in ((0, "not utf-8 text at byte 0; .* --encoding"), (2, "--encoding")):
        with pytest.raises(SampleError, match=reason):
            shards.entry(index)
    assert [shards.entry(i).captions["caption"] for i in (1, 3)] == ["Äpfel", "Äpfel"]
    assert ShardSet(tmp_path, encoding="cp1252").entry(0).captions["caption"] == "Äpfel"
    with pytest.raises(NextStepError, match="unknown encoding 'klingon'; common ones are"):
        ShardSet(tmp_path, encoding="klingon")


def test_a_single_shard_is_a_set(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", {"a.png": picture(1), "a.txt": b"one"})
    shard(tmp_path / "b.tar", {"b.png": picture(1), "b.txt": b"two"})
    shards = ShardSet(tmp_path / "b.tar")
    assert (shards.name, captions(shards)) == ("b", {"b": "two"})


def test_shards_without_a_sample_are_refused(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", {"a.npy": b"1", "b.cls": b"2"})
    with pytest.raises(NextStepError, match=r"holds no samples .* KEY.jpg with KEY.txt"):
        ShardSet(tmp_path, kind="image_text")


def test_a_shard_that_was_packed_again_gets_a_new_index(tmp_path: Path) -> None:
    """Of the same size, as tar archives often are."""
    path = shard(tmp_path / "a.tar", {"a.png": picture(1), "a.txt": b"one"})
    assert captions(ShardSet(tmp_path)) == {"a": "one"}
    size = path.stat().st_size
    shard(path, {"b.txt": b"two", "b.png": picture(1)})
    later = index_path(path).stat().st_mtime_ns + 10**9
    os.utime(path, ns=(later, later))
    assert path.stat().st_size == size
    assert captions(ShardSet(tmp_path)) == {"b": "two"}


def test_an_index_of_the_first_version_is_used_where_it_says_all(tmp_path: Path) -> None:
    for name, members, kept in (
        ("ours", {"aa.json": b'{"caption": "one"}', "aa-0.png": picture(1)}, True),
        ("theirs", {"a.png": picture(1), "a.txt": b"one"}, False),
    ):
        path = shard(tmp_path / f"{name}.tar", members)
        ShardSet(path)
        old = index_path(path).read_text().replace('"version": 2', '"version": 1')
        if not kept:
            old = old.replace('"text"', '"problem": ["missing caption", ""], "no"')
        index_path(path).write_text(old)
        assert list(captions(ShardSet(path)).values()) == ["one"]
        assert ('"version": 1' in index_path(path).read_text()) == kept
