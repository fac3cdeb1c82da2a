"""Forks, regions drawn anew, early stops, stories as jobs, and what tokens tell."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from nextstep.engine.token_uncertainty import measure
from nextstep.pipeline import NextStepPipeline
from nextstep.serve.api.server import build_app
from tests.serve.conftest import Running, alone, data_uri, engine_of, picture_bytes, running, until
from tests.serve.test_jobs import submit, told_by

TALL = {"prompt": "a red apple", "size": "32x64", "seed": 4}
"""Four rows of two image tokens."""


def ask(service: Running, path: str, **body: Any) -> dict[str, Any]:
    answer = httpx2.post(f"{service.url}/jobs/{path}", json=body)
    assert answer.status_code in (200, 202), answer.text
    return answer.json()


def png(service: Running, job: str, index: int = 0) -> bytes:
    assert told_by(service.url, job)[-1][0] == "done"
    return httpx2.get(f"{service.url}/jobs/{job}/pictures/{index}").content


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data))).astype(int)


@pytest.fixture(scope="module")
def done(service: Running) -> dict[str, Any]:
    job = submit(service.url, **TALL, n=2)
    png(service, job["id"])
    return job


def test_a_fork_keeps_rows_and_continues_alone(service: Running, done: dict[str, Any]) -> None:
    first = png(service, done["id"])
    same = ask(service, f"{done['id']}/fork", row=2)
    assert same["parent"] == {"kind": "fork", "job": done["id"], "picture": 0, "row": 2}
    assert same["n"] == 1 and same["size"] == "32x64"
    assert png(service, same["id"]) == first
    second = ask(service, f"{done['id']}/fork", row=2, picture=1)
    assert png(service, second["id"]) == png(service, done["id"], 1)
    other = ask(service, f"{done['id']}/fork", row=2, prompt="two cats", seed=9, steps=3)
    made = png(service, other["id"])
    assert made != first
    settings = httpx2.get(f"{service.url}/jobs/{other['id']}").json()["pictures"][0]["settings"]
    assert (settings["prompt"], settings["seed"], settings["steps"]) == ("two cats", 9, 3)
    assert settings["origin"].startswith("fork from row 2 of")
    # A fork can be forked.
    again = ask(service, f"{other['id']}/fork", row=4)
    assert png(service, again["id"]) == made


def test_pictures_of_a_fitted_solver_are_gone_on_from(tiny_pipeline: NextStepPipeline) -> None:
    """The model's own settings hold a table, whose steps are not the number that stands beside."""
    own = tiny_pipeline.defaults
    generate = replace(own.generate, solver="multistep", steps=8, table=(0.3, -0.2))
    fitted = copy.copy(tiny_pipeline)
    fitted.defaults = replace(own, generate=generate)
    with running(build_app(fitted, "tiny", None)) as service:
        first = submit(service.url, **TALL)
        whole = png(service, first["id"])
        same = ask(service, f"{first['id']}/fork", row=1)
        assert same["settings"]["steps"] == 2 and png(service, same["id"]) == whole
        more = ask(service, f"{first['id']}/resample", rows=[2, 3], seed=9)
        assert (pixels(png(service, more["id"]))[:32] == pixels(whole)[:32]).all()


def test_a_running_picture_is_forked_and_stopped(service: Running) -> None:
    slow = submit(service.url, prompt="a", size="64x96", steps=150, seed=1)
    seen = 0
    with httpx2.stream("GET", f"{service.url}/jobs/{slow['id']}/events", timeout=30) as answer:
        for line in answer.iter_lines():
            seen += line == "event: row"
            if seen == 2:
                break
    assert httpx2.post(f"{service.url}/jobs/{slow['id']}/resample", json={"rows": [0, 1]}
                       ).status_code == 409  # fmt: skip
    fork = ask(service, f"{slow['id']}/fork", row=1, steps=2)
    ask(service, f"{slow['id']}/stop")
    until(lambda: httpx2.get(f"{service.url}/jobs/{slow['id']}").json()["state"] == "done")
    stopped = httpx2.get(f"{service.url}/jobs/{slow['id']}").json()
    rows = stopped["pictures"][0]["settings"]["rows_done"]
    assert 2 <= rows < 6
    kept = pixels(png(service, slow["id"]))
    assert (kept[rows * 16 :] == 128).all() and not (kept[: rows * 16] == 128).all()
    assert pixels(png(service, fork["id"])).shape == (96, 64, 3)
    # What was not drawn is drawn with the region.
    more = ask(service, f"{slow['id']}/resample", rows=[0, 1], steps=2)
    whole = pixels(png(service, more["id"]))
    assert (whole[16 : rows * 16] == kept[16 : rows * 16]).all()
    assert not (whole[rows * 16 :] == 128).all()


def test_a_job_stopped_before_its_first_row_is_cancelled(narrow: Running) -> None:
    busy = submit(narrow.url, prompt="a", size="128x128", steps=200)
    waiting = submit(narrow.url, prompt="a")
    ask(narrow, f"{waiting['id']}/stop")
    assert told_by(narrow.url, waiting["id"])[-1][0] == "cancelled"
    ask(narrow, f"{busy['id']}/cancel")


@pytest.mark.parametrize("region", ["rows", "tokens", "mask"])
def test_a_region_is_drawn_anew(service: Running, done: dict[str, Any], region: str) -> None:
    first = pixels(png(service, done["id"]))
    marked = np.zeros((64, 32), dtype=bool)
    if region == "rows":
        body: dict[str, Any] = {"rows": [1, 3]}
        marked[16:48] = True
    elif region == "tokens":
        body = {"tokens": [2, 5]}
        marked[16:32, :16] = marked[32:48, 16:] = True
    else:
        mask = Image.new("RGBA", (32, 64), (0, 0, 0, 255))
        mask.paste((0, 0, 0, 0), (3, 20, 12, 28))
        marked[20:28, 3:12] = True
        buffer = io.BytesIO()
        mask.save(buffer, "PNG")
        body = {"mask": data_uri(buffer.getvalue())}
    new = ask(service, f"{done['id']}/resample", **body, seed=77)
    assert new["parent"]["kind"] == "resample"
    made = pixels(png(service, new["id"]))
    assert (made[~marked] == first[~marked]).all()
    assert (made[marked] != first[marked]).any(axis=-1).mean() > 0.9
    same = ask(service, f"{done['id']}/resample", **body)
    assert (pixels(png(service, same["id"])) == first).all()


def test_what_tokens_tell(
    service: Running, done: dict[str, Any], tiny_pipeline: NextStepPipeline
) -> None:
    url = f"{service.url}/jobs/{done['id']}/pictures/1/tokens"
    told = httpx2.get(url, params={"noise_samples": 3}).json()
    assert (told["rows"], told["columns"], told["tokens"], told["noise_samples"]) == (4, 2, 8, 3)
    for name in ("token_std", "guidance_delta", "guidance", "head_calls", "fixed"):
        assert len(told[name]) == 8
    assert all(0 < value < 2 for value in told["token_std"])
    assert all(0 <= value < 2 for value in told["guidance_delta"]) and any(told["guidance_delta"])
    assert told["guidance"] == [2.0] * 8 and told["head_calls"] == [2] * 8
    assert told == httpx2.get(url, params={"draws": 3}).json()
    unguided = submit(service.url, **TALL, guidance=1.0)
    png(service, unguided["id"])
    told = httpx2.get(f"{service.url}/jobs/{unguided['id']}/pictures/0/tokens").json()
    assert told["guidance_delta"] == [0.0] * 8 and told["noise_samples"] == 4


def test_measured_states_are_those_tokens_were_sampled_from(
    tiny_pipeline: NextStepPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the picture's own noise every draw is the token itself, so nothing spreads or moves."""
    engine = engine_of(tiny_pipeline)
    request = engine.request("a red apple", height=64, guidance=1.0, seed=3)
    engine.submit(request)
    tokens = engine.run_until_idle()[-1].tokens
    from nextstep.engine import token_uncertainty as microscope

    own = microscope.KeyedNoise
    monkeypatch.setattr(microscope, "KeyedNoise", lambda keys, *a: own([(3, 0)], *a))
    made = []
    sample = engine.backend.sample
    monkeypatch.setattr(
        engine.backend, "sample", lambda asked: made.append(sample(asked)) or made[-1]
    )
    steps = measure(engine, engine.state(request, tokens), 2)
    with pytest.raises(StopIteration) as end:
        while True:
            next(steps)
    assert end.value.value["token_std"] == [0.0] * 8
    for index, draws in enumerate(made[0][place : place + 3] for place in range(0, 24, 3)):
        assert all((draw == tokens[index]).all() for draw in draws)


def test_a_story_is_a_job_too(service: Running) -> None:
    parts = [
        {"type": "text", "text": "a red apple"},
        {"type": "image_url", "image_url": {"url": data_uri(picture_bytes(size=(32, 32)))}},
    ]
    job = submit(service.url, parts=parts, draw=True, size="48x32", max_tokens=3, seed=1,
                 steps=100)  # fmt: skip
    assert job["task"] == "chat" and len(job["sources"]) == 1
    events = told_by(service.url, job["id"])
    (part,) = [data for name, data in events if name == "part"]
    assert part["settings"]["task"] == "story"
    told = httpx2.get(f"{service.url}/jobs/{job['id']}").json()
    assert [one["type"] for one in told["parts"]] == ["picture"]
    data = httpx2.get(service.url + told["parts"][0]["url"]).content
    assert pixels(data).shape == (32, 48, 3)
    source = httpx2.get(service.url + told["sources"][0]).content
    assert (pixels(source) == pixels(picture_bytes(size=(32, 32)))).all()
    refused = httpx2.post(f"{service.url}/jobs/{job['id']}/fork", json={"row": 1})
    assert refused.status_code == 409 and "story" in refused.json()["error"]["message"]
    text = submit(service.url, parts=parts, max_images=0, max_tokens=3)
    assert [one["type"] for one in told_by(service.url, text["id"])[-1][1]["parts"]] == ["text"]


def test_an_edit_job_with_a_mask(service: Running) -> None:
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (0, 0, 9, 9))
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    source = picture_bytes(size=(32, 32))
    job = submit(
        service.url, prompt="make it blue", images=[data_uri(source)],
        mask=data_uri(buffer.getvalue()),
    )  # fmt: skip
    made = pixels(png(service, job["id"]))
    apart = (made != pixels(source)).any(axis=2)
    assert apart[:9, :9].any() and not apart[9:].any() and not apart[:, 9:].any()
    kept = httpx2.get(f"{service.url}/jobs/{job['id']}/mask").content
    assert (pixels(kept) == np.asarray(mask)).all()


def test_a_job_is_removed(service: Running) -> None:
    job = submit(service.url, **TALL)
    png(service, job["id"])
    url = f"{service.url}/jobs/{job['id']}"
    assert httpx2.delete(url).status_code == 204
    assert httpx2.get(url).status_code == 404
    slow = submit(service.url, prompt="a", size="128x128", steps=200)
    assert httpx2.delete(f"{service.url}/jobs/{slow['id']}").status_code == 409
    ask(service, f"{slow['id']}/cancel")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("fork", {"row": 5}, 400), ("fork", {}, 400), ("fork", {"row": 1, "picture": 7}, 404),
        ("fork", {"row": 1, "steps": 999}, 400), ("fork", {"row": 1, "colour": 1}, 400),
        ("resample", {}, 400), ("resample", {"rows": [3, 3]}, 400),
        ("resample", {"rows": [0, 5]}, 400), ("resample", {"tokens": [8]}, 400),
        ("resample", {"rows": [0, 1], "tokens": [1]}, 400),
        ("resample", {"mask": "http://x"}, 400),
        ("resample", {"mask": data_uri(picture_bytes())}, 400),
    ],
)  # fmt: skip
def test_faulty_forks(
    service: Running, done: dict[str, Any], path: str, body: dict[str, Any], status: int
) -> None:
    answer = httpx2.post(f"{service.url}/jobs/{done['id']}/{path}", json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]


def test_forks_survive_a_restart(
    app_of: Callable, tmp_path: Path, tiny_pipeline: NextStepPipeline
) -> None:
    with running(app_of(tmp_path, grace=0.05)) as made:
        slow = submit(made.url, prompt="a", size="32x64", steps=200, seed=5)
        until(lambda: httpx2.get(f"{made.url}/jobs/{slow['id']}").json()["state"] == "running")
    with running(app_of(tmp_path)) as made:
        whole = png(made, slow["id"])
        assert whole == alone(tiny_pipeline, "a", height=64, width=32, steps=200, seed=5)[0].png()
        fork = ask(made, f"{slow['id']}/fork", row=1)
        assert png(made, fork["id"]) == whole
