"""What OpenAI's and other clients send: taken as they mean it, or refused in words."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from nextstep.cli.serve import served_name
from nextstep.errors import NextStepError
from nextstep.pipeline import NextStepPipeline
from nextstep.serve.api.keys import add_key
from nextstep.serve.api.server import build_app
from nextstep.serve.jobs.limits import checked_origin, checked_root
from tests.serve.conftest import Running, opened, picture_bytes, running

PAGE = "https://example.org"


@pytest.fixture(scope="module")
def open_to_pages(tiny_pipeline: NextStepPipeline) -> Iterator[Running]:
    app = build_app(
        tiny_pipeline, "tiny", None, aliases=["gpt-image-1"], origins=[PAGE], preview_share=100
    )
    with running(app) as made:
        yield made


def chat(service: Running, **fields: object) -> httpx2.Response:
    body = {"messages": [{"role": "user", "content": "two cats"}], "modalities": ["text"],
            "max_tokens": 24, **fields}  # fmt: skip
    return httpx2.post(f"{service.url}/v1/chat/completions", json=body, timeout=60)


def streamed(answer: httpx2.Response) -> list[dict]:
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == '"[DONE]"' or lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_answers_end_before_a_stop_text(service: Running) -> None:
    whole = chat(service).json()["choices"][0]["message"]["content"]
    assert len(whole) > 3
    stop = whole[2:4]
    cut = whole[: whole.index(stop)]
    for given in (stop, ["never to be found", stop]):
        told = chat(service, stop=given).json()["choices"][0]["message"]["content"]
        assert told == cut
    parts = streamed(chat(service, stop=stop, stream=True))
    said = "".join(part["choices"][0]["delta"].get("content", "") for part in parts)
    assert said == cut


def test_streams_tell_usage_when_asked(service: Running) -> None:
    *_, last = streamed(chat(service, stream=True, stream_options={"include_usage": True}))
    assert last["choices"] == [] and last["usage"]["completion_tokens"] > 0
    assert last["usage"] == chat(service).json()["usage"]
    assert all("usage" not in part for part in streamed(chat(service, stream=True)))


@pytest.mark.parametrize("field", [
    {"store": True}, {"metadata": {"a": "b"}}, {"service_tier": "auto"}, {"logprobs": False},
    {"frequency_penalty": 0}, {"presence_penalty": 0.0}, {"tools": []}, {"tool_choice": "none"},
    {"response_format": {"type": "text"}}, {"logit_bias": {}}, {"user": "ann"},
])  # fmt: skip
def test_fields_that_change_nothing_are_ignored(service: Running, field: dict) -> None:
    assert chat(service, **field).status_code == 200


@pytest.mark.parametrize("field", [
    {"frequency_penalty": 1}, {"tools": [{"type": "function"}]}, {"logprobs": True},
    {"response_format": {"type": "json_object"}}, {"colour": 1}, {"n": 2}, {"stop": []},
])  # fmt: skip
def test_fields_that_would_change_the_answer_are_refused(service: Running, field: dict) -> None:
    answer = chat(service, **field)
    assert answer.status_code == 400
    assert next(iter(field)) in answer.json()["error"]["message"]


def test_other_names_of_settings_mean_the_same(service: Running) -> None:
    client = service.openai()
    ask = lambda **more: client.images.generate(  # noqa: E731
        prompt="a red apple", model="tiny", extra_body={"seed": 1, **more}
    ).data[0].b64_json  # fmt: skip
    assert ask(num_inference_steps=3, guidance_scale=1.5) == ask(steps=3, guidance=1.5)
    body = {"prompt": "a", "steps": 3, "num_inference_steps": 3}
    told = httpx2.post(f"{service.url}/jobs", json=body).json()["error"]["message"]
    assert "'num_inference_steps' and 'steps' are the same; give one of them" in told


def test_bodies_in_old_words_make_the_same_pictures(service: Running) -> None:
    def settings(**fields: Any) -> dict[str, Any]:
        body = {"prompt": "a red apple", "seed": 1, "solver": "ab2", "steps": 3, **fields}
        answer = httpx2.post(f"{service.url}/v1/images/generations", json=body)
        assert answer.status_code == 200, answer.text
        (made,) = answer.json()["data"]
        return made

    old = settings(lookahead=2, tolerance=0.3, last_steps=2, think=False)
    new = settings(jacobi_window=2, jacobi_tolerance=0.3, final_token_steps=2, reasoning=False)
    assert old == new
    assert new["settings"]["jacobi_window"] == 2 and "lookahead" not in new["settings"]
    body = {"prompt": "a", "think": True, "reasoning": True}
    told = httpx2.post(f"{service.url}/jobs", json=body).json()["error"]["message"]
    assert "'think' and 'reasoning' are the same; give one of them" in told


def test_pictures_come_as_addresses_when_asked(service: Running) -> None:
    made = service.openai().images.generate(
        prompt="a red apple", model="tiny", response_format="url", extra_body={"seed": 4}
    ).data[0]  # fmt: skip
    assert made.b64_json is None
    assert made.url.startswith(service.url)
    again = service.openai().images.generate(
        prompt="a red apple", model="tiny", extra_body={"seed": 4}
    ).data[0]  # fmt: skip
    with Image.open(io.BytesIO(httpx2.get(made.url).content)) as picture:
        assert picture.tobytes() == opened(again.b64_json).tobytes()


def test_a_source_with_a_hole_is_its_own_mask(service: Running) -> None:
    source = Image.new("RGBA", (32, 32), (200, 30, 30, 255))
    source.paste((0, 0, 0, 0), (0, 0, 16, 16))
    file = io.BytesIO()
    source.save(file, "PNG")
    made = service.openai().images.edit(
        image=("a.png", file.getvalue(), "image/png"), prompt="make it blue"
    )
    pixels = np.asarray(opened(made.data[0].b64_json))
    assert (pixels[16:] == (200, 30, 30)).all() and (pixels[:, 16:] == (200, 30, 30)).all()
    assert not (pixels[:16, :16] == (200, 30, 30)).all()
    assert made.data[0].settings["mask"]  # type: ignore[attr-defined]
    assert "no mask was sent" in made.warnings[-1]  # type: ignore[attr-defined]
    whole = service.openai().images.edit(
        image=("a.png", picture_bytes(), "image/png"), prompt="make it blue"
    )
    assert "mask" not in whole.data[0].settings  # type: ignore[attr-defined]


def test_other_names_of_the_model_are_taken(open_to_pages: Running, service: Running) -> None:
    assert open_to_pages.openai().images.generate(prompt="a", model="gpt-image-1").data
    assert open_to_pages.openai().models.retrieve("gpt-image-1").id == "tiny"
    body = {"prompt": "a", "model": "gpt-image-1"}
    answer = httpx2.post(f"{service.url}/v1/images/generations", json=body)
    assert answer.status_code == 404


def test_pages_of_allowed_origins_may_ask(open_to_pages: Running) -> None:
    url = f"{open_to_pages.url}/v1/models"
    ask = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    before = httpx2.request("OPTIONS", url, headers={"Origin": PAGE, **ask})
    assert before.status_code == 204
    assert before.headers["access-control-allow-origin"] == PAGE
    assert "Authorization" in before.headers["access-control-allow-headers"]
    answer = httpx2.get(url, headers={"Origin": PAGE})
    assert (answer.status_code, answer.headers["vary"]) == (200, "Origin")
    assert answer.headers["access-control-allow-origin"] == PAGE
    other = httpx2.get(url, headers={"Origin": "https://elsewhere.example"})
    assert other.status_code == 403
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_bodies_of_other_types_get_a_sentence(service: Running, kind: str) -> None:
    for path in ("/jobs", "/v1/images/generations", "/v1/chat/completions"):
        answer = httpx2.post(service.url + path, content=b'{"prompt": "a"}',
                             headers={"Content-Type": kind} if kind else {})  # fmt: skip
        assert answer.status_code == 415
        assert "'Content-Type: application/json'" in answer.json()["error"]["message"]


def test_regular_expressions_are_reported_in_words(service: Running) -> None:
    told = httpx2.get(f"{service.url}/jobs/nothing").json()["error"]["message"]
    assert "has 32 digits and letters" in told and "^" not in told
    body = {"prompt": "a", "size": "large"}
    told = httpx2.post(f"{service.url}/jobs", json=body).json()["error"]["message"]
    assert "WIDTHxHEIGHT in pixels, such as 128x128" in told and "^" not in told


def test_model_card_tells_the_real_settings(
    service: Running, tiny_pipeline: NextStepPipeline
) -> None:
    card = httpx2.get(f"{service.url}/v1/models/tiny").json()
    own = tiny_pipeline.defaults.generate
    assert card["defaults"]["generate"]["steps"] == own.solver_settings.steps
    assert card["adapter"] == {}


def test_adapter_changes_the_served_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my-model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert served_name("nano", None) == "nano"
    assert served_name("my-model", None) == served_name("./my-model/", None) == "my-model"
    assert served_name("nano", Path("runs/my-style/adapter")) == "nano+my-style"
    assert served_name("nano", Path("runs/owl")) == "nano+owl"


@pytest.mark.parametrize("origin", ["example.org", "https://a/b", "*", "https://"])
def test_bad_origins_are_refused(origin: str) -> None:
    with pytest.raises(NextStepError, match="--cors-origin"):
        checked_origin(origin)


@pytest.mark.parametrize("path", ["pictures", "/pictures/", "/a b", "//"])
def test_bad_root_paths_are_refused(path: str) -> None:
    with pytest.raises(NextStepError, match="--root-path"):
        checked_root(path)


def test_service_under_a_path_opens_the_same_pages(
    app_of: Callable[..., FastAPI], tmp_path: Path
) -> None:
    """uvicorn puts the path of the proxy before that of the request."""
    key = add_key(tmp_path / "keys.txt", "ann")
    app = app_of(keys=tmp_path / "keys.txt")
    with TestClient(app, base_url="http://localhost", root_path="/pictures") as client:
        for page in ("/", "/health", "/ready", "/docs", "/studio/app.js"):
            assert client.get(f"/pictures{page}").status_code == 200, page
        assert client.get("/pictures/jobs").status_code == 401
        known = {"Authorization": f"Bearer {key}"}
        assert client.get("/pictures/jobs", headers=known).status_code == 200
        refused = client.put("/pictures/jobs", headers=known)
        assert refused.status_code == 405 and refused.headers["allow"] == "GET, POST"
        assert client.post("/pictures/health", content=b"x" * 2000).status_code == 413
        body = {"prompt": "a", "response_format": "url", "steps": 1}
        made = client.post("/pictures/v1/images/generations", json=body, headers=known).json()
        assert made["data"][0]["url"].startswith("http://localhost/pictures/jobs/")


def test_app_can_be_built_without_pages(app_of: Callable[..., FastAPI], tmp_path: Path) -> None:
    assert app_of(tmp_path / "state").state.service.aliases == frozenset()


@pytest.mark.parametrize(("given", "why"), [
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop: List should have at most 4 items"),
    ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "messages.0.content"),
])  # fmt: skip
def test_an_error_names_no_branch_of_the_schema(
    service: Running, given: dict[str, Any], why: str
) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], **given}
    told = httpx2.post(f"{service.url}/v1/chat/completions", json=body)
    message = told.json()["error"]["message"]
    assert told.status_code == 400 and message.startswith(why), message
    assert "constrained" not in message and "valid string" not in message
