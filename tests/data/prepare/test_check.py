"""Checks and sheets: what is wrong with a set is counted and named, and can be looked at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nextstep.data import shard_index
from nextstep.data.prepare.check import LENGTHS, SIDES, CheckReport, Histogram, check_set
from nextstep.data.prepare.contact_sheet import (
    contact_sheet,
    histogram_chart,
    load_font,
    pick,
    tiled,
    wrapped,
)
from nextstep.data.shards import RawSample, ShardSet, ShardWriter
from nextstep.errors import NextStepError
from tests.data.toys import damage, noise, picture, put_raw, write


def chart(report: CheckReport, word: str) -> dict[str, int]:
    """The bins of one histogram that are not empty."""
    (found,) = [chart for chart in report.histograms if word in chart.title]
    return {name: n for name, n in zip(found.bins, found.counts, strict=True) if n}


def test_a_sound_set(tmp_path: Path) -> None:
    report = check_set(write(tmp_path / "set", 25))
    assert report.sound
    assert (report.samples, report.good, report.pictures, report.shards) == (25, 25, 25, 3)
    assert report.size == sum(path.stat().st_size for path in (tmp_path / "set").glob("*.tar"))
    assert report.duplicates == report.shared_pictures == []
    assert chart(report, "side") == {"0-63": 25}
    assert chart(report, "aspect") == {"13x19": 25}, "24x16 is nearest to 304x208"
    assert chart(report, "characters") == {"0-15": 25}


def test_a_thousand_samples_with_four_kinds_of_damage(tmp_path: Path) -> None:
    """Counted by reason, named, and the rest looked at; threads change nothing."""
    shards = write(tmp_path / "set", 1000, 100)
    damage(tmp_path / "set", shards)
    told = []
    report = check_set(ShardSet(tmp_path / "set"), on_sample=lambda: told.append(1))
    assert len(told) == report.samples == 1000
    assert not report.sound
    cut = report.reasons["truncated shard"]
    assert report.reasons == {
        "truncated shard": cut, "corrupt picture": 1, "wrong tag count": 1,
        "decompression bomb": 1,
    }  # fmt: skip
    named = {error.reason: error.key for error in report.broken}
    assert named["corrupt picture"] == shards.key(110)
    assert named["wrong tag count"] == shards.key(220)
    assert named["decompression bomb"] == shards.key(330)
    keys = [error.key for error in report.broken if error.reason == "truncated shard"]
    assert keys == [shards.key(i) for i in range(600 - cut, 600)]
    assert sum(chart(report, "side").values()) == report.good == 997 - cut
    assert set(report.shard_problems) == {f"idx_0000_000{n}.tar" for n in (1, 2, 3, 5)}
    assert report.shard_problems["idx_0000_0005.tar"].startswith("truncated: ")
    again = check_set(ShardSet(tmp_path / "set"), threads=4)
    assert again.to_dict() == report.to_dict()
    json.dumps(report.to_dict(), allow_nan=False)


def test_headers_only_passes_what_only_decoding_finds(tmp_path: Path) -> None:
    put_raw(tmp_path / "a.tar", [("aa.json", b'{"caption": "a"}'), ("aa-0.jpg", noise()[:-900])])
    shards = ShardSet(tmp_path)
    assert check_set(shards, decode_pictures=False).broken == []
    assert [error.reason for error in check_set(shards).broken] == ["corrupt picture"]


def test_duplicates(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "set", "twins", "image_text", 2) as writer:
        for caption, value in [("a", 1), ("a", 2), ("a", 1), ("b", 1), ("a", 1), ("b", 3)]:
            # The key and the metadata of twins differ.
            writer.add(RawSample({"caption": caption, "metadata": {"n": 1}}, (picture(value),)))
    shards = ShardSet(tmp_path / "set")
    report = check_set(shards)
    assert report.sound
    assert report.duplicates == [[shards.key(0), shards.key(2), shards.key(4)]]
    assert report.shared_pictures == [[shards.key(i) for i in (0, 2, 3, 4)]]


def test_shards_that_are_not_as_written(tmp_path: Path) -> None:
    shards = write(tmp_path / "set", 50)
    paths = [shards.path(i) for i in range(5)]
    flipped = bytearray(paths[0].read_bytes())
    flipped[-1] ^= 1
    paths[0].write_bytes(flipped)
    paths[1].write_bytes(paths[1].read_bytes() + bytes(512))
    paths[2].unlink()
    index = shard_index.build_index(paths[3])
    swapped = shard_index.ShardIndex(index.size, False, index.lines[::-1])
    shard_index.write_index(paths[3], swapped)
    (tmp_path / "set" / "more.tar").write_bytes(b"")
    report = check_set(ShardSet(tmp_path / "set"))
    problems = report.shard_problems
    assert problems["idx_0000_0000.tar"] == "its checksum differs from the one it was written with"
    assert "bytes instead of" in problems["idx_0000_0001.tar"]
    assert problems["idx_0000_0002.tar"] == "missing"
    assert "its index does not fit" in problems["idx_0000_0003.tar"]
    assert problems["more.tar"] == "not listed in set.json"
    assert len(problems) == 5
    assert report.reasons == {"missing shard": 10}


def test_text_sets_have_no_picture_histograms(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "set", "prose", "text") as writer:
        writer.add(RawSample({"text": "word " * 100}))
    report = check_set(ShardSet(tmp_path / "set"))
    assert [len(h.bins) for h in report.histograms] == [len(LENGTHS)]
    assert chart(report, "characters") == {"256-511": 1}


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_every_picture_falls_into_the_bin_of_its_side(width: int, height: int) -> None:
    from collections import Counter

    from nextstep.data.prepare.check import _histograms

    side, aspect, _ = _histograms(Counter({(width, height): 3}), Counter({5: 1}))
    assert sum(side.counts) == sum(aspect.counts) == 3
    low = SIDES[side.counts.index(3)]
    assert low**2 <= width * height
    above = [bound for bound in SIDES if bound > low][:1]
    assert all(width * height < bound**2 for bound in above)


def test_the_histogram_chart_shows_lengths_in_proportion() -> None:
    counts = (40, 20, 0, 1)
    drawn = histogram_chart([Histogram("title", ("a", "b", "c", "d"), counts)], 640)
    bars = []
    for row in range(1, 5):
        line = [drawn.getpixel((x, 8 + row * 15 + 6)) for x in range(640)]
        bars.append(line.count((0x49, 0x78, 0xBC)))
    assert abs(bars[0] - 2 * bars[1]) <= 2
    assert bars[2] == 0
    assert 0 < bars[3] < bars[1] / 10
    assert histogram_chart([Histogram("none", ("a",), (0,))]).size[0] == 640


def test_a_contact_sheet_shows_pictures_captions_and_damage(tmp_path: Path) -> None:
    shards = write(tmp_path / "set", 10)
    path = shards.path(0)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    shards = ShardSet(tmp_path / "set")
    sheet = contact_sheet(shards, range(10), columns=4, cell=64)
    step = 64 + 8
    assert sheet.size == (4 * step + 8, 3 * (step + 60) + 8)
    assert sheet.getpixel((8 + 32, 8 + 32)) == (0, 0, 40)
    assert sheet.getpixel((8 + 2 * step + 32, 8 + 32)) == (2, 0, 40)
    red = (0xB3, 0x26, 0x1E)
    assert sheet.getpixel((8 + step, 8 + 2 * (step + 60))) == red, "the last one is lost"
    caption = sheet.crop((8, 8 + 66, 8 + 64, 8 + 66 + 15))
    assert min(caption.convert("L").tobytes()) < 100, "letters below the picture"


def test_a_sheet_of_texts(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "set", "prose", "text") as writer:
        writer.add(RawSample({"text": "一个红色的苹果 " + "word " * 300}))
    sheet = contact_sheet(ShardSet(tmp_path / "set"), [0], cell=96)
    lines = [sheet.crop((8, y, 104, y + 15)).convert("L").tobytes() for y in range(10, 140, 15)]
    assert all(min(line) < 128 for line in lines)


def test_pictures_share_a_square_in_order() -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    square = tiled([Image.new("RGB", (50, 50), colour) for colour in colours], 60)
    at = [square.getpixel(place) for place in ((10, 10), (40, 10), (10, 40), (40, 40))]
    assert at == [*colours, (255, 255, 255)]


def test_which_samples_are_shown() -> None:
    assert pick(10, 3) == [0, 1, 2]
    assert pick(10, 30, 8) == [8, 9]
    drawn = pick(1000, 20, seed=1)
    assert drawn == pick(1000, 20, seed=1)
    assert drawn != pick(1000, 20, seed=2)
    assert len(set(drawn)) == 20
    for total, count, start in [(10, 0, 0), (10, 1, 10), (10, 1, -1)]:
        with pytest.raises(NextStepError):
            pick(total, count, start)


@given(st.text(max_size=300), st.integers(30, 200), st.integers(1, 5))
def test_captions_are_wrapped_inside_their_width(text: str, width: int, lines: int) -> None:
    font = load_font(None)
    found = wrapped(text, font, width, lines)
    assert len(found) <= lines
    assert all(font.getlength(line) <= max(width, 130) for line in found)
    if len(found) < lines:
        assert "".join("".join(found).split()) == "".join(text.split())


def test_bad_sheets_are_refused(tmp_path: Path) -> None:
    shards = write(tmp_path / "set", 3)
    (tmp_path / "font.ttf").write_text("no")
    for named, said in [
        ({"columns": 0}, "at least 1 column"),
        ({"cell": 8}, "at least 32"),
        ({"cell": 20_000}, "too large"),
        ({"font": tmp_path / "font.ttf"}, "is not a font"),
    ]:
        with pytest.raises(NextStepError, match=said):
            contact_sheet(shards, range(3), **named)
