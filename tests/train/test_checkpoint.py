"""Checkpoints of a run: whole or not there, the same in the background, named when they differ."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nextstep.errors import ModelFileError
from nextstep.train.checkpoint import (
    CheckpointError,
    CheckpointWriter,
    checkpoints,
    newest,
    read_record,
    read_tensors,
    read_weights,
    step_of,
    stored_shapes,
)
from nextstep.train.checkpoint_integrity import CONTENTS, SUMS
from tests.train.toy import toy_run


def read_all(path: Path) -> dict[str, Tensor]:
    found = {name: torch.empty(shape) for name, shape in stored_shapes(path).items()}
    read_tensors(path, found)
    return found


def save(writer: CheckpointWriter, step: int, value: float | None = None) -> None:
    writer.save(step, {"model/w": torch.full((3,), float(value or step))}, {"config": {}})
    writer.wait()


def test_background_and_foreground_write_the_same(tmp_path: Path) -> None:
    for name, on in (("behind", True), ("before", False)):
        toy_run(tmp_path / name, steps=6, decay=2, save_every=2, keep=9, save_in_background=on)
    behind, before = (checkpoints(tmp_path / name / "checkpoints") for name in ("behind", "before"))
    assert [path.name for path in behind] == [path.name for path in before]
    assert [step_of(path) for path in behind] == [2, 4, 6]
    for one, other in zip(behind, before, strict=True):
        first, second = read_all(one), read_all(other)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
        records = [read_record(path) for path in (one, other)]
        for record in records:
            record["config"].pop("save_in_background")
            assert record.pop("seconds") > 0
        assert records[0] == records[1]


def test_training_goes_on_without_changing_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write is held up until the tensor has other values."""
    changed = threading.Event()
    write = CheckpointWriter._write

    def late(*args: Any) -> None:
        assert changed.wait(20)
        write(*args)

    monkeypatch.setattr(CheckpointWriter, "_write", late)
    writer = CheckpointWriter(tmp_path)
    weight = torch.arange(4.0)
    for step in (1, 2):
        changed.clear()
        writer.save(step, {"model/w": weight}, {})
        assert newest(tmp_path) is None or step == 2
        weight.add_(10)
        changed.set()
        writer.wait()
    assert torch.equal(read_all(tmp_path / "step-00000001")["model/w"], torch.arange(4.0))
    assert torch.equal(read_all(tmp_path / "step-00000002")["model/w"], torch.arange(4.0) + 10)
    writer.close()


def test_half_written_ones_are_never_taken_and_cleared_at_the_next_start(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path)
    save(writer, 3)
    (tmp_path / "step-00000003").rename(tmp_path / "step-00000009.part")
    assert newest(tmp_path) is None
    save(writer, 5)
    (tmp_path / "step-00000002.old").mkdir()
    (tmp_path / "notes.part").touch()
    assert newest(tmp_path) == tmp_path / "step-00000005"
    CheckpointWriter(tmp_path).clear_leftovers()
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["latest", "notes.part", "step-00000005"]


def test_a_death_at_any_force_to_disk_leaves_the_last_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(CheckpointWriter(tmp_path), 1)
    plain = os.fsync
    forced = at = 0

    def fsync(handle: int) -> None:
        nonlocal forced
        forced += 1
        if forced > at:
            raise OSError(28, "No space left on device")
        plain(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    for at in range(20):  # noqa: B007 - read by fsync
        forced = 0
        writer = CheckpointWriter(tmp_path)
        writer.save(2, {"model/w": torch.full((3,), 2.0)}, {})
        try:
            writer.wait()
            break
        except CheckpointError as error:
            assert "could not be written: [Errno 28] No space left" in str(error)
        found = newest(tmp_path)
        assert found is not None
        assert float(read_all(found)["model/w"][0]) == step_of(found)
        if step_of(found) == 2:
            break
    assert at >= 4
    assert newest(tmp_path) == tmp_path / "step-00000002"


def test_old_ones_go_but_every_nth_stays(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, keep=2, keep_every=4)
    for step in range(1, 8):
        save(writer, step)
    assert [step_of(path) for path in checkpoints(tmp_path)] == [4, 6, 7]
    assert (tmp_path / "latest").read_text() == "step-00000007\n"
    # A step that is there already is left alone.
    save(writer, 7, value=99.0)
    assert float(read_all(tmp_path / "step-00000007")["model/w"][0]) == 7


def test_a_failed_write_is_reported_at_the_next_one(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path / "run")
    (tmp_path / "run").rmdir()
    (tmp_path / "run").touch()
    writer.save(1, {"model/w": torch.ones(3)}, {})
    with pytest.raises(CheckpointError, match=r"step-00000001 could not be written: .*directory"):
        writer.save(2, {"model/w": torch.ones(3)}, {})


def test_a_damaged_one_is_named(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path)
    save(writer, 1)
    path = tmp_path / "step-00000001"
    data = next(path.glob("*.distcp"))
    data.write_bytes(data.read_bytes()[:-40])
    (path / SUMS).unlink()  # as one of a version without checksums
    with pytest.raises(ModelFileError, match=r"step-00000001 is damaged"):
        read_weights(path)
    (path / CONTENTS).write_bytes(b"nothing")
    with pytest.raises(ModelFileError, match="step-00000001 cannot be read"):
        stored_shapes(path)
    with pytest.raises(ModelFileError, match="named step-N"):
        step_of(tmp_path)
