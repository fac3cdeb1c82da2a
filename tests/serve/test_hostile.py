"""One client's requests never hurt another's: heads, bodies, texts and stops within bounds."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from nextstep.engine.engine import Engine
from nextstep.serve.api import service as service_module
from nextstep.serve.api import uploads
from nextstep.serve.jobs.engine_backend import EngineBackend
from nextstep.serve.jobs.limits import ServiceLimits
from nextstep.serve.jobs.store import Store
from nextstep.serve.jobs.tasks import ServiceTask
from tests.serve.conftest import Running, data_uri, picture_bytes, running, until
from tests.serve.test_jobs import SLOW, jobs_in, submit

JSON = {"Content-Type": "application/json"}
HEAD = b"POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def connected(service: Running) -> socket.socket:
    port = int(service.url.rsplit(":", 1)[1])
    return socket.create_connection(("127.0.0.1", port), timeout=20)


@contextmanager
def lines(service: Running, count: int, data: bytes) -> Iterator[list[socket.socket]]:
    made = [connected(service) for _ in range(count)]
    try:
        for line in made:
            line.sendall(data)
        yield made
    finally:
        for line in made:
            line.close()


def test_head_that_never_ends_is_cut_off(app_of: Callable[..., FastAPI]) -> None:
    with running(app_of(head_seconds=0.3)) as made, connected(made) as line:
        begun = time.monotonic()
        line.sendall(b"GET /health HT")
        line.settimeout(0.05)
        ended = False
        # Dripping does not prolong it.
        while not ended and time.monotonic() - begun < 10:
            try:
                ended = line.recv(100) == b""
                line.sendall(b"X")
            except TimeoutError:
                continue
            except OSError:
                ended = True
        assert ended and time.monotonic() - begun < 5
        assert httpx2.get(f"{made.url}/health").status_code == 200


def test_slow_answer_and_next_request_on_one_line_are_not_cut_off(
    app_of: Callable[..., FastAPI],
) -> None:
    with running(app_of(head_seconds=0.1)) as made, httpx2.Client() as client:
        body = {"prompt": "a", "size": "128x128", "steps": 30}
        for _ in range(2):
            begun = time.monotonic()
            answer = client.post(f"{made.url}/v1/images/generations", json=body, timeout=60)
            assert answer.status_code == 200
        assert time.monotonic() - begun > 0.1


def test_many_half_sent_heads_leave_room_for_others(app_of: Callable[..., FastAPI]) -> None:
    with running(app_of(heads=20)) as made, lines(made, 300, b"GET /health HTTP/1.1\r\nHost"):
        begun = time.monotonic()
        assert httpx2.get(f"{made.url}/health", timeout=10).status_code == 200
        assert time.monotonic() - begun < 5
        until(lambda: len(made.server.server_state.connections) <= 21)


@pytest.mark.parametrize("path", ["/health", "/ready", "/", "/studio/app.js", "/studio/none"])
def test_pages_without_key_take_no_large_bodies(service: Running, path: str) -> None:
    answer = httpx2.request("GET", f"{service.url}{path}", content=bytes(5000))
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "request_too_large"
    assert httpx2.request("GET", f"{service.url}{path}", content=b"{}").status_code != 413


def test_a_body_that_is_no_json_names_the_character_and_no_field(
    app_of: Callable[..., FastAPI],
) -> None:
    with running(app_of()) as made:
        told = httpx2.post(f"{made.url}/jobs", content=b'{"prompt" 1}', headers=JSON)
    assert told.status_code == 400
    error = told.json()["error"]
    assert error["param"] is None
    assert error["message"].startswith("the body cannot be read as JSON: Expecting ':' delimiter")
    assert error["message"].endswith("at character 10")


def test_an_error_in_an_address_names_the_parameter_alone(app_of: Callable[..., FastAPI]) -> None:
    with running(app_of()) as made:
        answers = [
            httpx2.get(f"{made.url}/jobs/{'x' * 9}"),
            httpx2.get(f"{made.url}/jobs?limit=many"),
        ]
    for told, name in zip(answers, ("job", "limit"), strict=True):
        assert told.status_code == 400
        assert told.json()["error"]["param"] == name
        assert told.json()["error"]["message"].startswith(f"{name}: ")


def test_bodies_on_their_way_are_bounded_together(app_of: Callable[..., FastAPI]) -> None:
    with running(app_of(body_bytes=100_000)) as made:
        head = HEAD + b"Content-Length: 99000\r\n\r\n" + b" " * 90_000
        with lines(made, 4, head):
            until(lambda: made.app.middleware_stack is not None)
            time.sleep(0.3)
            full = httpx2.post(f"{made.url}/jobs", content=b" " * 90_000, headers=JSON)
            assert full.status_code == 429 and int(full.headers["retry-after"]) > 0
            assert httpx2.get(f"{made.url}/health").status_code == 200
        until(
            lambda: (
                httpx2.post(f"{made.url}/jobs", content=b" " * 9000, headers=JSON).status_code
                == 400
            )
        )


LARGE = {
    "long chat": ("/v1/chat/completions", {
        "messages": [{"role": "user", "content": "a red apple " * 2600}] * 64}),
    "parts": ("/jobs", {"parts": [{"type": "text", "text": "word " * 6000}] * 64}),
    "many unknown fields": ("/jobs", {"prompt": "a", **{f"k{i}": 1 for i in range(300_000)}}),
    "many numbers": ("/jobs", {"prompt": "a", "images": [1] * 5_000_000}),
    "many lists": ("/v1/chat/completions", {"messages": [[]] * 3_000_000}),
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
def test_large_requests_are_refused_at_once(service: Running, name: str) -> None:
    path, body = LARGE[name]
    data = json.dumps(body).encode()
    begun = time.monotonic()
    answer = httpx2.post(f"{service.url}{path}", content=data, timeout=30,
                         headers={"Content-Type": "application/json"})  # fmt: skip
    assert answer.status_code == 413 and "error" in answer.json()
    assert time.monotonic() - begun < 5


def test_escapes_of_a_large_text_are_bounded(service: Running) -> None:
    data = b'{"prompt": "' + b"\\u0041" * 2_000_000 + b'"}'
    answer = httpx2.post(f"{service.url}/jobs", content=data,
                         headers={"Content-Type": "application/json"})  # fmt: skip
    assert answer.status_code == 413


def stopped_while(service: Running, ask: Callable[[], Any]) -> Any:
    """What a waiting client gets when the service is told to stop."""
    answers: list[Any] = []
    client = threading.Thread(target=lambda: answers.append(ask()))
    client.start()
    until(lambda: jobs_in(service, "running"))
    service.server.handle_exit(15, None)
    client.join(30)
    return answers[0]


VERY_SLOW = {"prompt": "a", "size": "256x192", "steps": 200, "seed": 0}


def test_waiting_clients_hear_503_before_the_grace_ends(
    app_of: Callable[..., FastAPI], tmp_path: Path
) -> None:
    with running(app_of(tmp_path, grace=2, deadline=100)) as made:

        def ask() -> httpx2.Response:
            return httpx2.post(f"{made.url}/v1/images/generations", json=VERY_SLOW, timeout=60)

        answer = stopped_while(made, ask)
    assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
    assert answer.json()["error"]["code"] == "stopping"
    with running(app_of(tmp_path)) as again:  # the job itself goes on
        assert httpx2.get(f"{again.url}/jobs").json()["data"][0]["state"] in ("queued", "running")
        job = httpx2.get(f"{again.url}/jobs").json()["data"][0]["id"]
        httpx2.post(f"{again.url}/jobs/{job}/cancel")


def test_streams_end_with_an_event_when_the_service_stops(
    app_of: Callable[..., FastAPI], tmp_path: Path
) -> None:
    with running(app_of(tmp_path, grace=2, deadline=100)) as made:
        job = submit(made.url, **VERY_SLOW)["id"]
        stream = {**VERY_SLOW, "stream": True}
        asked: dict[str, Callable[[], httpx2.Response]] = {
            "job": lambda: httpx2.get(f"{made.url}/jobs/{job}/events", timeout=60),
            "images": lambda: httpx2.post(
                f"{made.url}/v1/images/generations", json=stream, timeout=60),
        }  # fmt: skip
        told: dict[str, str] = {}
        threads = [
            threading.Thread(target=lambda n=name, ask=ask: told.update({n: ask().text}))
            for name, ask in asked.items()
        ]
        for thread in threads:
            thread.start()
        until(lambda: len(jobs_in(made, "running")) == 2)
        made.server.handle_exit(15, None)
        for thread in threads:
            thread.join(30)
    assert told["job"].rstrip().splitlines()[-2] == "event: stopping"
    last = told["images"].rstrip().splitlines()[-2:]
    assert last[0] == "event: error" and json.loads(last[1][6:])["error"]["code"] == "stopping"


def test_request_that_outlives_the_grace_gets_503_too(
    app_of: Callable[..., FastAPI], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for something else than a job, such as a measurement."""
    from nextstep.serve.jobs.engine_backend import EngineBackend

    with running(app_of(grace=1)) as made:
        job = submit(made.url, prompt="a")["id"]
        until(lambda: httpx2.get(f"{made.url}/jobs/{job}").json()["state"] == "done")
        from concurrent.futures import Future

        monkeypatch.setattr(EngineBackend, "measure", lambda *given: Future())
        answers: list[httpx2.Response] = []
        url = f"{made.url}/jobs/{job}/pictures/0/tokens"
        client = threading.Thread(target=lambda: answers.append(httpx2.get(url, timeout=60)))
        client.start()
        time.sleep(0.5)
        made.server.handle_exit(15, None)
        client.join(30)
    assert answers[0].status_code == 503 and answers[0].json()["error"]["code"] == "stopping"


def test_defaults_keep_hostile_clients_within_bounds() -> None:
    limits = ServiceLimits()
    assert limits.head_seconds <= 30 and limits.heads <= 500
    assert limits.characters <= 500_000 and limits.json_values <= 500_000


def test_a_cancelled_upload_frees_its_place_in_the_queue(app_of: Callable[..., FastAPI]) -> None:
    with running(app_of(queue=1)) as made:
        job = submit(made.url, **SLOW)
        for _ in range(3):
            assert httpx2.post(f"{made.url}/jobs", json={"prompt": "a"}).status_code == 429
        httpx2.post(f"{made.url}/jobs/{job['id']}/cancel")
        until(lambda: not jobs_in(made, "running"))
        until(lambda: httpx2.post(f"{made.url}/jobs", json={"prompt": "a"}).status_code == 202)


def test_sources_and_long_texts_are_read_beside_the_steps(
    app_of: Callable[..., FastAPI], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are served while one job's pictures and texts are still being read."""
    begun, go_on, names = threading.Event(), threading.Event(), set()
    encode, count = Engine.encode, ServiceTask.count_text

    def waits(name: str) -> None:
        names.add(name)
        begun.set()
        assert go_on.wait(60)

    def encoded(self: Engine, picture: Any) -> Any:
        waits(threading.current_thread().name)
        return encode(self, picture)

    def counted(self: ServiceTask, text: str) -> int:
        if len(text) > 2000:
            waits(threading.current_thread().name)
        return count(self, text)

    monkeypatch.setattr(Engine, "encode", encoded)
    monkeypatch.setattr(ServiceTask, "count_text", counted)
    picture = data_uri(picture_bytes(size=(32, 32)))
    for body in ({"prompt": "a", "images": [picture]},
                 {"parts": [{"type": "text", "text": "a " * 2000}]}):  # fmt: skip
        begun.clear()
        go_on.clear()
        with running(app_of()) as made:
            heavy, gone = submit(made.url, **body)["id"], submit(made.url, **body)["id"]
            assert begun.wait(30)
            assert made.openai().images.generate(prompt="a", size="32x32").data
            httpx2.post(f"{made.url}/jobs/{gone}/cancel")
            until(lambda m=made, g=gone: state_of(m, g) == "cancelled")
            go_on.set()
            until(lambda m=made, h=heavy: state_of(m, h) in ("done", "failed"))
    assert all(name.startswith("preparing") for name in names)


@pytest.mark.parametrize("work", ["pictures", "masks", "words", "disk"])
def test_31_clients_get_every_row_while_one_is_busy(
    app_of: Callable[..., FastAPI], monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    """Neither the steps nor the event loop wait for what one client sends, however long it takes.

    benchmarks/serve_hostile.py measures the gaps between rows of a real service.
    """
    go_on, busy = threading.Event(), threading.Semaphore(0)

    def slow(call: Callable[..., Any], hostile: Callable[..., bool]) -> Callable[..., Any]:
        def called(*given: Any, **more: Any) -> Any:
            if hostile(*given, **more):
                busy.release()
                assert go_on.wait(60)
            return call(*given, **more)

        return called

    places = {
        "pictures": (uploads, "safe_picture", lambda *_: True),
        "masks": (uploads, "safe_mask", lambda *_: True),
        "words": (EngineBackend, "check", lambda _, asked: asked.prompt == "hostile"),
        "disk": (Store, "add", lambda _, owner, asked, *__: asked.prompt == "hostile"),
    }
    where, name, hostile = places[work]
    replaced = slow(getattr(where, name), hostile)
    for module in (where, service_module) if where is uploads else (where,):
        monkeypatch.setattr(module, name, replaced)
    picture = data_uri(picture_bytes(size=(32, 32)))
    body: dict[str, Any] = {"prompt": "hostile"}
    if work in ("pictures", "masks"):
        body |= {"images": [picture], "mask": picture}
    with running(app_of(queue=64, per_key=64, max_batch=32)) as made, ThreadPoolExecutor(4) as pool:
        sent = [pool.submit(httpx2.post, f"{made.url}/jobs", json=body, timeout=60)
                for _ in range(4)]  # fmt: skip
        assert busy.acquire(timeout=30)
        try:
            asked = {"prompt": "a", "size": "32x64", "steps": 2}
            jobs = [submit(made.url, seed=seed, **asked)["id"] for seed in range(31)]
            for job in jobs:
                told = httpx2.get(f"{made.url}/jobs/{job}/events?previews=false", timeout=60).text
                assert told.rstrip().splitlines()[-2] == "event: done"
            assert not any(one.done() for one in sent)
        finally:
            go_on.set()
        assert all(one.result().status_code in (202, 400) for one in sent)


def state_of(service: Running, job: str) -> str:
    return httpx2.get(f"{service.url}/jobs/{job}", timeout=30).json()["state"]
