"""What is refused when shards are written, and what is left of damaged ones."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextstep.data import shard_index
from nextstep.data.documents import SampleError
from nextstep.data.shards import RawSample, ShardSet, ShardWriter, build_index
from nextstep.errors import NextStepError
from tests.data.toys import bomb, damage, picture, put_raw, reason, write

BROKEN = {
    "no caption": (RawSample({"score": 1}, (picture(),)), "missing caption"),
    "no picture": (RawSample({"caption": "a"}), "missing picture"),
    "two pictures": (RawSample({"caption": "a"}, (picture(), picture())), "wrong tag count"),
    "wrong tag": (RawSample({"caption": "a <image_1>"}, (picture(),)), "wrong tag count"),
    "tag twice": (
        RawSample({"caption": "a", "caption_all": ["<image_0><image_0>"]}, (picture(),)),
        "wrong tag count",
    ),
    "not a picture": (RawSample({"caption": "a"}, (b"text",)), "corrupt picture"),
    "header cut": (RawSample({"caption": "a"}, (picture()[:20],)), "corrupt picture"),
    "bomb": (RawSample({"caption": "a"}, (bomb(),)), "decompression bomb"),
    "smaller bomb": (RawSample({"caption": "a"}, (bomb(11_000),)), "decompression bomb"),
    "bad key": (RawSample({"caption": "a"}, (picture(),), "a-b.c"), "bad key"),
    "long key": (RawSample({"caption": "a"}, (picture(),), "a" * 65), "bad key"),
    "same key": (RawSample({"caption": "a"}, (picture(),), "abc"), "duplicate key"),
    "half a character": (RawSample({"caption": "\ud800"}, (picture(),)), "corrupt caption"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("sample", "why"), BROKEN.values(), ids=BROKEN)
def test_the_writer_refuses_broken_samples_and_goes_on(
    sample: RawSample, why: str, tmp_path: Path
) -> None:
    with ShardWriter(tmp_path / "set", "some", "image_text") as writer:
        writer.add(RawSample({"caption": "good"}, (picture(1),), "abc"))
        with pytest.raises(SampleError) as refused:
            writer.add(sample)
        writer.add(RawSample({"caption": "good too"}, (picture(2),)))
    assert refused.value.reason == why
    shards = ShardSet(tmp_path / "set")
    assert [shards.entry(i).captions["caption"] for i in range(len(shards))] == ["good", "good too"]
    assert shard_index.read_index(shards.path(0)) == build_index(shards.path(0))


def test_a_damaged_description_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "set", 2)
    good = json.loads((tmp_path / "set" / "set.json").read_text())
    for told, said in [
        ({**good, "version": 2}, "version 1"),
        ({**good, "kind": "films"}, "unknown kind"),
        ({**good, "shards": []}, "does not list shards"),
        ({**good, "shards": {"../up.tar": {}}}, "no .tar below it"),
    ]:
        (tmp_path / "set" / "set.json").write_text(json.dumps(told))
        with pytest.raises(NextStepError, match=said):
            ShardSet(tmp_path / "set")


MEMBERS = {
    "missing picture": [("aa.json", b'{"caption": "a"}')],
    "missing caption": [("aa-0.jpg", picture())],
    "corrupt caption": [("aa.json", b"{nonsense"), ("aa-0.jpg", picture())],
    "corrupt caption, a list": [("aa.json", b"[1]"), ("aa-0.jpg", picture())],
    "missing picture 0": [("aa.json", b'{"caption": "a"}'), ("aa-1.jpg", picture())],
    "corrupt picture": [("aa.json", b'{"caption": "a"}'), ("aa-0.jpg", b"\xff\xd8\xffnothing")],
    "corrupt picture, cut": [("aa.json", b'{"caption": "a"}'), ("aa-0.png", picture()[:-30])],
    "wrong tag count": [("aa.json", b'{"caption": "<image_0><image_1>"}'), ("aa-0.jpg", picture())],
}


@pytest.mark.parametrize("what", MEMBERS)
def test_broken_members_are_named(what: str, tmp_path: Path) -> None:
    good = [("bb.json", b'{"caption": "good"}'), ("bb.jpg", picture())]
    put_raw(tmp_path / "a.tar", MEMBERS[what] + good)
    shards = ShardSet(tmp_path, kind="image_text")
    assert reason(shards, 0) in what
    assert reason(shards, 0) != ""
    assert reason(shards, 1) == ""


def test_a_thousand_samples_with_four_kinds_of_damage(tmp_path: Path) -> None:
    """A truncated shard, a corrupt JPEG, a wrong tag count and a bomb: all else is readable."""
    shards = write(tmp_path / "set", 1000, 100)
    whole = [(shards.entry(i), shards.picture_files(i)) for i in range(1000)]
    damage(tmp_path / "set", shards)
    shards = ShardSet(tmp_path / "set")
    assert len(shards) == 1000
    reasons = {i: why for i in range(1000) if (why := reason(shards, i))}
    cut = {i for i, why in reasons.items() if why == "truncated shard"}
    assert {i: why for i, why in reasons.items() if i not in cut} == {
        110: "corrupt picture", 220: "wrong tag count", 330: "decompression bomb",
    }  # fmt: skip
    assert cut == set(range(min(cut), 600)), "the end of the sixth shard and nothing else"
    assert 530 < min(cut) < 570
    assert all(shards.key(i) == whole[i][0].key for i in range(1000)), "lost samples keep names"
    good = [i for i in range(1000) if i not in reasons]
    assert [(shards.entry(i), shards.picture_files(i)) for i in good] == [whole[i] for i in good]


@settings(max_examples=60)
@given(st.integers(0, 17 * 1024))
def test_a_shard_cut_anywhere_keeps_what_is_whole(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    """With and without its index, samples that end before the cut are exactly those readable."""
    folder = tmp_path_factory.mktemp("cut") / "set"
    shards = write(folder, 8)
    path = shards.path(0)
    data = path.read_bytes()
    assert len(data) <= 17 * 1024
    ends = [shards.shard_index(0).sample(i).end for i in range(8)]
    path.write_bytes(data[:cut])
    expected = ["" if end <= cut else "truncated shard" for end in ends]
    told = ShardSet(folder)
    assert [reason(told, i) for i in range(8)] == expected
    shard_index.index_path(path).unlink()
    told = ShardSet(folder)
    # Without the index a sample that broke off between its members lacks a picture.
    seen = [reason(told, i) for i in range(8)]
    assert [why == "" for why in seen] == [why == "" for why in expected]
    assert set(seen) <= {"", "truncated shard", "missing picture"}
    assert len({told.key(i) for i in range(8)}) == 8
    shutil.rmtree(folder)


def test_a_cut_shard_without_any_description(tmp_path: Path) -> None:
    write(tmp_path / "set", 10)
    shard = tmp_path / "cut" / "a.tar"
    shard.parent.mkdir()
    data = (tmp_path / "set" / "idx_0000_0000.tar").read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    shards = ShardSet(shard.parent, kind="image_text")
    assert 3 <= len(shards) < 10
    assert [reason(shards, i) for i in range(len(shards))].count("") >= len(shards) - 1
    assert shards.shard_index(0).truncated
    told = {"a.tar": {"num_samples": 10, "size": len(data), "checksum": zlib.adler32(data)}}
    (shard.parent / "meta.json").write_text(json.dumps(told))
    shards = ShardSet(shard.parent, kind="image_text")
    assert len(shards) == 10, "the released meta.json tells how many are lost"
    assert reason(shards, 9) == "truncated shard"


def test_a_missing_shard_keeps_its_place(tmp_path: Path) -> None:
    key = write(tmp_path / "set", 30).key(12)
    (tmp_path / "set" / "idx_0000_0001.tar").unlink()
    shards = ShardSet(tmp_path / "set")
    lost = [i for i in range(30) if reason(shards, i) == "missing shard"]
    assert lost == list(range(10, 20))
    assert [i for i in range(30) if not reason(shards, i)] == [*range(10), *range(20, 30)]
    assert shards.key(12) == key, "the index still tells which sample it was"


def test_a_stale_index_is_made_anew(tmp_path: Path) -> None:
    """Shards exchanged for longer and shorter ones under an old index."""
    shards = write(tmp_path / "set", 4)
    path = shards.path(0)
    for count in (3, 6):
        other = write(tmp_path / f"other{count}", count + 10, count).path(1)
        shutil.copy(other, path)
        told = ShardSet(tmp_path / "set")
        assert told.entry(0).captions == {"caption": f"thing {count}"}
        assert shard_index.read_index(path) == build_index(path)


@pytest.mark.parametrize(
    "line",
    [
        b'{"key": "aa", "json": [0, -5]}',
        b'{"key": "aa", "json": [-512, 5]}',
        b'{"key": "aa", "json": [99999999999999999999999, 5]}',
        b'{"key": "aa", "json": [0, 99999999999999]}',
        b'{"key": "aa", "json": 5}',
        b'{"key": "aa", "pictures": [[1, 2]]}',
        b"[]",
        b"{",
    ],
)
def test_a_hostile_index_harms_nothing(line: bytes, tmp_path: Path) -> None:
    shards = write(tmp_path / "set", 2)
    index = build_index(shards.path(0))
    hostile = shard_index.ShardIndex(index.size, False, (line, index.lines[1]))
    shard_index.write_index(shards.path(0), hostile)
    shards = ShardSet(tmp_path / "set")
    assert reason(shards, 0) in ("corrupt index", "truncated shard")
    assert reason(shards, 1) == ""


@pytest.mark.parametrize("data", [b"", b"\x80\x04", b'{"a": 1}', b'{"samples": [\n]}\n', b"[\n]}"])
def test_a_damaged_index_is_made_anew(data: bytes, tmp_path: Path) -> None:
    shards = write(tmp_path / "set", 2)
    shard_index.index_path(shards.path(0)).write_bytes(data)
    assert reason(ShardSet(tmp_path / "set"), 1) == ""
    assert shard_index.read_index(shards.path(0)) == build_index(shards.path(0))


@given(st.binary(max_size=3000))
def test_any_bytes_can_be_indexed(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "a.tar"
    path.write_bytes(data)
    assert build_index(path).size == len(data)
