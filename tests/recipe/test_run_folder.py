"""A run's folder is marked and locked, and what is not ours stays where it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nextstep.errors import NextStepError
from nextstep.recipe.run_folder import MARKER, move_aside, open_run_folder, put_in_place

TRAINER = """
import sys, pathlib
from nextstep.recipe.run_folder import open_run_folder
lock = open_run_folder(pathlib.Path(sys.argv[1]))
print("begun", flush=True)
sys.stdin.read()
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_two_trainings_in_one_folder_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", TRAINER, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout is not None and other.stdout.readline() == "begun\n"
        for fresh in (False, True):
            with pytest.raises(NextStepError, match=f"another training .process {other.pid}. is"):
                open_run_folder(folder, fresh)
        assert names(tmp_path) == ["run"]
        other.kill()
    open_run_folder(folder).close()  # the lock goes with the process
    with open_run_folder(folder, fresh=True):
        assert names(tmp_path) == ["run", "run.1"]


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_of_somebody_else_is_refused_and_stays(tmp_path: Path, fresh: bool) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("of soup")
    (folder / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(NextStepError, match="holds files and is not the folder of a run"):
        open_run_folder(folder, fresh)
    assert names(folder) == ["holiday.jpg", "recipe.yaml"]
    assert names(tmp_path) == ["pictures"]


def test_a_run_of_the_time_before_markers_goes_on(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "recipe.yaml").touch()
    open_run_folder(tmp_path).close()
    assert (tmp_path / MARKER).exists()
    (tmp_path / "notes of my own.txt").touch()
    open_run_folder(tmp_path).close()


def test_a_newer_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / MARKER).write_text('{"run": 2}')
    with pytest.raises(NextStepError, match="newer version"):
        open_run_folder(tmp_path)


def model_folder(folder: Path, text: str) -> Path:
    (folder / "vae").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "vae/config.json"):
        (folder / name).write_text(text)
    return folder


def test_a_model_of_ours_is_replaced_and_anything_else_is_moved_aside(tmp_path: Path) -> None:
    for text in ("first", "second"):
        put_in_place(model_folder(tmp_path / "new", text), tmp_path / "model")
    assert names(tmp_path) == ["model"]
    assert (tmp_path / "model" / "config.json").read_text() == "second"
    (tmp_path / "model" / "vae" / "my notes.txt").write_text("dear")
    put_in_place(model_folder(tmp_path / "new", "third"), tmp_path / "model")
    assert names(tmp_path) == ["model", "model.1"]
    assert (tmp_path / "model.1" / "vae" / "my notes.txt").read_text() == "dear"
    assert (tmp_path / "model" / "config.json").read_text() == "third"


def test_moving_aside_takes_the_first_free_number(tmp_path: Path) -> None:
    for _ in range(3):
        (tmp_path / "run").mkdir()
        move_aside(tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.1", "run.2", "run.3"]
    move_aside(tmp_path / "nothing")
