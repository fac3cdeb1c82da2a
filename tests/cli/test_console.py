"""Consoles that cannot show every character: work is never lost to one of them."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from nextstep.cli import main

NAME = "Äpfel ✓ 苹果 🍎"


class Console:
    """Standard output and errors of one encoding."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
        self.encoding, self.monkeypatch = encoding, monkeypatch

    def run(self, *args: object) -> tuple[int, str, str]:
        streams = [io.TextIOWrapper(io.BytesIO(), encoding=self.encoding) for _ in range(2)]
        self.monkeypatch.setattr(sys, "stdout", streams[0])
        self.monkeypatch.setattr(sys, "stderr", streams[1])
        self.monkeypatch.setattr(sys, "argv", ["nextstep", *map(str, args)])
        with pytest.raises(SystemExit) as left:
            main.run()
        written = []
        for stream in streams:
            stream.flush()
            written.append(stream.buffer.getvalue().decode(self.encoding))  # type: ignore[attr-defined]
        return left.value.code or 0, *written


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "in" / f"{NAME}.png")
    (tmp_path / "in" / f"{NAME}.txt").write_text("an apple", encoding="utf-8")
    Image.new("RGB", (16, 16)).save(tmp_path / "in" / f"{NAME} 2.png")
    return tmp_path


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("cp1252", r"Äpfel \u2713 \u82f9\u679c \ud83c\udf4e 2.png"),
        ("gbk", r"\u00c4pfel \u2713 苹果 \ud83c\udf4e 2.png"),
        ("utf-8", f"{NAME} 2.png"),
    ],
)
def test_what_a_console_lacks_is_escaped_and_the_command_ends_well(
    encoding: str, shown: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(monkeypatch, encoding)
    status, said, _ = console.run("data", "build", folder / "in", folder / f"out {NAME}")
    assert (status, shown in said) == (0, True), said
    status, said, _ = console.run("data", "build", folder / "in", folder / "json", "--json")
    assert (status, json.loads(said)["broken"][0][0]) == (0, f"{NAME} 2.png")
    status, _, told = console.run("data", "check", folder / f"{NAME} 2.png")
    assert (status, shown in told) == (2, True), told
