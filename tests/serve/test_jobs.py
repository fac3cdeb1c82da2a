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

from nextstep.pipeline import NextStepPipeline
from nextstep.serve import backend as b
from nextstep.serve.pipeline_backend import PipelineBackend
from nextstep.serve.store import Store
from tests.serve.conftest import Running, picture_bytes, running, until

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


def test_rows_are_told_in_order(service: Running, tiny_pipeline: NextStepPipeline) -> None:
    busy = submit(service.url, **SLOW)
    job = submit(service.url, prompt="a red apple", n=2, size="32x64", seed=4)
    assert job["state"] == "queued" and job["position"] == 1
    events = told_by(service.url, job["id"], busy["id"])
    names = [name for name, _ in events]
    assert names[0] == "queued" and "started" in names and names[-1] == "done"
    rows = [(e["index"], e["row"], e["rows"]) for name, e in events if name == "row"]
    assert sorted(rows) == [(i, row, 4) for i in (0, 1) for row in (1, 2, 3, 4)]
    shown = [e["preview"] for name, e in events if name == "row" and e["row"] < 4]
    assert len(set(shown)) == 6
    done = events[-1][1]
    assert done["state"] == "done" and done["usage"]["output_tokens"] == 16
    wanted = tiny_pipeline.generate("a red apple", height=64, width=32, num_images=2, seed=4)
    for place, link in enumerate(done["pictures"]):
        data = httpx2.get(service.url + link["url"])
        picture = Image.open(io.BytesIO(data.content))
        assert data.headers["content-type"] == "image/png"
        assert picture.tobytes() == wanted[place].image.tobytes()
    assert told_by(service.url, job["id"])[-1][0] == "done"
    listed = httpx2.get(f"{service.url}/jobs", params={"limit": 2}).json()["data"]
    assert [one["id"] for one in listed] == [job["id"], busy["id"]]


def test_a_job_is_stopped_while_running_and_while_waiting(service: Running) -> None:
    first, second = submit(service.url, **SLOW), submit(service.url, **{**SLOW, "size": "64x64"})
    until(lambda: httpx2.get(f"{service.url}/jobs/{first['id']}").json()["state"] == "running")
    for job in (second, first):
        httpx2.post(f"{service.url}/jobs/{job['id']}/cancel")
        assert told_by(service.url, job["id"])[-1][0] == "cancelled"
    assert httpx2.get(f"{service.url}/jobs/{first['id']}").json()["state"] == "cancelled"


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
        data = httpx2.get(f"{made.url}/jobs/{waiting['id']}/pictures/0").content
        wanted = tiny_pipeline.generate("two cats", seed=9)[0].image
        assert Image.open(io.BytesIO(data)).tobytes() == wanted.tobytes()


def test_requests_that_wait_together_are_made_together(tiny_pipeline: NextStepPipeline) -> None:
    sizes: list[int] = []
    made = PipelineBackend(tiny_pipeline, on_batch=sizes.append)
    ends: dict[str, b.Event] = {}
    over = threading.Event()

    def job(name: str, request: b.JobRequest) -> b.Job:
        def tell(event: b.Event) -> None:
            if isinstance(event, b.FINAL):
                ends[name] = event
                if len(ends) == 5:
                    over.set()

        return b.Job(name, request, lambda name: picture_bytes(), tell)

    busy = b.JobRequest("generate", "a", 64, 64, settings={"steps": 40})
    made.submit(job("busy", busy))
    until(lambda: sizes == [1])
    for name, seed in (("one", 1), ("two", 2)):
        made.submit(job(name, b.JobRequest("generate", "a red apple", n=2, seed=seed)))
    made.submit(job("long", b.JobRequest("generate", "a red apple " * 100, n=2)))
    made.submit(job("other", b.JobRequest("generate", "two cats", 32, 48)))
    assert over.wait(20)
    made.close(1)
    # The one too long for the model fails alone; its neighbours are made again without it.
    assert sizes == [1, 6, 2, 2, 2, 1]
    failed = ends["long"]
    assert isinstance(failed, b.Failed) and failed.bad_input
    for name, seed in (("one", 1), ("two", 2)):
        alone = tiny_pipeline.generate("a red apple", num_images=2, seed=seed)
        end = ends[name]
        assert isinstance(end, b.Done)
        assert [part.png for part in end.parts] == [picture.png() for picture in alone]


def test_a_batch_leaves_out_who_is_gone_and_stops_when_all_are(
    tiny_pipeline: NextStepPipeline,
) -> None:
    told: dict[str, list[b.Event]] = {"one": [], "two": []}
    made = PipelineBackend(tiny_pipeline)
    block = b.Job("x", b.JobRequest("generate", "", 96, 96, settings={"steps": 10}),
                  lambda n: b"", lambda e: None)  # fmt: skip
    made.submit(block)
    handles = {
        name: made.submit(
            b.Job(name, b.JobRequest("generate", name, 64, 64), lambda n: b"", told[name].append)
        )
        for name in told
    }
    until(lambda: len(told["one"]) > 2)
    handles["one"].cancel()
    until(lambda: told["two"] and isinstance(told["two"][-1], b.Done))
    made.close(1)
    assert isinstance(told["one"][-1], b.Cancelled)
    assert sum(isinstance(event, b.FINAL) for event in told["one"]) == 1


def test_the_store_keeps_only_so_many_and_no_stray_files(tmp_path: Path) -> None:
    store = Store(tmp_path, keep=2)
    records = [store.add("a", b.JobRequest("edit"), [b"source"]) for _ in range(4)]
    for record in records:
        store.finish(record, b.Done((b.Part("", b"png", {"seed": 1}), b.Part("text"))))
    assert [record.id for record in store.of_owner("a", 9)] == [r.id for r in records[:1:-1]]
    assert len(store.files.names()) == 4
    store.files.write("stray.png", b"half a job")
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
