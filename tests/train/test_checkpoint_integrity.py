"""Damage is found and passed over, and nothing in a checkpoint is run."""

from __future__ import annotations

import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nextstep.train.checkpoint import checkpoints, newest, read_weights
from nextstep.train.checkpoint_integrity import (
    CONTENTS,
    SUMS,
    DamagedCheckpointError,
    checksums,
    damage,
    read_contents,
    write_checksums,
)
from tests.train.toy import events_of, toy_run

SETTINGS: dict[str, Any] = {"steps": 8, "decay": 2, "save_every": 2, "keep": 9}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stands at step 6 of 8."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    toy_run(folder, stop=6, **SETTINGS)
    return folder


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Weights of the run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    toy_run(folder, **SETTINGS)
    return torch.load(folder / "result.pt")["weights"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def empty_record(path: Path) -> None:
    """As somebody might write it who knows how to make checksums."""
    (path / "record.json").write_text("{}")
    seal(path)


def seal(path: Path) -> None:
    names = [file.name for file in path.iterdir() if file.name != SUMS]
    write_checksums(path, checksums(path, names))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a bit of a tensor": lambda path: flip(path / "__0_0.distcp"),
    "a bit of the contents": lambda path: flip(path / CONTENTS),
    "a bit of the record": lambda path: flip(path / "record.json"),
    "a bit of a checksum": lambda path: flip(path / SUMS),
    "a missing file": lambda path: (path / "__0_0.distcp").unlink(),
    "an empty record": empty_record,
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_newest_one_falls_back_to_the_one_before_and_says_so(
    run: Path, whole: dict[str, torch.Tensor], kind: str
) -> None:
    path = newest(run / "checkpoints")
    assert path is not None and path.name == "step-00000006"
    assert damage(path) == ""
    DAMAGES[kind](path)
    told = r"step-00000006.* kept as step-00000006.damaged, .* from step-00000004"
    with pytest.warns(UserWarning, match=told):
        toy_run(run, **SETTINGS)
    weights = torch.load(run / "result.pt")["weights"]
    assert all(torch.equal(weights[name], whole[name]) for name in whole)
    assert [row["event"] for row in events_of(run)][-2:] == ["damaged", "resumed"]
    assert (path.with_name("step-00000006.damaged") / SUMS).exists()
    assert [path.name for path in checkpoints(run / "checkpoints")][-2:] == [
        "step-00000006", "step-00000008",
    ]  # fmt: skip


def test_when_all_are_damaged_nothing_begins_anew(run: Path) -> None:
    for path in checkpoints(run / "checkpoints"):
        flip(path / "__0_0.distcp")
    with pytest.raises(DamagedCheckpointError, match=r"all checkpoints of .* are damaged: .*06"):
        toy_run(run, **SETTINGS)
    assert len(checkpoints(run / "checkpoints")) == 3


def test_weights_of_a_damaged_one_are_not_read(run: Path) -> None:
    path = newest(run / "checkpoints")
    assert path is not None
    flip(path / "__0_0.distcp")
    with pytest.raises(DamagedCheckpointError, match=r"__0_0.distcp does not have its checksum"):
        read_weights(path)


def test_one_without_checksums_is_read_as_before(run: Path) -> None:
    path = newest(run / "checkpoints")
    assert path is not None
    (path / SUMS).unlink()
    assert damage(path) == ""
    read_weights(path)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum of coreutils")
def test_checksums_are_those_of_sha256sum(run: Path) -> None:
    path = newest(run / "checkpoints")
    assert path is not None
    subprocess.run(["sha256sum", "--strict", "-c", SUMS], cwd=path, check=True, capture_output=True)
    listed = {line.split()[1] for line in (path / SUMS).read_text().splitlines()}
    assert listed == {"__0_0.distcp", CONTENTS, "record.json"}


class Payload:
    """Runs a command where a pickle of it is loaded freely."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [2, 4])
def test_code_in_a_table_of_contents_is_refused_and_not_run(
    run: Path, tmp_path: Path, protocol: int
) -> None:
    path = newest(run / "checkpoints")
    assert path is not None
    (path / CONTENTS).write_bytes(pickle.dumps(Payload(tmp_path / "touched"), protocol))
    seal(path)
    with pytest.raises(DamagedCheckpointError, match="which no checkpoint needs"):
        read_weights(path)
    assert not (tmp_path / "touched").exists()
    pickle.loads((path / CONTENTS).read_bytes())
    assert (tmp_path / "touched").exists()


def test_a_table_of_contents_cannot_name_files_elsewhere(run: Path) -> None:
    path = newest(run / "checkpoints")
    assert path is not None
    contents = read_contents(path)
    for place in contents.storage_data.values():
        place.relative_path = "../elsewhere/__0_0.distcp"
    (path / CONTENTS).write_bytes(pickle.dumps(contents))
    seal(path)
    with pytest.raises(DamagedCheckpointError, match="names files that are not the checkpoint's"):
        read_weights(path)
