"""The studio with a model that lists what it draws."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import httpx2
import pytest

from nextstep.engine.pretrained import Parts
from nextstep.pipeline import NextStepPipeline
from nextstep.serve.api.server import build_app
from nextstep.world.words import pictured, world_vocabulary
from tests.e2e.conftest import press_for_new_job, shown
from tests.serve.conftest import Running, running, until

if TYPE_CHECKING:
    from playwright.sync_api import Page

DROP = """([name, bytes]) => {
  const file = new File([new Uint8Array(bytes)], name, {type: 'image/png'});
  const transfer = new DataTransfer();
  transfer.items.add(file);
  document.querySelector('.stage').dispatchEvent(
    new DragEvent('drop', {bubbles: true, cancelable: true, dataTransfer: transfer}));
}"""


@pytest.fixture(scope="module")
def service(tiny_parts: Parts) -> Iterator[Running]:
    words = pictured(world_vocabulary(notes={"create": "It draws one thing."}))
    pipeline = NextStepPipeline(*tiny_parts._replace(vocabulary=words))
    with running(build_app(pipeline, "tiny", None, preview_share=100)) as made:
        yield made


def test_objects_are_picked_by_name_and_unknown_words_are_reported(
    service: Running, open_studio: Callable[..., Page]
) -> None:
    page = open_studio(service.url)
    assert "It draws one thing." in page.locator(".empty-words").inner_text()
    page.get_by_text("What it draws").click()
    page.get_by_label("Search").fill("puppy")
    page.get_by_role("button", name="dog face", exact=True).click()
    page.get_by_role("button", name="flat", exact=True).click()
    prompt = page.get_by_label("Prompt", exact=True)
    assert prompt.input_value() == "dog face, flat style"
    until(lambda: "blob:" in page.locator(".name i").first.get_attribute("style"))
    prompt.fill("Cats, teal background")
    made = press_for_new_job(page, "Generate")
    shown(page)
    assert page.locator(".stage-title").inner_text() == "cat face, teal background"
    assert "“Cats, teal background”" in page.locator(".stage").inner_text()
    assert "nearest is 'green'" in page.locator(".warnings").inner_text()

    # A picture of ours that is dropped beside everything gives its settings back.
    png = httpx2.get(f"{service.url}/jobs/{made}/pictures/0").content
    seed = httpx2.get(f"{service.url}/jobs/{made}").json()["seed"]
    prompt.fill("something else")
    page.evaluate(DROP, ["a.png", list(png)])
    until(lambda: prompt.input_value() == "cat face, teal background")
    assert page.get_by_label("Seed", exact=True).input_value() == str(seed)

    page.get_by_role("button", name="Remove from the history").click()
    assert page.locator(".card").count() == 0
    page.get_by_role("button", name="Undo").click()
    assert page.locator(".card").count() == 1
    page.get_by_label("Search the history").fill("zebra")
    assert page.locator(".card").count() == 0
    page.get_by_label("Search the history").fill("cat")
    assert page.locator(".card").count() == 1


def test_an_edit_draws_a_line_that_was_given(
    service: Running, open_studio: Callable[..., Page]
) -> None:
    page = open_studio(service.url)
    page.get_by_label("Prompt", exact=True).fill("fox")
    press_for_new_job(page, "Generate")
    shown(page)
    page.locator(".actions").get_by_role("button", name="Edit").click()
    page.get_by_label("Instruction").fill("Make it FLAT style")
    page.get_by_label("Say first what").check()
    page.get_by_label("What it will show").fill("fox, flat style")
    page.get_by_text("Guidance and steps").click()
    page.get_by_label("Image guidance").fill("3")
    edited = press_for_new_job(page, "Change it")
    shown(page)
    job = httpx2.get(f"{service.url}/jobs/{edited}").json()
    assert job["prompt"] == "make it flat style\nfox, flat style"
    assert (job["settings"]["reasoning"], job["settings"]["image_guidance"]) == (False, 3)
    assert "fox, flat style" in page.locator(".facts").inner_text()
    page.get_by_role("button", name="Change what it said first").click()
    assert page.get_by_label("What it will show").input_value() == "fox, flat style"


def test_the_http_interface_has_a_page(service: Running, open_studio: Callable[..., Page]) -> None:
    page = open_studio(service.url)
    page.get_by_role("link", name="API").click()
    page.wait_for_selector(".operation")
    told = page.locator(".docs").inner_text()
    document = httpx2.get(f"{service.url}/openapi.json").json()
    assert all(path in told for path in document["paths"])
    page.locator(".operation summary").first.click()
    example = json.loads(page.locator(".operation pre").first.inner_text())
    assert "prompt" in example
