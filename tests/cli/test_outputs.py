"""Commands that write a file replace their own files, and others only when told to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from nextstep.image.encode import MARK, encode, is_own
from tests.cli.test_commands import nextstep
from tests.cli.test_refusals import outcomes

WRITING = (
    "generate a -o {tmp}/mine.png", "generate a -n 2 -o {tmp}/some.png",
    "generate a --server http://127.0.0.1:1 -o {tmp}/mine.png",
    "edit a -i {tmp}/mine.png -o {tmp}/mine.png", "story a -o {tmp}/some.png",
    "predict {tmp}/mine.png -a b -o {tmp}/mine.png", "replay {tmp}/mine.png -o {tmp}/mine.png",
    "world show -t single -n 1 -o {tmp}/mine.png", "data show {tmp}/set -o {tmp}/mine.png",
    "data check {tmp}/set --histogram {tmp}/mine.png",
    "fit-solver nano -o {tmp}/mine.json",
)  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Path:
    Image.new("RGB", (32, 32), (9, 9, 9)).save(tmp_path / "mine.png")
    (tmp_path / "mine.json").write_text('{"my": "notes"}')
    Image.new("RGB", (32, 32), (9, 9, 9)).save(tmp_path / "some-1.png")
    (tmp_path / "set").mkdir()
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_files_of_others_are_not_replaced(place: Path) -> None:
    before = contents(place)
    for command, outcome in zip(WRITING, outcomes(list(WRITING), place), strict=True):
        status, out, err, torch = outcome
        assert (status, out, torch) == (2, "", False), (command, err)
        assert "exists and was not made by nextstep" in " ".join(err.split()), (command, err)
        assert "--overwrite" in err and err.count("\n") == 1, command
    assert contents(place) == before


def test_overwrite_replaces_them(place: Path) -> None:
    # What comes after the check of the output refuses the rest of these arguments.
    commands = [f"{command} --overwrite" for command in WRITING[:-1] if "world" not in command]
    wrong = [c.replace("generate a", "generate a --seed -1") for c in commands]
    wrong = [c.replace("story a", "story a --steps 0") for c in wrong]
    wrong = [c.replace("-a b", "-a b --solver rk4") for c in wrong]
    wrong = [c.replace("edit a", "edit a --steps 0") for c in wrong]
    wrong = [c for c in wrong if "--server" not in c]
    for command, (_, _, err, _) in zip(wrong, outcomes(wrong, place), strict=True):
        assert err and "was not made by nextstep" not in err, command
    shown = "world show -t single -n 1 -o {tmp}/mine.png --overwrite"
    ((status, _, _, _),) = outcomes([shown], place)
    assert status == 0 and is_own(place / "mine.png")


def test_own_files_are_replaced(place: Path) -> None:
    show = "world show -t single -n 1 -o {tmp}/sheet.png"
    again = outcomes([show, show], place)
    assert [status for status, _, _, _ in again] == [0, 0]


def test_own_pictures_of_every_format_are_known(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for ending in ("png", "jpg", "webp"):
        path = tmp_path / f"a.{ending}"
        for _ in range(2):
            status, _, err = nextstep(capsys, "generate", "a", "-m", tiny_folder, "-o", path)
            assert status == 0, err
        assert is_own(path)
        form = {"jpg": "JPEG"}.get(ending, ending.upper())
        plain = tmp_path / f"plain.{ending}"
        plain.write_bytes(encode(Image.new("RGB", (8, 8)), form))
        assert not is_own(plain)
        plain.write_bytes(encode(Image.new("RGB", (8, 8)), form, MARK))
        assert is_own(plain)


@pytest.mark.parametrize("data", [b"x", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"\xff\xd8\xff"])
def test_damaged_files_are_not_ours(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.png").write_bytes(data)
    assert not is_own(tmp_path / "a.png")


def test_empty_files_are_filled_and_pipes_refused(place: Path) -> None:
    (place / "empty.png").touch()
    os.mkfifo(place / "pipe.png")
    commands = ["world show -t single -n 1 -o {tmp}/empty.png",
                "world show -t single -n 1 -o {tmp}/pipe.png --overwrite"]  # fmt: skip
    (filled, _, _, _), (refused, _, err, _) = outcomes(commands, place)
    assert (filled, refused) == (0, 2) and "no plain file" in err
    assert is_own(place / "empty.png")
