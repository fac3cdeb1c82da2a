"""Files and folders: whole or not at all, with errors that name what could not be written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

from nextstep.cli import main
from nextstep.engine.pretrained import Parts, save_parts
from nextstep.errors import NextStepError
from nextstep.utils.files import append_line, new_folder, write_json, write_whole, writing

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_file_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    write_json(path, {"a": 1})
    before = path.read_bytes()
    with pytest.raises(OSError, match="No space left") as told, writing(path) as scratch:
        scratch.write_bytes(b"half")
        raise FULL
    assert told.value.filename == str(path)
    with pytest.raises(RuntimeError), writing(path) as scratch:
        scratch.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"


def test_foreign_file_with_a_like_name_is_not_touched(tmp_path: Path) -> None:
    foreign = tmp_path / "model.safetensors.part"
    foreign.write_bytes(b"mine")
    with writing(tmp_path / "model.safetensors") as scratch:
        safetensors.torch.save_file({"a": torch.ones(1)}, scratch)
    assert foreign.read_bytes() == b"mine"


def test_full_disk_while_a_folder_is_written(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with pytest.raises(OSError, match="No space left") as told, new_folder(target) as scratch:
        (scratch / "part").write_bytes(b"x")
        raise FULL
    assert told.value.filename == str(target) and not list(tmp_path.iterdir())
    with pytest.raises(NextStepError, match="exists already"), new_folder(tmp_path):
        pass


def test_weights_on_a_full_disk_end_with_status_1_and_one_sentence(
    tiny_parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def full(*given: object, **more: object) -> None:
        text = "Error while serializing: I/O error: No space left on device (os error 28)"
        raise safetensors.SafetensorError(text)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    target = tmp_path / "model"
    monkeypatch.setattr(main, "command_line", lambda _: lambda: save_parts(tiny_parts, target))
    with pytest.raises(SystemExit) as left:
        main.run()
    assert left.value.code == 1 and not list(tmp_path.iterdir())
    assert capsys.readouterr().err == f"nextstep: {target}: No space left on device\n"


def test_system_errors_without_a_name_are_said_without_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full() -> None:
        raise FULL

    monkeypatch.setattr(main, "command_line", lambda _: full)
    with pytest.raises(SystemExit) as left:
        main.run()
    assert left.value.code == 1
    assert capsys.readouterr().err == "nextstep: No space left on device\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [(None, b"two\n"), (b"", b"two\n"), (b"one\n", b"one\ntwo\n"), (b"one", b"one\ntwo\n")],
)
def test_appended_line_begins_on_its_own(
    tmp_path: Path, before: bytes | None, after: bytes
) -> None:
    path = tmp_path / "lines"
    if before is not None:
        path.write_bytes(before)
    append_line(path, "two")
    assert path.read_bytes() == after
