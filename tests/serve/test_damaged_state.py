"""Damaged stored state: told in words, the rest goes on, and nothing that could be read is lost."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from nextstep.engine.events import Event, Part
from nextstep.image.formats import is_whole_png
from nextstep.serve.jobs import backend as b
from nextstep.serve.jobs.store import Store
from tests.serve.conftest import Running, data_uri, picture_bytes, running
from tests.serve.test_jobs import submit, told_by

BODY = {"prompt": "a", "size": "32x32", "seed": 1}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def service(tiny_pipeline: Any, place: Path) -> Iterator[Running]:
    from nextstep.serve.api.server import build_app

    with running(build_app(tiny_pipeline, "tiny", place)) as made:
        yield made


def finished(service: Running, **body: Any) -> str:
    job = submit(service.url, **{**BODY, **body})["id"]
    assert told_by(service.url, job)[-1][0] == "done"
    return job


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def spoil(path: Path) -> None:
    path.write_bytes(b"garbage")


DAMAGE: dict[str, Callable[[Path], None]] = {
    "cut": cut, "flipped bit": flip, "garbage": spoil, "empty": lambda path: path.write_bytes(b""),
    "gone": Path.unlink,
}  # fmt: skip


def in_words(answer: httpx2.Response) -> None:
    assert answer.status_code in (404, 409, 410), (answer.status_code, answer.text)
    message = answer.json()["error"]["message"]
    assert len(message) > 10 and "/" not in message and ".png" not in message


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_files_are_reported_in_words(service: Running, place: Path, how: str) -> None:
    job = finished(service, images=[data_uri(picture_bytes(size=(32, 32)))])
    url = f"{service.url}/jobs/{job}"
    for kind, path in (("0.png", "pictures/0"), ("source-0.png", "sources/0")):
        DAMAGE[how](place / "pictures" / f"{job}-{kind}")
        in_words(httpx2.get(f"{url}/{path}"))
        in_words(httpx2.get(f"{url}/{path}", params={"format": "webp"}))
    DAMAGE[how](place / "pictures" / f"{job}-0.state")
    in_words(httpx2.post(f"{url}/fork", json={"row": 1}))
    in_words(httpx2.post(f"{url}/resample", json={"rows": [0, 1]}))
    in_words(httpx2.get(f"{url}/pictures/0/tokens"))
    name, told = told_by(service.url, job)[-1]
    assert name == "failed" and "disk" in told["error"]
    assert httpx2.get(f"{service.url}/jobs").status_code == 200
    assert httpx2.delete(url).status_code == 204


def test_resample_of_a_missing_picture_is_reported_in_words(service: Running, place: Path) -> None:
    job = finished(service)
    (place / "pictures" / f"{job}-0.png").unlink()
    in_words(httpx2.post(f"{service.url}/jobs/{job}/resample", json={"rows": [0, 1]}))


def test_every_byte_of_a_picture_counts() -> None:
    data = picture_bytes(size=(2, 2))
    assert is_whole_png(data)
    for place in range(len(data)):
        assert not is_whole_png(data[:place])
        changed = bytearray(data)
        changed[place] ^= 1
        assert not is_whole_png(bytes(changed)), place
    assert not is_whole_png(data + b"\0") and not is_whole_png(picture_bytes("JPEG"))


def changed_row(folder: Path, **columns: Any) -> list[str]:
    """Three finished jobs, the second of which is changed; their ids."""
    store = Store(folder, keep=2)
    records = [store.add("a", b.JobRequest("generate"), []) for _ in range(3)]
    for record in records:
        store.finish(record, Event("done", parts=(Part("", picture_bytes(), {"seed": 1}),)))
        store.keep = 9
    store.close()
    base = sqlite3.connect(folder / "jobs.sqlite3")
    for name, value in columns.items():
        base.execute(f"UPDATE jobs SET {name} = ? WHERE id = ?", (value, records[1].id))
    base.commit()
    base.close()
    return [record.id for record in records]


def request_with(**more: Any) -> str:
    return json.dumps({**b.JobRequest("generate").to_dict(), **more})


@pytest.mark.parametrize(
    "columns",
    [
        {"request": "{}"}, {"request": "["}, {"request": "null"}, {"request": b"\xff"},
        {"request": "[" * 100_000}, {"request": request_with(n="two")},
        {"request": request_with(n=10**9)}, {"request": request_with(of_tomorrow=1)},
        {"request": request_with(task="paint")}, {"request": request_with(parts=[7])},
        {"request": request_with(sources=["../../etc/passwd"])},
        {"request": request_with(mask="/etc/passwd")}, {"request": request_with(settings=3)},
        {"parts": "{}"}, {"parts": "[1]"}, {"parts": "[{}]"}, {"parts": '[{"file": 3}]'},
        {"parts": '[{"file": "/etc/passwd", "settings": {}}]'}, {"usage": "[]"},
        {"usage": '{"text_in": "many"}'}, {"usage": '{"of_tomorrow": 1}'},
        {"state": "paused"}, {"created": "long ago"}, {"finished": float("inf")},
        {"owner": b"\x00"}, {"error": b"\x01"},
    ],
)  # fmt: skip
def test_bad_rows_are_left_out_and_kept(
    tmp_path: Path, columns: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    ids = changed_row(tmp_path, **columns)
    before = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    with caplog.at_level("ERROR", "nextstep.serve"):
        store = Store(tmp_path, keep=1)
    named = [record for record in caplog.records if getattr(record, "job", "") == ids[1]]
    assert len(named) == 1 and named[0].reason
    assert [one.id for one in store.of_owner("a", 9)] == [ids[2], ids[0]]
    assert store.get(ids[1]) is None
    # A newer version may read it: neither the row nor its picture goes, here or later.
    assert sorted(store.files.names()) == before
    for _ in range(3):
        store.finish(store.add("a", b.JobRequest("generate"), []), Event("cancelled"))
    assert f"{ids[1]}-0.png" in store.files.names() and f"{ids[0]}-0.png" not in store.files.names()
    store.close()
    base = sqlite3.connect(tmp_path / "jobs.sqlite3")
    assert base.execute("SELECT count(*) FROM jobs WHERE id = ?", (ids[1],)).fetchone() == (1,)
    base.close()


def test_service_starts_beside_bad_rows(app_of: Callable[..., FastAPI], tmp_path: Path) -> None:
    ids = changed_row(tmp_path, request="{}", state="running")
    base = sqlite3.connect(tmp_path / "jobs.sqlite3")
    base.execute("UPDATE jobs SET owner = 'everybody'")
    base.execute("INSERT OR REPLACE INTO notes VALUES ('computing', '[1')")
    base.commit()
    base.close()
    with running(app_of(tmp_path)) as made:
        listed = httpx2.get(f"{made.url}/jobs").json()["data"]
        assert [job["id"] for job in listed] == [ids[2], ids[0]]
        assert httpx2.get(f"{made.url}/jobs/{ids[1]}").status_code == 404
        assert made.openai().images.generate(prompt="a").data


def many_jobs(folder: Path, count: int = 60) -> list[str]:
    store = Store(folder, keep=count)
    made = [store.add("a", b.JobRequest("generate", "p" * 500), []) for _ in range(count)]
    for record in made:
        store.finish(record, Event("done", parts=(Part("", picture_bytes(), {"seed": 1}),)))
    store.close()
    return [record.id for record in made]


@pytest.mark.parametrize("page", [3, 5, 9, 20])
def test_a_damaged_page_costs_its_own_rows_only(
    tmp_path: Path, page: int, caplog: pytest.LogCaptureFixture
) -> None:
    ids = many_jobs(tmp_path)
    path = tmp_path / "jobs.sqlite3"
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[16:18], "big")
    data[(page - 1) * size : page * size] = b"\xa5" * size
    path.write_bytes(data)
    with caplog.at_level("ERROR", "nextstep.serve"):
        store = Store(tmp_path, keep=99)
    assert "damaged" in caplog.text
    read = [record.id for record in store.of_owner("a", 99)]
    assert set(read) <= set(ids) and len(read) >= len(ids) - 12
    store.finish(store.add("a", b.JobRequest("generate"), []), Event("cancelled"))
    store.close()
    kept = {path.name[:32] for path in tmp_path.rglob("*-0.png")}
    assert kept == set(ids)
    (aside,) = (tmp_path / "quarantine").rglob("jobs.sqlite3")
    assert aside.read_bytes() == bytes(data)


@pytest.mark.parametrize("data", [b"garbage" * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_database_is_put_aside(tmp_path: Path, data: bytes) -> None:
    ids = many_jobs(tmp_path, 2)
    for path in tmp_path.glob("jobs.sqlite3*"):
        path.unlink()
    (tmp_path / "jobs.sqlite3").write_bytes(data)
    store = Store(tmp_path, keep=9)
    assert store.of_owner("a", 9) == []
    store.close()
    assert {path.name[:32] for path in tmp_path.rglob("*-0.png")} == set(ids)
