"""Shards: the released layout on disk, random access, and the safe index."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nextstep.data import shard_index, tar
from nextstep.data.captions import numbers_of, tags_fit, with_tags
from nextstep.data.documents import SampleError
from nextstep.data.shards import RawSample, ShardSet, ShardWriter, build_index
from nextstep.errors import NextStepError
from tests.data.toys import picture, put_raw, write


def test_round_trip(tmp_path: Path) -> None:
    shards = write(tmp_path / "set", 25)
    assert (len(shards), shards.name, shards.kind) == (25, "toys", "image_text")
    assert [shard.samples for shard in shards.shards] == [10, 10, 5]
    entry = shards.entry(17)
    assert entry.captions == {"caption": "thing 17"}
    assert entry.sizes == ((24, 16),)
    assert entry.numbers == {"score": 8.5}
    assert entry.key.startswith("toys/idx_0000_0001/")
    (shown,) = shards.pictures(17)
    assert (shown.mode, shown.size, shown.getpixel((0, 0))) == ("RGB", (24, 16), (17, 0, 40))
    assert shards.picture_files(17) == [picture(17)]
    for wrong in (-1, 25):
        with pytest.raises(IndexError, match="0 to 24"):
            shards.entry(wrong)


def test_the_released_layout_read_with_plain_tarfile(tmp_path: Path) -> None:
    folder = tmp_path / "edits"
    record = {"caption": "<image_0>grün, 红色<image_1>", "caption_all": ["a", "b"], "metadata": {}}
    with ShardWriter(folder, "edits", "image_to_image", 2) as writer:
        for key in ("00ff", "abcd", "0001"):
            writer.add(RawSample(record, (picture(1, form="JPEG"), picture(2, form="WEBP")), key))
    names = [path.name for path in sorted(folder.iterdir())]
    assert names == [
        "idx_0000_0000.tar", "idx_0000_0000.tar.index.json",
        "idx_0000_0001.tar", "idx_0000_0001.tar.index.json", "set.json",
    ]  # fmt: skip
    with tarfile.open(folder / names[0], "r:") as archive:
        members = archive.getmembers()
        assert [m.name for m in members] == [
            "00ff.json", "00ff-0.jpg", "00ff-1.webp", "abcd.json", "abcd-0.jpg", "abcd-1.webp",
        ]  # fmt: skip
        assert all(m.isreg() and m.name.count(".") == 1 and not m.pax_headers for m in members)
        contents = [archive.extractfile(m).read() for m in members]
    assert json.loads(contents[0]) == record
    assert contents[1] == picture(1, form="JPEG")
    raw = (folder / names[0]).read_bytes()
    assert raw[257:263] == b"ustar\0", "neither GNU nor PAX headers"
    told = json.loads((folder / "set.json").read_text())
    assert told["total_samples"] == 3
    assert told["shards"][names[0]] == {
        "num_samples": 2, "size": len(raw), "checksum": zlib.adler32(raw),
    }  # fmt: skip


@given(st.text("0123456789abcdef", min_size=1, max_size=64), st.integers(0, 10**6))
def test_names_fit_into_ustar(key: str, number: int) -> None:
    name = f"{key}-{number}.webp"
    info = tarfile.TarInfo.frombuf(tar.header(name, 8 * 2**30 - 1), "utf-8", "strict")
    assert (info.name, info.size, len(name) <= 100) == (name, 8 * 2**30 - 1, True)


@settings(max_examples=40)
@given(st.integers(1, 12), st.integers(1, 5), st.randoms(use_true_random=False))
def test_any_set_round_trips(
    tmp_path_factory: pytest.TempPathFactory, count: int, per_shard: int, draw: random.Random
) -> None:
    """Any number of pictures of any size, and an index that equals the one rebuilt."""
    folder = tmp_path_factory.mktemp("any") / "set"
    made = []
    with ShardWriter(folder, "any", "interleaved", per_shard) as writer:
        for _ in range(count):
            sizes = [(draw.randint(1, 40), draw.randint(1, 40)) for _ in range(draw.randint(0, 3))]
            tags = [f"word <image_{i}> " for i in range(len(sizes))]
            draw.shuffle(tags)
            text = "".join(tags) + "é" * draw.randint(1, 700)
            writer.add(RawSample({"caption": text}, tuple(picture(7, size) for size in sizes)))
            made.append((text, tuple(sizes)))
    shards = ShardSet(folder)
    read = [shards.entry(i) for i in range(len(shards))]
    assert [(e.captions["caption"], e.sizes) for e in read] == made
    assert [tuple(p.size for p in shards.pictures(i)) for i in range(count)] == [s for _, s in made]
    for number in range(len(shards.shards)):
        path = shards.path(number)
        assert shard_index.read_index(path) == build_index(path)
        assert path.stat().st_size == shards.shards[number].size
        assert zlib.adler32(path.read_bytes()) == shards.shards[number].checksum
    shutil.rmtree(folder)


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a", 12)
    time.sleep(0.01)
    write(tmp_path / "b", 12)
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_pictures_are_upright_and_on_white(tmp_path: Path) -> None:
    turned, clear = io.BytesIO(), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (24, 16)).save(turned, "JPEG", exif=exif)
    Image.new("RGBA", (24, 16), (9, 9, 9, 0)).save(clear, "PNG", exif=exif)
    with ShardWriter(tmp_path / "set", "upright", "interleaved") as writer:
        tags = {"caption": "<image_0><image_1>"}
        writer.add(RawSample(tags, (turned.getvalue(), clear.getvalue())))
    shards = ShardSet(tmp_path / "set")
    assert shards.entry(0).sizes == ((16, 24), (16, 24))
    shown = shards.pictures(0)
    assert [p.size for p in shown] == [(16, 24), (16, 24)]
    assert shown[1].getpixel((0, 0)) == (255, 255, 255)


def test_text_sets(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "set", "prose", "text") as writer:
        writer.add(RawSample({"text": "once upon <image_0> a time"}))
        with pytest.raises(SampleError, match="missing caption"):
            writer.add(RawSample({"text": "  "}))
    shards = ShardSet(tmp_path / "set")
    assert shards.entry(0).captions == {"text": "once upon <image_0> a time"}
    assert shards.pictures(0) == []


def test_nothing_is_left_of_a_set_that_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyError), ShardWriter(tmp_path / "set", "some", "text", 1) as writer:
        writer.add(RawSample({"text": "a"}))
        raise KeyError
    with (
        pytest.raises(NextStepError, match="no sample was written"),
        ShardWriter(tmp_path / "set", "some", "text"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
    write(tmp_path / "set", 1)
    with pytest.raises(NextStepError, match="exists already"):
        ShardWriter(tmp_path / "set", "some", "text")
    for name, kind, size, said in [
        ("a/b", "text", 1, "cannot name"),
        ("a", "prose", 1, "unknown kind"),
        ("a", "text", 0, "at least 1"),
    ]:
        with pytest.raises(NextStepError, match=said):
            ShardWriter(tmp_path / "new", name, kind, size)
    assert not (tmp_path / "new").exists()


SLOW_WRITER = """
import sys, time
from nextstep.data.shards import RawSample, ShardWriter
with ShardWriter(sys.argv[1], "slow", "text", 3) as writer:
    for number in range(10_000):
        writer.add(RawSample({"text": "word " * (number + 1)}))
        print(number, flush=True)
"""


def test_a_killed_writer_leaves_no_half_set(tmp_path: Path) -> None:
    target = tmp_path / "place" / "set"
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_WRITER, str(target)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(7):  # two shards and a third
        assert process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert not target.exists()
    assert all(path.name.startswith(".set.") for path in target.parent.iterdir())
    assert list(target.parent.rglob("*.tar")), "what it had written is still there"
    with pytest.raises(NextStepError, match="holds no shards"):
        ShardSet(target.parent)
    assert len(write(target, 3)) == 3, "and not in the way of the next run"
    assert len(ShardSet(target.parent, kind="image_text")) == 3


def test_an_index_is_made_for_others_shards(tmp_path: Path) -> None:
    """No index, no description, GNU tar with folders, long names and a pickle beside it."""
    shard = tmp_path / "theirs" / "part" / "idx_0000_0000.tar"
    shard.parent.mkdir(parents=True)
    with tarfile.open(shard, "w", format=tarfile.GNU_FORMAT) as archive:

        def put(name: str, data: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))

        folder = tarfile.TarInfo("things")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        put("./aa.json", b'{"caption": "first", "aesthetic": 5, "nsfw": true}')
        put("./aa.jpg", picture(1, (40, 20)))
        put("bb.json", b'{"caption": "second"}')
        put("bb.cls", b"neither text nor picture")
        put("x" * 150 + ".cls", b"long name")
        put("bb-0.JPG", picture(2, (20, 40), "JPEG"))

    class Trap:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "unpickled"),)

    shard.with_name(shard.name + ".index").write_bytes(pickle.dumps(Trap()))
    shards = ShardSet(tmp_path / "theirs")
    assert (shards.name, shards.kind, len(shards)) == ("theirs", "image_text", 2)
    assert shards.entry(0).numbers == {"aesthetic": 5.0}
    assert shards.entry(0).key == "theirs/part/idx_0000_0000/aa"
    assert [shards.entry(i).sizes for i in range(2)] == [((40, 20),), ((20, 40),)]
    assert [shards.pictures(i)[0].size for i in range(2)] == [(40, 20), (20, 40)]
    assert not (tmp_path / "unpickled").exists()
    assert shard_index.read_index(shard) == build_index(shard)


def test_kinds_that_cannot_be_told_are_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    two = [("aa.json", b'{"caption": "<image_0>x<image_1>"}'), ("aa-0.jpg", picture())]
    put_raw(folder / "a.tar", [*two, ("aa-1.jpg", picture())])
    with pytest.raises(NextStepError, match="image_to_image for edits"):
        ShardSet(folder)
    assert ShardSet(folder, kind="interleaved", name="other").key(0) == "other/a/aa"
    with pytest.raises(NextStepError, match="unknown kind"):
        ShardSet(folder, kind="edits")
    with pytest.raises(NextStepError, match="no data set folder"):
        ShardSet(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NextStepError, match="holds no shards"):
        ShardSet(tmp_path / "empty")


def test_many_threads_and_processes_read_the_same(tmp_path: Path) -> None:
    write(tmp_path / "set", 60)
    shards = ShardSet(tmp_path / "set")
    order = random.Random(0).choices(range(60), k=600)
    with ThreadPoolExecutor(8) as pool:
        values = list(pool.map(lambda i: shards.pictures(i)[0].getpixel((3, 3)), order))
        told = list(pool.map(lambda i: shards.entry(i).captions["caption"], order))
    assert values == [(i, 0, 40) for i in order]
    assert told == [f"thing {i}" for i in order]
    again = pickle.loads(pickle.dumps(shards))
    assert again.entry(59) == shards.entry(59)
    error = pickle.loads(pickle.dumps(SampleError("a/b/c", "corrupt picture", "why")))
    assert (error.key, error.reason, error.detail) == ("a/b/c", "corrupt picture", "why")


@given(st.integers(1, 6), st.text(st.characters(codec="utf-8", exclude_characters="<")))
def test_instructions_get_the_released_tags(pictures: int, text: str) -> None:
    tagged = with_tags(text, pictures)
    assert tags_fit(tagged, pictures)
    assert tagged.endswith(f"<image_{pictures - 1}>")
    assert with_tags(tagged, pictures) == tagged
    assert with_tags("a <image> b", 2) == "a <image> b"


def test_only_finite_numbers_are_filters() -> None:
    record = json.loads('{"a": 1, "b": 2.5, "c": true, "d": NaN, "e": 1e999, "f": "3"}')
    assert numbers_of({**record, "g": 10**400}) == {"a": 1.0, "b": 2.5}
