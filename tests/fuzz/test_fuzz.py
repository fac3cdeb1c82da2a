"""Damaged and invented inputs of every kind: refused in words, at once, without a traceback.

Each input is a mutation of a good one. Inputs are the same in every run; `--fuzz-full` takes as
many as a release is tried with.
"""

from __future__ import annotations

import io
import json
import random
import tarfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from nextstep.config import NextStepConfig
from nextstep.data.shards import ShardSet
from nextstep.engine.metadata import KEY, read_record
from nextstep.engine.reproduce import check_record
from nextstep.engine.settings import GenerationSettings
from nextstep.errors import NextStepError
from nextstep.pipeline import NextStepPipeline
from nextstep.recipe.load import load_recipe
from nextstep.serve.api.server import build_app
from nextstep.serve.api.uploads import safe_picture
from nextstep.serve.jobs.limits import ServiceLimits
from nextstep.serve.problems import ApiError
from tests.serve.conftest import data_uri, picture_bytes

SECONDS = 2
"""Processor time that any single input may take."""
RECIPES = Path(__file__).parents[2] / "recipes"
WORDS: list[Any] = [
    None, True, -1, 0, 1, 1.5, 10**9, 10**40, float("nan"), "", "x", "\0", "\ud800", "<image>", [],
    {}, [[]], {"a": 1}, "a" * 3000, "../x", "/etc/passwd", "1e999", -(2**63),
]  # fmt: skip


@pytest.fixture
def count(request: pytest.FixtureRequest) -> Callable[[int, int], range]:
    """How many inputs: few, or as many as a release is tried with."""
    full = request.config.getoption("--fuzz-full")
    return lambda few, many: range(many if full else few)


def in_time(number: int, work: Callable[[], Any], *allowed: type[Exception]) -> Any:
    """What the work gives; errors are of the allowed kinds, and have one line."""
    begun = time.thread_time()
    try:
        return work()
    except allowed as error:
        said = getattr(error, "message", str(error))
        assert said and "Traceback" not in said, number
        return None
    except Exception as error:
        raise AssertionError(f"input {number}: {error!r:.300}") from error
    finally:
        assert time.thread_time() - begun < SECONDS, f"input {number} took too long"


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Bytes with some flipped, cut, doubled or filled with junk."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 3, 10))):
        place, kind = rng.randrange(len(out) + 1), rng.randrange(6)
        if kind == 0 and out:
            out[place % len(out)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[place:]
        elif kind == 2:
            del out[place : place + rng.randrange(20)]
        elif kind == 3:
            out[place:place] = rng.randbytes(rng.randrange(20))
        elif kind == 4:
            out[place:place] = out[place : place + rng.randrange(200)]
        elif out:
            out[place : place + 4] = rng.choice(
                (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff")
            )
    return bytes(out)


def twisted(value: Any, rng: random.Random) -> Any:
    """Plain values of which one is another, missing, or more."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        out = dict(value)
        name = rng.choice(list(out))
        kind = rng.random()
        if kind < 0.7:
            out[name] = twisted(out[name], rng)
        elif kind < 0.8:
            del out[name]
        else:
            out[rng.choice(("unknown", "extends", name + "_", "\x1b", ""))] = rng.choice(WORDS)
        return out
    if isinstance(value, list) and value and rng.random() < 0.85:
        out_list = list(value)
        place = rng.randrange(len(out_list))
        out_list[place] = twisted(out_list[place], rng)
        return out_list * (1 if rng.random() < 0.9 else 40)
    return rng.choice(WORDS)


def test_pictures(count: Callable[[int, int], range]) -> None:
    limits = ServiceLimits(picture_pixels=10**6, decoded_pixels=10**6)
    noise = Image.effect_noise((40, 30), 90)
    good = []
    for form in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        for mode in ("RGB", "L"):
            buffer = io.BytesIO()
            noise.convert(mode).save(buffer, form)
            good.append(buffer.getvalue())
    for number in count(150, 10_000):
        rng = random.Random(number)
        data = mutated(rng.choice(good), rng)
        taken = in_time(number, lambda data=data: safe_picture(data, limits, "image"), ApiError)
        if taken is not None:
            Image.open(io.BytesIO(taken)).load()


@pytest.fixture(scope="module")
def client(tiny_pipeline: NextStepPipeline) -> Iterator[TestClient]:
    app = build_app(tiny_pipeline, "tiny", None, limits=ServiceLimits(deadline=5))
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as made:
        yield made


PICTURE = data_uri(picture_bytes(size=(16, 16)))
SMALL = {"size": "16x16", "steps": 1, "seed": 1}
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/images/generations", {"prompt": "a red apple", "n": 1, "model": "tiny", **SMALL}),
    ("/jobs", {"prompt": "a", "images": [PICTURE], "mask": PICTURE, "guidance": 2.0, **SMALL}),
    ("/jobs", {"parts": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {
        "url": PICTURE}}], "max_tokens": 2, "max_images": 0, "temperature": 0.5, "top_p": 0.5}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [
        {"type": "text", "text": "a"}]}], "max_tokens": 2, "modalities": ["text"], "seed": 1}),
    ("/v1/responses", {"input": [{"role": "user", "content": [
        {"type": "input_text", "text": "a red apple"},
        {"type": "input_image", "image_url": PICTURE}]}], "tool_choice": "auto", "seed": 1,
        "steps": 1, "stream": True, "tools": [{"type": "image_generation", "partial_images": 1,
        "input_image_mask": {"image_url": PICTURE}, "output_format": "webp"}]}),
    ("/v1/responses", {"input": [{"role": "user", "content": "a"}, {"type": "image_generation_call",
        "id": "ig_" + "0" * 32, "result": PICTURE.partition(",")[2]}], "instructions": "b",
        "max_output_tokens": 2, "temperature": 0.5, "top_p": 0.5, "seed": 1, "store": False,
        "previous_response_id": None}),
]  # fmt: skip


def test_http_bodies(client: TestClient, count: Callable[[int, int], range]) -> None:
    for number in count(60, 5_000):
        rng = random.Random(number)
        path, body = rng.choice(BODIES)
        data = json.dumps(twisted(body, rng)).encode()
        if rng.random() < 0.3:
            data = mutated(data, rng)
        answer = client.post(path, content=data, headers={"Content-Type": "application/json"})
        assert answer.status_code in (200, 202, 400, 404, 409, 413, 422, 429), (number, answer.text)
        if answer.status_code >= 400:
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}, number
        if answer.status_code == 202:
            job = answer.json()["id"]
            told = client.get(f"/jobs/{job}/events", params={"previews": False}).text
            assert "internal" not in told, (number, told)


def test_recipes(count: Callable[[int, int], range], tmp_path: Path) -> None:
    good = [path.read_text() for path in sorted(RECIPES.rglob("*.yaml"))]
    path = tmp_path / "recipe.yaml"
    for number in count(40, 3_000):
        rng = random.Random(number)
        text = rng.choice(good)
        if rng.random() < 0.5:
            data = mutated(text.encode(), rng)
        else:
            # What is no JSON cannot be YAML of ours either, but must be refused all the same.
            data = yaml.safe_dump(twisted(yaml.safe_load(text), rng)).encode("utf-8", "replace")
        path.write_bytes(data)
        in_time(number, lambda: load_recipe(path), NextStepError)


def test_model_configs(count: Callable[[int, int], range]) -> None:
    good = [NextStepConfig.named(size).to_dict() for size in ("nano", "14b")]
    good += [NextStepConfig.named("14b").to_released_dict()]
    for number in count(300, 3_000):
        rng = random.Random(number)
        raw = twisted(rng.choice(good), rng)
        if isinstance(raw, dict):
            in_time(number, lambda raw=raw: NextStepConfig.from_dict(raw), ValueError)


def test_recorded_settings(count: Callable[[int, int], range], tmp_path: Path) -> None:
    good = {
        "task": "generate", "prompt": "a", "seed": 1, "index": 0, "height": 32, "width": 32,
        **GenerationSettings().recorded(), "model": "x", "dtype": "float32", "threads": 1,
        "sources": ["abc"], "version": "0.1.0", "block_rows": 8,
    }  # fmt: skip
    path = tmp_path / "a.png"
    for number in count(80, 3_000):
        rng = random.Random(number)
        text = json.dumps(twisted(good, rng))
        if rng.random() < 0.3:
            text = mutated(text.encode(), rng).decode("utf-8", "replace")
        info = PngInfo()
        info.add_itxt(KEY, text)
        Image.new("RGB", (8, 8)).save(path, pnginfo=info)

        def read() -> None:
            check_record(read_record(path))

        in_time(number, read, NextStepError)


def test_shards(count: Callable[[int, int], range], tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for key in range(3):
            for name, data in ((f"{key}.png", picture_bytes()),
                               (f"{key}.json", b'{"caption": "a red apple"}')):  # fmt: skip
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    for number in count(25, 1_000):
        rng = random.Random(number)
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "0.tar").write_bytes(mutated(buffer.getvalue(), rng))

        shards = in_time(number, partial(ShardSet, folder, kind="image_text"), NextStepError)
        for place in range(len(shards) if shards is not None else 0):
            in_time(number, partial(shards.entry, place), NextStepError)
