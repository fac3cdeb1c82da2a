"""`nextstep data`: from a folder of pictures to a checked set and a sheet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from nextstep.data.shards import ShardSet
from tests.cli.test_commands import nextstep
from tests.data.toys import damage, noise, picture, write


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.png").write_bytes(picture(number))
        (folder / f"{number}.txt").write_text(f"thing {number}")
    return folder


def test_build_check_show(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (source / "bad.jpg").write_bytes(noise()[:-900])
    (source / "bad.txt").write_text("cut")
    target = tmp_path / "set"
    status, said, _ = nextstep(
        capsys, "data", "build", source, target, "--samples-per-shard", 2, "--name", "toys"
    )
    assert status == 0
    assert "5 samples of 'toys' (image_text) in 3 shard(s)" in said
    assert "1 samples left out: 1 corrupt picture\n  bad.jpg: corrupt picture" in said
    assert [ShardSet(target).entry(i).captions["caption"] for i in range(5)] == [
        f"thing {i}" for i in range(5)
    ]
    chart = tmp_path / "sizes.png"
    status, said, _ = nextstep(capsys, "data", "check", target, "--histogram", chart, "--strict")
    assert status == 0
    assert "every sample can be used" in said
    assert "13x19" in said
    assert Image.open(chart).width == 640
    status, said, err = nextstep(capsys, "data", "show", target, "-o", tmp_path / "s.png", "-n", 3)
    assert (status, err) == (0, "")
    assert "3 of 5 samples of toys" in said
    assert Image.open(tmp_path / "s.png").width == 3 * 200 + 8
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.png", "set", "sizes.png", "source"]


def test_json(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    target = tmp_path / "set"
    status, said, err = nextstep(
        capsys, "data", "build", source, target, "--limit", 4, "--headers-only", "--json"
    )
    assert (status, err) == (0, "")
    built = json.loads(said)
    assert (built["name"], built["samples"], built["left_out"]) == ("set", 4, {})
    status, said, err = nextstep(capsys, "data", "check", target, "--json")
    assert (status, err) == (0, "")
    checked = json.loads(said)
    assert (checked["sound"], checked["good"], checked["duplicates"]) == (True, 4, [])
    sheet = tmp_path / "s.png"
    status, said, err = nextstep(
        capsys, "data", "show", target, "-o", sheet, "--seed", 3, "-n", 2, "--json"
    )
    assert (status, err) == (0, "")
    shown = json.loads(said)
    assert shown["path"] == str(sheet)
    assert len(shown["samples"]) == 2
    assert set(shown["samples"]) <= {ShardSet(target).key(i) for i in range(4)}


def test_check_names_what_is_broken(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shards = write(tmp_path / "set", 600, 100)
    damage(tmp_path / "set", shards)
    status, said, _ = nextstep(capsys, "data", "check", tmp_path / "set", "--threads", 1)
    assert status == 0
    assert "shard idx_0000_0005.tar: truncated: " in said
    assert "1 corrupt picture, 1 wrong tag count, 1 decompression bomb" in said
    for index in (110, 220, 330):
        assert shards.key(index) in said
    assert "more; --json names all" in said
    status, said, _ = nextstep(capsys, "data", "check", tmp_path / "set", "--strict", "--json")
    assert status == 1
    assert len(json.loads(said)["broken"]) > 30
    sheet = tmp_path / "s.png"
    assert nextstep(capsys, "data", "show", tmp_path / "set", "-o", sheet, "--start", 590)[0] == 0


def test_tables_of_edits(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [{"a": "0.png", "b": "1.png", "what": "turn it", "strength": 0.5}]
    (source / "edits.jsonl").write_text("\n".join(map(json.dumps, rows)))
    columns = ("--image-column", "a", "--image-column", "b", "--caption-column", "what")
    target = tmp_path / "set"
    status, _, err = nextstep(
        capsys, "data", "build", source / "edits.jsonl", target, "-k", "image_to_image", *columns
    )
    assert status == 0, err
    entry = ShardSet(target).entry(0)
    assert entry.captions["caption"] == "<image_0>turn it<image_1>"
    assert entry.numbers == {"strength": 0.5}


BAD = [
    ("no source", ["build", "{tmp}/none", "{tmp}/new"], "there is no file or folder"),
    ("existing target", ["build", "{tmp}/source", "{tmp}/source"], "exists already"),
    ("unknown kind", ["build", "{tmp}/source", "{tmp}/new", "-k", "film"], "unknown kind"),
    ("unknown form", ["build", "{tmp}/source", "{tmp}/new", "--form", "xls"], "unknown form"),
    ("no samples", ["build", "{tmp}/empty", "{tmp}/new"], "holds no pictures"),
    ("no shard", ["build", "{tmp}/source", "{tmp}/new", "--samples-per-shard", "0"], "at least 1"),
    ("bad name", ["build", "{tmp}/source", "{tmp}/new", "--name", "a/b"], "cannot name"),
    ("no limit", ["build", "{tmp}/source", "{tmp}/new", "--limit", "0"], "--limit"),
    ("column", ["build", "{tmp}/a.jsonl", "{tmp}/new", "--caption-column", "c"], "no column 'c'"),
    ("no set", ["check", "{tmp}/none"], "no data set folder"),
    ("not a set", ["check", "{tmp}/source"], "holds no shards"),
    ("unknown kind of set", ["check", "{tmp}/set", "-k", "film"], "unknown kind"),
    ("not a png", ["check", "{tmp}/set", "--histogram", "{tmp}/a.svg"], "does not end in .png"),
    ("nothing to show", ["show", "{tmp}/set", "-n", "0", "-o", "{tmp}/a.png"], "at least 1 sample"),
    ("no such sample", ["show", "{tmp}/set", "--start", "3", "-o", "{tmp}/a.png"], "0 to 2"),
    ("no font", ["show", "{tmp}/set", "--font", "{tmp}/f", "-o", "{tmp}/a.png"], "not a font"),
    ("no columns", ["show", "{tmp}/set", "--columns", "0", "-o", "{tmp}/a.png"], "1 column"),
]


@pytest.mark.parametrize(("args", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input(
    args: list[str], message: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.jsonl").write_text('{"image": "a.png", "caption": "b"}')
    write(tmp_path / "set", 3)
    before = sorted(tmp_path.rglob("*"))
    status, out, err = nextstep(capsys, "data", *[a.format(tmp=tmp_path) for a in args])
    assert (status, out) == (2, "")
    assert message in err
    if err.startswith("nextstep: "):
        assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before, "something was left behind"
