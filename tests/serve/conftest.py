"""A service around the tiny random model, in a thread."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest
from fastapi import FastAPI
from PIL import Image

from nextstep.engine.engine import Engine
from nextstep.engine.results import GeneratedPicture
from nextstep.engine.scheduler import EngineLimits
from nextstep.pipeline import NextStepPipeline
from nextstep.serve.api.server import Server, build_app, server
from nextstep.serve.jobs.limits import ServiceLimits


@dataclass
class Running:
    """A service that listens."""

    url: str
    app: FastAPI
    server: Server

    def openai(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)


@contextmanager
def running(app: FastAPI) -> Iterator[Running]:
    made = server(app, "127.0.0.1", 0, 5)
    thread = threading.Thread(target=made.run)
    thread.start()
    until(lambda: made.started)
    port = made.servers[0].sockets[0].getsockname()[1]
    try:
        yield Running(f"http://127.0.0.1:{port}", app, made)
    finally:
        made.drain()
        made.should_exit = True
        thread.join()


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def service(tiny_pipeline: NextStepPipeline) -> Iterator[Running]:
    with running(build_app(tiny_pipeline, "tiny", None, preview_share=100)) as made:
        yield made


@pytest.fixture(scope="module")
def narrow(tiny_pipeline: NextStepPipeline) -> Iterator[Running]:
    """A service that makes one picture after the other."""
    with running(build_app(tiny_pipeline, "tiny", None, max_batch=1, preview_share=100)) as made:
        yield made


@pytest.fixture
def app_of(tiny_pipeline: NextStepPipeline) -> Callable[..., FastAPI]:
    def build(folder: Path | None = None, keys: Path | None = None, **limits: float) -> FastAPI:
        more = {name: limits.pop(name) for name in ("max_batch", "preview_share") if name in limits}
        return build_app(tiny_pipeline, "tiny", folder, keys, ServiceLimits(**limits), **more)

    return build


def engine_of(pipeline: NextStepPipeline, running: int = 64) -> Engine:
    return Engine(
        pipeline.model, pipeline.text_tokenizer, pipeline.image_tokenizer, pipeline.defaults,
        EngineLimits(running=running), model_hash=pipeline.model_hash,
    )  # fmt: skip


def alone(
    pipeline: NextStepPipeline, prompt: str, *images: Image.Image, n: int = 1, **asked: object
) -> list[GeneratedPicture]:
    """Pictures as the engine makes each of them alone."""
    made = []
    for index in range(n):
        engine = engine_of(pipeline)
        engine.submit(engine.request(prompt, images, index=index, **asked))  # type: ignore[arg-type]
        made += [event.picture for event in engine.run_until_idle() if event.picture]
    return made


def picture_bytes(form: str = "PNG", size: tuple[int, int] = (40, 40), **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(buffer, form, **options)
    return buffer.getvalue()


def data_uri(data: bytes, form: str = "png") -> str:
    return f"data:image/{form};base64," + base64.b64encode(data).decode()


def opened(b64: str) -> Image.Image:
    picture = Image.open(io.BytesIO(base64.b64decode(b64)))
    picture.load()
    return picture
