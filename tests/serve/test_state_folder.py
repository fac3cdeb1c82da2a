"""The folder of a service: only files of its own are touched, and none of them is lost."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nextstep.cli.main import command_line
from nextstep.engine.events import Event, Part
from nextstep.errors import NextStepError
from nextstep.serve.jobs import backend as b
from nextstep.serve.jobs.state_folder import MARKER, FolderFiles, MissingFileError, claim
from nextstep.serve.jobs.store import Store


def filled_store(folder: Path) -> tuple[str, bytes]:
    """A store with one finished job: the name of its picture and the picture."""
    store = Store(folder, keep=9)
    record = store.add("a", b.JobRequest("generate"), [])
    store.finish(record, Event("done", parts=(Part("", b"png", {"seed": 1}),)))
    store.close()
    return record.parts[0]["file"], b"png"


def everything_below(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("where", ["pictures/cat.png", "notes.txt", "jobs.sqlite3"])
def test_folder_with_foreign_files_is_refused_and_unchanged(tmp_path: Path, where: str) -> None:
    (tmp_path / where).parent.mkdir(exist_ok=True)
    (tmp_path / where).write_bytes(b"mine")
    before = everything_below(tmp_path)
    with pytest.raises(NextStepError, match="was not made by `nextstep serve`"):
        Store(tmp_path, keep=2)
    assert everything_below(tmp_path) == before


def test_serve_command_refuses_a_folder_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "cat.png").write_bytes(b"mine")
    told = CliRunner().invoke(
        command_line(), ["serve", "--model", "nano", "--folder", str(tmp_path)]
    )
    assert isinstance(told.exception, ValueError) and "new or an empty" in str(told.exception)
    assert everything_below(tmp_path) == {"pictures/cat.png": b"mine"}


def test_foreign_files_in_a_marked_folder_are_never_touched(tmp_path: Path) -> None:
    name, _data = filled_store(tmp_path)
    foreign = ["cat.png", "0-0.png", f"{'g' * 32}-0.png", f"copy of {name}", ".hidden.part"]
    for one in foreign:
        (tmp_path / "pictures" / one).write_bytes(b"mine")
    (tmp_path / "pictures" / "album").mkdir()
    Store(tmp_path, keep=9).close()
    left = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert left == {name, *foreign, "album"}


@pytest.mark.parametrize("loss", ["deleted", "emptied", "rows gone"])
def test_pictures_survive_the_loss_of_the_database(tmp_path: Path, loss: str) -> None:
    name, data = filled_store(tmp_path)
    path = tmp_path / "jobs.sqlite3"
    if loss == "deleted":
        for one in tmp_path.glob("jobs.sqlite3*"):
            one.unlink()
    elif loss == "emptied":
        path.write_bytes(b"")
    else:
        base = sqlite3.connect(path)
        base.execute("DELETE FROM jobs")
        base.commit()
        base.close()
    for _ in range(2):
        Store(tmp_path, keep=9).close()
    kept = [path for path in (tmp_path / "quarantine").rglob("*.png")]
    assert [one.name for one in kept] == [name] and kept[0].read_bytes() == data
    assert list((tmp_path / "pictures").iterdir()) == []


def test_half_written_files_of_a_dead_process_are_removed(tmp_path: Path) -> None:
    name, _ = filled_store(tmp_path)
    (tmp_path / "pictures" / f".{name}.4711.part").write_bytes(b"half")
    Store(tmp_path, keep=9).close()
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == [name]


def test_state_of_earlier_versions_is_marked_and_used(tmp_path: Path) -> None:
    name, _ = filled_store(tmp_path)
    (tmp_path / MARKER).unlink()
    store = Store(tmp_path, keep=9)
    assert store.files.names() == [name] and (tmp_path / MARKER).is_file()
    store.close()
    (tmp_path / MARKER).unlink()
    (tmp_path / "pictures" / "cat.png").write_bytes(b"mine")
    with pytest.raises(NextStepError):
        Store(tmp_path, keep=9)


@pytest.mark.parametrize("text", ["", "{}", "[]", "[" * 9999, '{"format": "other", "version": 1}'])
def test_damaged_marker_leaves_the_folder_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / MARKER).write_text(text)
    with pytest.raises(NextStepError, match="damaged"):
        claim(tmp_path)


def test_folder_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    claim(tmp_path)
    told = json.loads((tmp_path / MARKER).read_text())
    (tmp_path / MARKER).write_text(json.dumps({**told, "version": told["version"] + 1}))
    with pytest.raises(NextStepError, match="newer version"):
        claim(tmp_path)


def test_removing_a_tampered_record_removes_only_its_own_files(tmp_path: Path) -> None:
    victim, _ = filled_store(tmp_path)
    outside = tmp_path / "secret.txt"
    outside.write_bytes(b"secret")
    store = Store(tmp_path, keep=9)
    bad = store.add("a", b.JobRequest("generate"), [])
    bad.parts = [{"file": name, "settings": {}} for name in ("../secret.txt", victim, str(outside))]
    bad.state = "done"
    store.remove(bad)
    assert outside.read_bytes() == b"secret" and victim in store.files.names()
    store.close()


def test_files_are_read_by_own_names_only(tmp_path: Path) -> None:
    claim(tmp_path)
    files = FolderFiles(tmp_path)
    (tmp_path / "secret.txt").write_bytes(b"secret")
    link, pipe = f"{'a' * 32}-0.png", f"{'b' * 32}-0.png"
    (tmp_path / "pictures" / link).symlink_to(tmp_path / "secret.txt")
    os.mkfifo(tmp_path / "pictures" / pipe)
    for name in ("../secret.txt", str(tmp_path / "secret.txt"), "", ".", link, pipe):
        with pytest.raises(MissingFileError):
            files.read(name)
    with pytest.raises(MissingFileError):
        files.write("../new.png", b"x")


def test_second_service_on_a_folder_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    first = Store(tmp_path, keep=9)
    with pytest.raises(NextStepError, match=rf"another service \(process {os.getpid()}\) is using"):
        Store(tmp_path, keep=9)
    first.close()
    Store(tmp_path, keep=9).close()


def test_killed_service_leaves_its_folder_free(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from nextstep.serve.jobs.store import Store\n"
        "store = Store(Path(sys.argv[1]), 9); print('ready', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout is not None and other.stdout.readline() == "ready\n"
            with pytest.raises(NextStepError, match=f"process {other.pid}"):
                Store(tmp_path, keep=9)
        finally:
            other.send_signal(signal.SIGKILL)
    Store(tmp_path, keep=9).close()


def test_second_serve_command_ends_before_a_model_is_loaded(tmp_path: Path) -> None:
    store = Store(tmp_path, keep=9)
    told = CliRunner().invoke(
        command_line(), ["serve", "--model", "nano", "--folder", str(tmp_path)]
    )
    assert isinstance(told.exception, NextStepError)
    assert "is using the folder" in str(told.exception)
    store.close()
