"""The service in front of two replicas on a Ray cluster of this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx2
import pytest
import torch

from nextstep.cli.serve import _replica, parse_replicas
from nextstep.pipeline import NextStepPipeline
from nextstep.serve.api.server import app_around
from nextstep.serve.jobs.limits import ServiceLimits
from tests.serve.conftest import Running, alone, running, until
from tests.serve.test_forks import ask, png
from tests.serve.test_jobs import submit


def test_numbers_of_replicas() -> None:
    assert parse_replicas("2") == (2, 2) and parse_replicas("1-4") == (1, 4)
    for bad in ("0", "4-1", "many", "1-", "-1"):
        if bad == "1-":
            assert parse_replicas(bad) == (1, 1)
            continue
        with pytest.raises(ValueError, match="FEWEST-MOST"):
            parse_replicas(bad)


@pytest.fixture(scope="module")
def replicas(
    request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    if not request.config.getoption("--ray"):
        pytest.skip("starts a Ray cluster: give --ray")
    pytest.importorskip("ray.serve")
    from nextstep.serve.jobs.ray_backend import deploy, shut_down

    load: Callable[[], NextStepPipeline] = partial(NextStepPipeline.from_pretrained, tiny_folder)
    make = partial(_replica, load, "tiny", 8, 10.0)
    backend = deploy(make, (2, 2), cpus=0.5)
    folder = tmp_path_factory.mktemp("ray")
    # Ray gives a replica one thread, and pictures record how many made them.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with running(app_around(backend, folder, None, ServiceLimits())) as made:
        yield made
    torch.set_num_threads(before)
    shut_down()


def test_replicas_make_the_engines_pictures(
    replicas: Running, tiny_pipeline: NextStepPipeline
) -> None:
    jobs = [submit(replicas.url, prompt="two cats", seed=seed, size="32x64") for seed in range(6)]
    for seed, job in enumerate(jobs):
        wanted = alone(tiny_pipeline, "two cats", seed=seed, height=64, width=32)[0]
        assert png(replicas, job["id"]) == wanted.png()
    fork = ask(replicas, f"{jobs[0]['id']}/fork", row=2)
    assert png(replicas, fork["id"]) == png(replicas, jobs[0]["id"])
    told = httpx2.get(f"{replicas.url}/jobs/{jobs[0]['id']}/pictures/0/tokens").json()
    assert len(told["token_std"]) == 8
    bad = submit(replicas.url, prompt="word " * 300)
    until(lambda: httpx2.get(f"{replicas.url}/jobs/{bad['id']}").json()["state"] == "failed")
    events = replicas.openai().images.generate(
        prompt="a", size="32x64", stream=True, partial_images=2, extra_body={"seed": 1}
    )
    names = [event.type.split(".")[1] for event in events]
    assert names == ["partial_image", "partial_image", "completed"]


def test_running_jobs_are_forked_stopped_and_cancelled(replicas: Running) -> None:
    slow = {"prompt": "a", "size": "64x96", "steps": 150, "seed": 1}
    one, other = submit(replicas.url, **slow), submit(replicas.url, **slow)
    for job in (one, other):
        seen = 0
        with httpx2.stream("GET", f"{replicas.url}/jobs/{job['id']}/events") as answer:
            for line in answer.iter_lines():
                seen += line == "event: row"
                if seen == 2:
                    break
    fork = ask(replicas, f"{one['id']}/fork", row=1, steps=2)
    ask(replicas, f"{one['id']}/stop")
    ask(replicas, f"{other['id']}/cancel")
    until(lambda: httpx2.get(f"{replicas.url}/jobs/{one['id']}").json()["state"] == "done")
    stopped = httpx2.get(f"{replicas.url}/jobs/{one['id']}").json()
    assert 2 <= stopped["pictures"][0]["settings"]["rows_done"] < 6
    until(lambda: httpx2.get(f"{replicas.url}/jobs/{other['id']}").json()["state"] == "cancelled")
    assert png(replicas, fork["id"])


def test_a_dead_replica_loses_nothing(replicas: Running, tiny_pipeline: NextStepPipeline) -> None:
    import ray

    slow = {"prompt": "two cats", "size": "32x64", "steps": 200}
    jobs = [submit(replicas.url, **slow, seed=seed) for seed in range(4)]
    time.sleep(0.5)
    named = ray.util.list_named_actors(all_namespaces=True)
    found = [a for a in named if a["name"].startswith("SERVE_REPLICA::nextstep#pictures#")]
    assert len(found) == 2
    ray.kill(ray.get_actor(found[0]["name"], namespace=found[0]["namespace"]))
    for seed, job in enumerate(jobs):
        wanted = alone(tiny_pipeline, "two cats", seed=seed, height=64, width=32, steps=200)[0]
        assert png(replicas, job["id"]) == wanted.png()
