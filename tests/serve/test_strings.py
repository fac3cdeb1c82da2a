"""Every string field takes every string: answered, or refused in words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from nextstep.pipeline import NextStepPipeline
from nextstep.serve.api.server import build_app
from tests.serve.conftest import data_uri, picture_bytes

STRINGS = [
    "", " ", "<image>", "<image_1>", "<image_0>", "<image_99> <image>", "</image>", "<|endoftext|>",
    "<|begin_of_image|>", "a\0b", "\x1b[31mred", "\ud800", "a \udfff b", "\ud83d\ude00", "\u202e",
    "\ufeff", "é" * 50, "漢字", "🦊", "%s %(a)s {0} {a}", "../../etc/passwd", "a" * 600, "\n\r\n",
    "<image_" + "9" * 5000 + ">", "NaN", "null", "0" * 50, "128x128", "auto", "true",
]  # fmt: skip
SMALL = {"size": "16x16", "steps": 1, "seed": 1}
PICTURE = data_uri(picture_bytes(size=(16, 16)))
MESSAGE = {"role": "user", "content": "a red apple"}


@pytest.fixture(scope="module")
def client(tiny_pipeline: NextStepPipeline) -> Iterator[TestClient]:
    app = build_app(tiny_pipeline, "tiny", None)
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as made:
        yield made


def with_field(body: dict[str, Any], path: str, value: str) -> dict[str, Any]:
    """A copy of a body with one field set; numbers in a path are places in lists."""
    copy = json.loads(json.dumps(body))
    place = copy
    *before, last = path.split(".")
    for name in before:
        place = place[int(name) if name.isdigit() else name]
    place[int(last) if last.isdigit() else last] = value
    return copy


PLAIN = {"prompt": "a red apple", **SMALL}
EDIT = {**PLAIN, "images": [PICTURE]}
STORY = {"parts": [{"type": "text", "text": "a"}], "max_tokens": 2, "max_images": 0}
CHAT = {"messages": [MESSAGE], "max_tokens": 2, "modalities": ["text"]}
RESPONSE = {
    "input": [MESSAGE, {"role": "user", "content": [{"type": "input_text", "text": "a"}]}],
    "tools": [{"type": "image_generation", "size": "16x16"}],
    "steps": 1,
    "seed": 1,
}
WORDS = {"input": [MESSAGE, {"type": "image_generation_call", "id": "a"}], "max_output_tokens": 2}
CASES = [
    ("/v1/images/generations", PLAIN, field)
    for field in (
        "prompt", "model", "size", "positive_prompt", "negative_prompt", "schedule", "solver",
        "response_format", "output_format", "background", "quality", "user", "moderation", "style",
        "unknown",
    )
] + [
    ("/v1/responses", RESPONSE, field)
    for field in (
        "input", "input.0", "input.0.content", "input.1.content.0.text", "input.0.role", "model",
        "instructions", "previous_response_id", "tools.0.size", "tools.0.model", "tool_choice",
        "tools.0.type", "tools.0.action", "unknown",
    )
] + [
    ("/v1/responses", WORDS, field) for field in ("input.1.id", "input.1.result", "input.1.type")
] + [
    ("/jobs", EDIT, field)
    for field in ("prompt", "images.0", "mask", "positive_prompt", "negative_prompt", "size")
] + [
    ("/jobs", STORY, field) for field in ("parts.0.text", "parts.0.type", "parts.0", "prompt")
] + [
    ("/v1/chat/completions", CHAT, field)
    for field in (
        "messages.0.content", "messages.0.role", "messages.0.name", "model", "user",
        "modalities.0", "positive_prompt", "negative_prompt",
    )
]  # fmt: skip


def in_order(answer: Any) -> None:
    assert answer.status_code in (200, 202, 204, 400, 404, 409, 410, 413, 415, 422), answer.text
    if answer.status_code >= 400:
        told = answer.json()["error"]
        assert told["message"] and "internal" not in told["message"]


def finished_in_order(client: TestClient, answer: Any) -> None:
    in_order(answer)
    if answer.status_code == 202:
        job = answer.json()["id"]
        told = client.get(f"/jobs/{job}/events", params={"previews": False}).text
        assert "internal" not in told
        assert "event: failed" not in told or '"bad_input": true' in told
        in_order(client.get(f"/jobs/{job}"))


@pytest.mark.parametrize(("path", "body", "field"), CASES, ids=[f"{p}:{f}" for p, _, f in CASES])
def test_every_string_field(
    client: TestClient, path: str, body: dict[str, Any], field: str
) -> None:
    for value in STRINGS:
        data = json.dumps(with_field(body, field, value))
        answer = client.post(path, content=data, headers={"Content-Type": "application/json"})
        finished_in_order(client, answer)


@pytest.mark.parametrize("field", ["prompt", "model", "size", "user", "negative_prompt", "solver",
                                   "unknown"])  # fmt: skip
def test_every_text_of_a_form(client: TestClient, field: str) -> None:
    for value in STRINGS:
        form = {"prompt": "a", "size": "16x16", "steps": "1", field: value}
        data = {name: text.encode("utf-8", "surrogatepass") for name, text in form.items()}
        boundary = b"--y\r\n"
        parts = [
            boundary + f'Content-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + text
            for name, text in data.items()
        ]
        parts.append(
            boundary + b'Content-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
            + picture_bytes(size=(16, 16))
        )  # fmt: skip
        answer = client.post(
            "/v1/images/edits", content=b"\r\n".join(parts) + b"\r\n--y--\r\n",
            headers={"Content-Type": "multipart/form-data; boundary=y"},
        )  # fmt: skip
        in_order(answer)


@pytest.mark.parametrize("path", ["/jobs/{}", "/jobs/{}/events", "/v1/models/{}", "/studio/{}",
                                  "/jobs/{}/pictures/0", "/jobs?state={}", "/v1/responses/{}",
                                  "/{}"])  # fmt: skip
def test_every_string_in_an_address(client: TestClient, path: str) -> None:
    from urllib.parse import quote

    for value in STRINGS:
        address = path.format(quote(value.encode("utf-8", "surrogatepass")))
        in_order(client.get(address))


def test_image_tag_without_sources_is_plain_text(client: TestClient) -> None:
    """As it is for the command line."""
    for prompt in ("<image>", "a cat <image_1>"):
        answer = client.post("/v1/images/generations", json={**PLAIN, "prompt": prompt})
        assert answer.status_code == 200
        assert answer.json()["data"][0]["settings"]["prompt"] == prompt
    assert client.post("/v1/images/generations",
                       json={**PLAIN, "positive_prompt": "<image>"}).status_code == 200  # fmt: skip


def test_more_tags_than_sources_are_refused(client: TestClient) -> None:
    job = client.post("/jobs", json={**EDIT, "prompt": "put <image_1> into <image_2>"})
    assert job.status_code in (202, 400)
    if job.status_code == 202:
        told = client.get(f"/jobs/{job.json()['id']}/events").text
        assert '"bad_input": true' in told
