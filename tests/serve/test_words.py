"""The service puts prompts into the model's words, warns about others, and tells its list."""

from __future__ import annotations

import io
from collections.abc import Iterator

import httpx2
import pytest
from PIL import Image

from nextstep.client import Client
from nextstep.engine.pretrained import Parts
from nextstep.pipeline import NextStepPipeline
from nextstep.serve.api.server import build_app
from nextstep.text.vocabulary import Vocabulary
from nextstep.world.words import pictured, world_vocabulary
from tests.serve.conftest import Running, data_uri, picture_bytes, running

TEAL = "this model was not taught the background 'teal'; nearest is 'green'"


@pytest.fixture(scope="module")
def words() -> Vocabulary:
    return pictured(world_vocabulary(notes={"story": "It was taught little of stories."}))


@pytest.fixture(scope="module")
def worded(tiny_parts: Parts, words: Vocabulary) -> Iterator[Running]:
    pipeline = NextStepPipeline(*tiny_parts._replace(vocabulary=words))
    with running(build_app(pipeline, "tiny", None, preview_share=100)) as made:
        yield made


def test_model_card_tells_what_it_draws(worded: Running, words: Vocabulary) -> None:
    card = httpx2.get(f"{worded.url}/v1/models").json()["data"][0]
    own = card["vocabulary"]
    assert list(own["names"]) == list(words.names)
    assert "cat" in own["names"]["cat face"]
    assert own["examples"] and "words" not in own
    sheet = httpx2.get(worded.url + own["sheet"]["url"])
    assert (sheet.headers["content-type"], sheet.content) == ("image/webp", words.sheet.webp)
    with Image.open(io.BytesIO(sheet.content)) as picture:
        assert picture.width == own["sheet"]["side"] * own["sheet"]["columns"]


def test_openai_pictures_come_with_warnings(worded: Running) -> None:
    made = worded.openai().images.generate(prompt="Cat, teal background", model="tiny")
    assert made.warnings == [TEAL]  # type: ignore[attr-defined]
    settings = made.data[0].settings  # type: ignore[index,attr-defined]
    assert settings["prompt"] == "cat face, teal background"
    assert settings["prompt_given"] == "Cat, teal background"
    edited = worded.openai().images.edit(
        image=("a.png", picture_bytes(), "image/png"), prompt="Make it FLAT style"
    )
    assert edited.warnings == []  # type: ignore[attr-defined]
    assert edited.data[0].settings["prompt"] == "make it flat style"  # type: ignore[index,attr-defined]


def test_jobs_and_forks_tell_warnings_too(worded: Running) -> None:
    with Client(worded.url) as client:
        updates = list(client.stream("Puppies on a TEAL background", previews=False))
        assert updates[0].warnings == (TEAL,)
        (job,) = client.jobs(1)
        assert (job.prompt, job.warnings) == ("dog face, teal background", (TEAL,))
        assert updates[-1].pictures[0].settings["prompt_given"] == "Puppies on a TEAL background"
        forked = client.fork(job.id, 1, prompt="Car")
        assert (forked.prompt, forked.warnings) == ("automobile", ())


def test_conversations_come_with_the_models_own_note(worded: Running) -> None:
    message = {"role": "user", "content": "Hello, once there was a cat."}
    asked = {"messages": [message], "max_tokens": 2}
    told = httpx2.post(f"{worded.url}/v1/chat/completions", json=asked, timeout=60).json()
    assert told["warnings"][0] == "It was taught little of stories."
    assert any("'Hello'" in one for one in told["warnings"])


def test_models_without_a_list_take_any_prompt(service: Running) -> None:
    card = httpx2.get(f"{service.url}/v1/models/tiny").json()
    assert card["vocabulary"] is None
    assert httpx2.get(f"{service.url}/v1/models/tiny/vocabulary.webp").status_code == 404
    made = service.openai().images.generate(prompt="Una Manzana", model="tiny")
    assert made.warnings == []  # type: ignore[attr-defined]
    assert made.data[0].settings["prompt"] == "Una Manzana"  # type: ignore[index,attr-defined]


@pytest.mark.parametrize("size", ["272x272", "4096x32", "64x80000"])
def test_sizes_beyond_the_model_are_refused_before_they_wait(service: Running, size: str) -> None:
    source = data_uri(picture_bytes())
    for path, body in (
        ("/v1/images/generations", {"prompt": "a", "size": size}),
        ("/jobs", {"prompt": "a", "size": size}),
        ("/jobs", {"prompt": "a", "size": size, "images": [source]}),
        ("/jobs", {"parts": [{"type": "text", "text": "a"}], "size": size}),
    ):
        answer = httpx2.post(service.url + path, json=body)
        told = answer.json()["error"]["message"]
        assert answer.status_code == 400, path
        assert "pixels are too large: this model draws up to 65,280 pixels in all" in told
    assert "up to 65,280 pixels" in httpx2.get(f"{service.url}/v1/models/tiny").json()["sizes"]
