"""Jobs: rows as they come, cancelling, the bounded queue, restarts, retention, metrics."""

from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from PIL import Image

from nextstep.engine.events import OUTCOMES, Event, Part
from nextstep.pipeline import NextStepPipeline
from nextstep.serve.jobs import backend as b
from nextstep.serve.jobs.engine_backend import EngineBackend
from nextstep.serve.jobs.store import Store
from tests.serve.conftest import Running, alone, engine_of, picture_bytes, running, until

SLOW = {"prompt": "a", "size": "128x128", "steps": 200, "seed": 0}


def told_by(url: str, job: str, busy: str = "") -> list[tuple[str, dict[str, Any]]]:
    events = []
    with httpx2.stream("GET", f"{url}/jobs/{job}/events", timeout=30) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if busy:
                # Nothing of the job is made before it is watched.
                httpx2.post(f"{url}/jobs/{busy}/cancel")
                busy = ""
            if line.startswith("event: "):
                events.append((line[7:], {}))
            elif line.startswith("data: "):
                events[-1] = (events[-1][0], json.loads(line[6:]))
    return events


def submit(url: str, **body: Any) -> dict[str, Any]:
    answer = httpx2.post(f"{url}/jobs", json=body)
    assert answer.status_code == 202, answer.text
    return answer.json()


def test_rows_are_reported_in_order(narrow: Running, tiny_pipeline: NextStepPipeline) -> None:
    busy = submit(narrow.url, **SLOW)
    until(lambda: jobs_in(narrow, "running"))
    job = submit(narrow.url, prompt="a red apple", n=2, size="32x64", seed=4)
    assert job["state"] == "queued" and job["position"] == 1
    events = told_by(narrow.url, job["id"], busy["id"])
    names = [name for name, _ in events]
    assert names[0] == "queued" and "started" in names and names[-1] == "done"
    rows = [(e["index"], e["row"], e["rows"]) for name, e in events if name == "row"]
    assert sorted(rows) == [(i, row, 4) for i in (0, 1) for row in (1, 2, 3, 4)]
    shown = [e["preview"] for name, e in events if name == "row" and e["row"] < 4]
    assert len(set(shown)) == 6
    done = events[-1][1]
    assert done["state"] == "done" and done["usage"]["output_tokens"] == 16
    wanted = alone(tiny_pipeline, "a red apple", height=64, width=32, n=2, seed=4)
    for place, link in enumerate(done["pictures"]):
        data = httpx2.get(narrow.url + link["url"])
        picture = Image.open(io.BytesIO(data.content))
        assert data.headers["content-type"] == "image/png"
        assert picture.tobytes() == wanted[place].image.tobytes()
    assert told_by(narrow.url, job["id"])[-1][0] == "done"
    listed = httpx2.get(f"{narrow.url}/jobs", params={"limit": 2}).json()["data"]
    assert [one["id"] for one in listed] == [job["id"], busy["id"]]


def test_a_job_is_stopped_while_running_and_while_waiting(narrow: Running) -> None:
    first, second = submit(narrow.url, **SLOW), submit(narrow.url, **{**SLOW, "size": "64x64"})
    until(lambda: httpx2.get(f"{narrow.url}/jobs/{first['id']}").json()["state"] == "running")
    for job in (second, first):
        httpx2.post(f"{narrow.url}/jobs/{job['id']}/cancel")
        assert told_by(narrow.url, job["id"])[-1][0] == "cancelled"
    assert httpx2.get(f"{narrow.url}/jobs/{first['id']}").json()["state"] == "cancelled"


def test_a_client_that_goes_cancels_its_request(service: Running) -> None:
    port = int(service.url.rsplit(":", 1)[1])
    for stream in (False, True):
        body = json.dumps({**SLOW, "stream": stream}).encode()
        with socket.create_connection(("127.0.0.1", port)) as line:
            line.sendall(
                b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
                b"application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            until(lambda: jobs_in(service, "running"))
        until(lambda: not jobs_in(service, "running"))
        newest = httpx2.get(f"{service.url}/jobs", params={"limit": 1}).json()["data"][0]
        assert newest["state"] == "cancelled"


def jobs_in(service: Running, state: str) -> list[Any]:
    return httpx2.get(f"{service.url}/jobs", params={"state": state}).json()["data"]


def test_a_full_queue_says_when_to_come_back(app_of: Callable) -> None:
    with running(app_of(queue=2)) as made:
        jobs = [submit(made.url, **SLOW) for _ in range(2)]
        with pytest.raises(openai.RateLimitError) as full:
            made.openai().images.generate(prompt="a")
        assert int(full.value.response.headers["retry-after"]) >= 1
        for job in jobs:
            httpx2.post(f"{made.url}/jobs/{job['id']}/cancel")
        until(lambda: not jobs_in(made, "running"))
        assert made.openai().images.generate(prompt="a").data


def test_a_job_past_its_deadline_fails(app_of: Callable) -> None:
    with running(app_of(deadline=0.2)) as made, pytest.raises(openai.InternalServerError) as late:
        made.openai().images.generate(prompt="a", size="128x128", extra_body={"steps": 200})
    assert "longer than" in late.value.body["message"]


def test_accepted_jobs_survive_a_restart(
    app_of: Callable, tmp_path: Path, tiny_pipeline: NextStepPipeline
) -> None:
    with running(app_of(tmp_path, grace=0.05)) as made:
        slow = submit(made.url, prompt="a", size="64x64", steps=60, seed=0)
        waiting = submit(made.url, prompt="two cats", seed=9)
        until(lambda: jobs_in(made, "running"))
    with running(app_of(tmp_path)) as made:
        for job in (slow, waiting):
            assert told_by(made.url, job["id"])[-1][0] == "done"
        wanted = (
            alone(tiny_pipeline, "a", height=64, width=64, steps=60, seed=0)[0],
            alone(tiny_pipeline, "two cats", seed=9)[0],
        )
        for job, picture in zip((slow, waiting), wanted, strict=True):
            data = httpx2.get(f"{made.url}/jobs/{job['id']}/pictures/0").content
            assert data == picture.png()


def ends_of(
    backend: EngineBackend, requests: dict[str, b.JobRequest], source: bytes = b""
) -> tuple[dict[str, Any], Callable[[], dict[str, Event]]]:
    """Submit jobs to a backend; their handles, and a wait for their ends."""
    ends: dict[str, Event] = {}
    over = threading.Event()

    def job(name: str, request: b.JobRequest) -> b.Job:
        def tell(event: Event) -> None:
            if event.kind in OUTCOMES:
                assert name not in ends
                ends[name] = event
                if len(ends) == len(requests):
                    over.set()

        return b.Job(name, request, lambda name: source or picture_bytes(), tell, owner=name[0])

    handles = {name: backend.submit(job(name, request)) for name, request in requests.items()}

    def wait() -> dict[str, Event]:
        assert over.wait(30)
        return ends

    return handles, wait


def test_heterogeneous_requests_run_together_and_none_changes(
    tiny_pipeline: NextStepPipeline,
) -> None:
    sizes: list[int] = []
    made = EngineBackend(engine_of(tiny_pipeline), on_batch=sizes.append)
    asked = {
        "one": b.JobRequest("generate", "a red apple", n=2, seed=1),
        "two": b.JobRequest("generate", "two cats", 64, 32, seed=2, settings={"steps": 4}),
        "edit": b.JobRequest("edit", "make it blue", seed=3, sources=("any",)),
        "long": b.JobRequest("generate", "a red apple " * 100),
        "gone": b.JobRequest("generate", "a", 96, 96, settings={"steps": 40}),
    }
    handles, wait = ends_of(made, asked)
    handles["gone"].cancel()
    ends = wait()
    made.close(1)
    assert max(sizes) >= 3
    failed = ends["long"]
    assert failed.kind == "failed" and failed.bad_input
    assert ends["gone"].kind == "cancelled"
    source = Image.open(io.BytesIO(picture_bytes()))
    wanted = {
        "one": alone(tiny_pipeline, "a red apple", n=2, seed=1),
        "two": alone(tiny_pipeline, "two cats", height=64, width=32, seed=2, steps=4),
        "edit": alone(tiny_pipeline, "make it blue", source, seed=3),
    }
    for name, pictures in wanted.items():
        end = ends[name]
        assert end.kind == "done"
        assert [part.png for part in end.parts] == [picture.png() for picture in pictures]


def test_the_store_keeps_only_so_many(tmp_path: Path) -> None:
    store = Store(tmp_path, keep=2)
    records = [store.add("a", b.JobRequest("edit"), [b"source"]) for _ in range(4)]
    for record in records:
        store.finish(record, Event("done", parts=(Part("", b"png", {"seed": 1}), Part("text"))))
    assert [record.id for record in store.of_owner("a", 9)] == [r.id for r in records[:1:-1]]
    assert len(store.files.names()) == 4
    store.close()
    again = Store(tmp_path, keep=2)
    assert sorted(again.files.names()) == sorted(
        f"{r.id}-{kind}.png" for r in records[2:] for kind in ("0", "source-0")
    )
    assert again.get(records[3].id) == records[3]
    assert again.get(records[0].id) is None


def test_figures_for_prometheus(service: Running) -> None:
    service.openai().images.generate(prompt="a")
    text = httpx2.get(f"{service.url}/metrics").text
    for figure in (
        'nextstep_jobs_total{outcome="done",task="generate"}', "nextstep_jobs_queued 0.0",
        "nextstep_rows_total", "nextstep_batch_pictures_bucket", "nextstep_memory_bytes",
        "nextstep_picture_seconds_sum",
        'nextstep_http_requests_total{method="POST",route="/v1/images/generations",status="200"}',
    ):  # fmt: skip
        assert figure in text, figure
    assert httpx2.get(f"{service.url}/health").json()["status"] == "ok"
    assert httpx2.get(f"{service.url}/ready").status_code == 200


def test_while_it_stops_nothing_new_is_taken(app_of: Callable) -> None:
    with running(app_of()) as made:
        made.server.drain()
        assert httpx2.get(f"{made.url}/ready").status_code == 503
        with pytest.raises(openai.InternalServerError, match="stopping"):
            made.openai().images.generate(prompt="a")


JUMP = {"prompt": "a red apple", "size": "32x32", "solver": "flow_map"}
WORDS = [{"role": "user", "content": "a"}]
ASKED: dict[str, dict[str, Any]] = {
    "jobs": {"json": JUMP},
    "v1/images/generations": {"json": JUMP},
    "v1/images/edits": {"data": JUMP, "files": {"image": picture_bytes()}},
    "v1/chat/completions": {
        "json": {"messages": WORDS, "modalities": ["image"], "solver": "flow_map"}
    },
}


@pytest.mark.parametrize("path", ASKED)
def test_a_solver_that_the_model_lacks_is_refused_and_harms_nobody(
    service: Running, path: str
) -> None:
    busy = submit(service.url, **SLOW)
    answer = httpx2.post(f"{service.url}/{path}", **ASKED[path])
    assert answer.status_code == 400 and "does not jump" in answer.text
    assert httpx2.get(f"{service.url}/jobs/{busy['id']}").json()["state"] in ("queued", "running")
    httpx2.post(f"{service.url}/jobs/{busy['id']}/cancel")
