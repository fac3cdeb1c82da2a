"""What computes is told, and pictures of two roundings are not mixed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

from nextstep.engine import runtime_info as computing
from nextstep.engine.runtime_info import RuntimeInfo
from nextstep.engine.state import PictureState
from nextstep.image.sizes import SizeLimits
from nextstep.kernels import build
from nextstep.model.quantization import pack_for_sampling
from nextstep.pipeline import NextStepPipeline
from nextstep.serve.jobs import backend as b
from nextstep.serve.jobs.limits import ServiceLimits
from nextstep.serve.jobs.manager import Jobs
from nextstep.serve.jobs.metrics import Metrics
from nextstep.serve.jobs.store import Store
from tests.conftest import PACKABLE, TINY, random_model
from tests.serve.conftest import Running, alone, running, until
from tests.serve.test_jobs import jobs_in, submit, told_by


class Silent:
    """A backend that does nothing."""

    def __init__(self, **runtime: Any) -> None:
        self.facts = b.ModelFacts(
            "tiny", "0123", 32, 32, SizeLimits(16, None, 255), runtime=runtime
        )

    def check(self, request: b.JobRequest) -> None:
        """Take anything."""

    def submit(self, job: b.Job) -> None:
        """Leave it waiting."""


def begun(folder: Path, **runtime: Any) -> Jobs:
    """Jobs of a process that computes so."""
    store = Store(folder, 10)
    jobs = Jobs(Silent(**runtime), store, ServiceLimits(), Metrics())  # type: ignore[arg-type]

    async def begin() -> None:
        jobs.open()
        if not store.unfinished():
            await jobs.submit("a", b.JobRequest("generate", "a"), [])

    asyncio.run(begin())
    store.close()
    return jobs


def test_the_log_says_at_the_start_what_computes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    how = {"backend": "kernels 3", "threads": 2, "hindered": False}
    with caplog.at_level(logging.INFO, "nextstep.serve"):
        begun(tmp_path, **how)
        begun(tmp_path, **how)
    begins = [one for one in caplog.records if one.getMessage() == "begins"]
    assert [one.levelname for one in begins] == ["INFO", "INFO"]
    assert vars(begins[0])["runtime"] == how and vars(begins[0])["hash"] == "0123"
    assert not [one for one in caplog.records if one.levelno > logging.INFO]
    caplog.clear()
    with caplog.at_level(logging.INFO, "nextstep.serve"):
        begun(tmp_path, **how | {"backend": "torch", "threads": 1, "hindered": True})
    levels = {one.getMessage(): one.levelname for one in caplog.records}
    assert levels["begins"] == "WARNING"
    (other,) = (one for one in caplog.records if "other last bits" in one.getMessage())
    assert vars(other)["differs"] == ["backend", "threads"] and vars(other)["unfinished"] == 1


def test_the_model_card_says_what_computes(service: Running) -> None:
    card = httpx2.get(f"{service.url}/v1/models").json()["data"][0]
    told = card["runtime"]
    assert (told["backend"], told["number_format"]) == ("torch", "float32")
    assert told["threads"] == torch.get_num_threads() and told["torch"] == torch.__version__
    assert told["why_torch"]


def test_the_reason_is_the_processs_or_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "is_hindered", lambda: True)
    monkeypatch.setattr(build, "why_not", lambda: "there is no compiler")
    told = RuntimeInfo.of(random_model(PACKABLE))
    assert (told.backend, told.why_torch, told.hindered) == ("torch", "there is no compiler", True)
    for model in (random_model(TINY), random_model(PACKABLE).half()):
        told = RuntimeInfo.of(model)
        assert (told.why_torch, told.hindered) == (computing.OTHER_MODEL, False)


@pytest.mark.skipif(not build.is_available(), reason=build.why_not())
def test_kernels_are_reported() -> None:
    model = random_model(PACKABLE)
    pack_for_sampling(model)
    told = RuntimeInfo.of(model)
    assert (told.backend, told.number_format) == ("kernels 3", "float32, kernels 3")
    assert (told.why_torch, told.hindered) == ("", False)


@pytest.mark.parametrize("other", [{"threads": 99}, {"dtype": "float32, kernels 3"}])
def test_a_picture_begun_with_other_roundings_is_begun_anew(
    other: dict[str, Any],
    app_of: Callable,
    tmp_path: Path,
    tiny_pipeline: NextStepPipeline,
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = {"size": "128x128", "steps": 40, "seed": 0}
    with running(app_of(tmp_path, grace=0.05)) as made:
        job = submit(made.url, prompt="a", **asked)
        until(lambda: jobs_in(made, "running"))
        until(lambda: httpx2.get(f"{made.url}/metrics").text.count("nextstep_rows_total 0.0") == 0)
    (path,) = (tmp_path / "pictures").glob("*.state")
    state = PictureState.load(path)
    assert 0 < len(state.tokens) < 64
    # Tokens that nobody would sample, so that a picture that goes on from them is another one.
    spoilt = replace(
        state, tokens=state.tokens + 1, fingerprint=replace(state.fingerprint, **other)
    )
    spoilt.save(path)
    with caplog.at_level(logging.WARNING, "nextstep.serve"), running(app_of(tmp_path)) as made:
        assert told_by(made.url, job["id"])[-1][0] == "done"
        data = httpx2.get(f"{made.url}/jobs/{job['id']}/pictures/0").content
    wanted = alone(tiny_pipeline, "a", height=128, width=128, steps=40, seed=0)[0]
    assert data == wanted.png()
    (anew,) = (one for one in caplog.records if one.getMessage().endswith("begun anew"))
    assert "begun with another" in vars(anew)["reason"] and vars(anew)["job"] == job["id"]
