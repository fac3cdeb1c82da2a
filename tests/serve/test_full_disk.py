"""A disk without room: said in words, nothing stuck, nothing lost, and over when there is room."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from nextstep.engine.events import Event, Part
from nextstep.serve.jobs import backend as b
from nextstep.serve.jobs import manager as jobs_module
from nextstep.serve.jobs import state_folder
from nextstep.serve.jobs.records import FAILED
from nextstep.serve.jobs.state_folder import StorageError
from nextstep.serve.jobs.store import Store
from tests.serve.conftest import Running, data_uri, picture_bytes, running, until
from tests.serve.test_jobs import SLOW, jobs_in, submit, told_by


class Disk:
    """A disk that can be full: for files, and for the database's pages."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.full, self._write = False, state_folder.write_whole
        patch.setattr(state_folder, "write_whole", self._written)
        patch.setattr(jobs_module, "RETRY", 0.05)

    def _written(self, path: Path, data: bytes) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        self._write(path, data)

    def fill(self, store: Store) -> None:
        """From now on nothing can be written."""
        self.full = True
        base = store._base
        with store._lock:
            base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            base.execute("PRAGMA query_only = ON")  # refuses every write, as SQLITE_READONLY

    def empty(self, store: Store) -> None:
        """There is room again."""
        self.full = False
        with store._lock:
            store._base.execute("PRAGMA query_only = OFF")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def service(app_of: Callable[..., FastAPI], tmp_path: Path, disk: Disk) -> Iterator[Running]:
    with running(app_of(tmp_path)) as made:
        yield made


def store_of(service: Running) -> Store:
    return service.app.state.service.jobs.store


def assert_in_words(answer: httpx2.Response, status: int) -> None:
    assert answer.status_code == status, answer.text
    told = answer.json()["error"]
    assert "disk" in told["message"] and "/" not in told["message"]
    assert int(answer.headers["retry-after"]) > 0


def test_requests_are_refused_with_507_and_leave_nothing(
    service: Running, disk: Disk, tmp_path: Path
) -> None:
    disk.fill(store_of(service))
    picture = data_uri(picture_bytes())
    edit = {"prompt": "a", "images": [picture]}
    assert_in_words(httpx2.post(f"{service.url}/jobs", json=edit), 507)
    form = {"files": {"image": picture_bytes()}, "data": {"prompt": "a"}}
    assert_in_words(httpx2.post(f"{service.url}/v1/images/edits", **form), 507)
    assert_in_words(httpx2.get(f"{service.url}/ready"), 503)
    assert httpx2.get(f"{service.url}/health").status_code == 200
    assert list((tmp_path / "pictures").iterdir()) == []
    assert httpx2.get(f"{service.url}/jobs").json()["data"] == []
    disk.empty(store_of(service))
    until(lambda: httpx2.get(f"{service.url}/ready").status_code == 200)
    assert service.openai().images.generate(prompt="a").data


def test_full_disk_at_submission_without_pictures_is_said_too(service: Running, disk: Disk) -> None:
    disk.fill(store_of(service))
    answer = httpx2.post(f"{service.url}/v1/images/generations", json={"prompt": "a"})
    assert_in_words(answer, 503)  # the database says only that it may not be written


def test_job_that_cannot_be_kept_fails_and_stays_failed(
    service: Running, disk: Disk, tmp_path: Path
) -> None:
    job = submit(service.url, **{**SLOW, "steps": 20})
    until(lambda: jobs_in(service, "running"))
    disk.fill(store_of(service))
    name, told = told_by(service.url, job["id"])[-1]
    assert name == "failed" and "could not be kept" in told["error"] and "/" not in told["error"]
    # The same is told to whoever comes later, though no row can be written.
    assert httpx2.get(f"{service.url}/jobs/{job['id']}").json()["state"] == FAILED
    assert jobs_in(service, "running") == [] and len(jobs_in(service, FAILED)) == 1
    assert told_by(service.url, job["id"])[-1][0] == "failed"
    assert list((tmp_path / "pictures").iterdir()) == []
    disk.empty(store_of(service))
    until(lambda: not store_of(service).troubled)
    base = sqlite3.connect(tmp_path / "jobs.sqlite3")
    assert base.execute("SELECT state FROM jobs").fetchall() == [(FAILED,)]
    base.close()


def test_waiting_client_hears_507_for_a_picture_without_room(
    service: Running, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, keep = store_of(service), Store.finish

    def fills(self: Store, *given: Any) -> Event:
        disk.full = True
        return keep(self, *given)

    monkeypatch.setattr(Store, "finish", fills)
    answer = httpx2.post(f"{service.url}/v1/images/generations", json={"prompt": "a"})
    assert_in_words(answer, 507)
    stream = {"prompt": "a", "stream": True}
    disk.full = False
    until(lambda: not store.troubled)
    told = httpx2.post(f"{service.url}/v1/images/generations", json=stream).text
    assert told.rstrip().splitlines()[-2] == "event: error"
    assert json.loads(told.rstrip().splitlines()[-1][6:])["error"]["code"] == "storage_full"
    disk.full = False


def test_deleting_makes_room_on_a_full_disk(service: Running, disk: Disk, tmp_path: Path) -> None:
    service.openai().images.generate(prompt="a")
    (job,) = httpx2.get(f"{service.url}/jobs").json()["data"]
    assert len(list((tmp_path / "pictures").iterdir())) == 2
    disk.fill(store_of(service))
    assert httpx2.delete(f"{service.url}/jobs/{job['id']}").status_code == 204
    assert list((tmp_path / "pictures").iterdir()) == []
    assert httpx2.get(f"{service.url}/jobs/{job['id']}").status_code == 404
    assert httpx2.get(f"{service.url}/jobs").json()["data"] == []
    disk.empty(store_of(service))
    until(lambda: not store_of(service).troubled)
    base = sqlite3.connect(tmp_path / "jobs.sqlite3")
    assert base.execute("SELECT count(*) FROM jobs").fetchone() == (0,)
    base.close()


def test_part_of_an_outcome_is_not_left_on_a_full_disk(tmp_path: Path, disk: Disk) -> None:
    store = Store(tmp_path, keep=9)
    record = store.add("a", b.JobRequest("generate", n=2), [])
    write, count = state_folder.write_whole, 0

    def second_fails(path: Path, data: bytes) -> None:
        nonlocal count
        count += 1
        disk.full = count > 1
        write(path, data)

    state_folder.write_whole = second_fails
    event = store.finish(record, Event("done", parts=(Part("", b"one"), Part("", b"two"))))
    assert event.kind == "failed" and event.code == b.STORAGE_FULL
    assert store.files.names() == [] and store.get(record.id) == record
    disk.full = False
    store.close()


def test_little_room_left_refuses_jobs_before_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path, keep=9)
    room = os.statvfs(tmp_path)
    monkeypatch.setattr(state_folder, "RESERVE", room.f_bavail * room.f_frsize + 2**40)
    with pytest.raises(StorageError) as refused:
        store.add("a", b.JobRequest("generate"), [])
    assert refused.value.full
    with pytest.raises(StorageError):
        store.check_usable()
    store.close()
    with pytest.raises(OSError, match="the disk is full, so no jobs can be kept"):
        Store(tmp_path, keep=9)


@pytest.mark.parametrize("place", ["marker", "database", "probe"])
def test_start_on_a_full_disk_is_one_sentence(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    if place != "marker":
        Store(tmp_path, keep=9).close()
    if place == "database":
        (tmp_path / "jobs.sqlite3").unlink()
        real = sqlite3.connect

        def small(*given: Any, **more: Any) -> sqlite3.Connection:
            base = real(*given, **more)
            base.execute("PRAGMA max_page_count = 1")
            return base

        monkeypatch.setattr(sqlite3, "connect", small)
    else:
        disk.full = True
    with pytest.raises(OSError, match="the disk is full, so no jobs can be kept") as told:
        Store(tmp_path, keep=9)
    assert told.value.errno == errno.ENOSPC
