"""The studio in a real browser: what a person does, from the first picture to a reload."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import pytest

from nextstep.engine.events import Event
from nextstep.engine.scheduler import Scheduler
from nextstep.pipeline import NextStepPipeline
from nextstep.serve.api.keys import add_key
from nextstep.serve.api.server import build_app
from tests.e2e.conftest import drag, jobs, press_for_new_job, shown
from tests.serve.conftest import Running, picture_bytes, running, until

if TYPE_CHECKING:
    from playwright.sync_api import Page

KEEP_PREVIEWS = """() => {
  window.previews = new Set();
  new MutationObserver(() => {
    for (const image of document.querySelectorAll('.stage > .growing img')) {
      if (image.src.startsWith('data:')) window.previews.add(image.src);
    }
  }).observe(document.body, {subtree: true, childList: true, attributes: true});
}"""


def test_a_person_draws_stops_forks_edits_and_comes_back(
    service: Running, open_studio: Callable[..., Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once, pause = Scheduler.step, 0.05

    def slowly(scheduler: Scheduler) -> list[Event]:
        """A page on a busy machine is slower than this model."""
        time.sleep(pause)
        return at_once(scheduler)

    monkeypatch.setattr(Scheduler, "step", slowly)
    page = open_studio(service.url)
    page.evaluate(KEEP_PREVIEWS)
    page.get_by_label("Prompt", exact=True).fill("a red apple")
    page.get_by_role("button", name="noto", exact=True).click()
    assert page.get_by_label("Prompt", exact=True).input_value() == "a red apple, noto style"
    press_for_new_job(page, "Generate")
    drawn = shown(page)
    assert page.evaluate("window.previews.size") >= 4
    page.wait_for_selector(".stage .made img[src^='blob:']")

    # A reload and a click are to come in the middle.
    pause = 0.2
    page.get_by_text("Guidance and steps").click()
    page.get_by_label("Steps a token").fill("10")
    page.get_by_label("8", exact=True).check()
    page.get_by_label("Seed", exact=True).fill("7")
    press_for_new_job(page, "Generate")
    until(lambda: "left" in page.locator(".standing").inner_text())  # and no more of the first one
    until(lambda: page.evaluate("document.querySelector('.stage > .growing').dataset.row >= 2"))
    page.reload()
    until(lambda: page.evaluate("document.querySelector('.stage > .growing')?.dataset.row >= 2"))
    page.get_by_role("button", name="Stop and keep").click()
    stopped = shown(page)
    monkeypatch.undo()
    assert "rows kept" in page.locator(".standing p").first.inner_text()
    assert httpx2.get(f"{service.url}/jobs/{stopped}").json()["seed"] == 7

    page.locator(f".card >> nth={1}").click()
    assert shown(page) == drawn
    page.get_by_role("button", name="Go on from a row").click()
    page.get_by_label("Rows kept").fill("3")
    page.get_by_label("Prompt from there on").fill("two cats")
    forked = press_for_new_job(page, "Go on after 3 rows")
    shown(page)
    told = httpx2.get(f"{service.url}/jobs/{forked}").json()
    assert told["parent"] == {"kind": "fork", "job": drawn, "picture": 0, "row": 3}
    assert told["prompt"] == "two cats"

    page.locator(".actions").get_by_role("button", name="Edit").click()
    page.wait_for_selector(".mask-layer")
    until(lambda: page.evaluate("document.querySelector('.mask-layer').width === 128"))
    drag(page, ".mask-layer", (0.2, 0.2), (0.6, 0.3))
    page.get_by_label("Instruction").fill("make it blue")
    edited = press_for_new_job(page, "Change it")
    shown(page)
    told = httpx2.get(f"{service.url}/jobs/{edited}").json()
    assert told["task"] == "edit" and len(told["sources"]) == 1 and told["mask"]

    page.get_by_role("tab", name="Create").click()
    page.get_by_label("Prompt", exact=True).fill("kept for later")
    page.get_by_role("tab", name="Edit").click()
    page.reload()
    page.wait_for_selector(".card")
    assert page.locator(".card").count() == 4 == len(jobs(service.url))
    assert shown(page) == edited
    assert page.get_by_label("Instruction").input_value() == "make it blue"
    assert page.get_by_role("button", name="Clear mask").is_enabled()
    page.get_by_role("tab", name="Create").click()
    assert page.get_by_label("Prompt", exact=True).input_value() == "kept for later"


def test_tokens_are_looked_at_and_drawn_anew_with_keys_alone(
    service: Running, open_studio: Callable[..., Page]
) -> None:
    page = open_studio(service.url)
    page.get_by_label("Prompt", exact=True).fill("two cats")
    page.keyboard.press("Control+Enter")
    first = shown(page)
    page.get_by_role("button", name="Token uncertainty").press("Enter")
    page.wait_for_selector(".heat")
    for key in ("Tab", "ArrowRight", "ArrowDown", "ArrowRight", " ", "ArrowRight", " "):
        page.locator(".heat").focus() if key == "Tab" else page.keyboard.press(key)
    assert "Row 2, column 3" in page.locator(".reading").inner_text()
    made = press_for_new_job(page, "Draw 2 tokens anew")
    shown(page)
    assert httpx2.get(f"{service.url}/jobs/{made}").json()["parent"]["job"] == first
    page.get_by_role("button", name="Run again").wait_for(state="detached")
    page.locator(f".card[aria-label*='two cats'] >> nth={1}").click()
    again = press_for_new_job(page, "Run again")
    shown(page)
    one, other = (
        httpx2.get(f"{service.url}/jobs/{job}/pictures/0").content for job in (first, again)
    )
    assert one == other


def test_stories_worlds_and_questions(service: Running, open_studio: Callable[..., Page]) -> None:
    page = open_studio(service.url)
    page.get_by_role("tab", name="Read").click()
    page.set_input_files("input[type=file]", {
        "name": "a.png", "mimeType": "image/png", "buffer": picture_bytes(size=(64, 32)),
    })  # fmt: skip
    page.get_by_label("Question").fill("two cats")
    page.get_by_label("Question").press("Enter")
    page.locator(".answers dd").wait_for()
    until(lambda: page.locator(".answers dd").inner_text() != "Reading…")
    assert page.locator(".answers dt").inner_text() == "two cats"

    page.get_by_role("tab", name="World").click()
    page.set_input_files("input[type=file]", {
        "name": "a.png", "mimeType": "image/png", "buffer": picture_bytes(size=(64, 64)),
    })  # fmt: skip
    page.get_by_role("button", name="Move left").focus()
    page.keyboard.press("ArrowRight")
    page.locator(".strip-one").nth(1).wait_for()
    assert page.locator(".stage-title").inner_text() == "the cat moves right"

    page.get_by_role("tab", name="Story").click()
    page.get_by_label("Your words").fill("a red apple")
    page.get_by_role("button", name="Go on").click()
    page.get_by_role("button", name="New story").wait_for()
    assert page.locator(".story-part").first.inner_text() == "a red apple"
    page.reload()
    assert page.locator(".story-part").first.inner_text() == "a red apple"
    # Any of them is taken up again from the history.
    page.get_by_role("button", name="World, the cat moves right").click()
    page.locator(".strip-one").nth(1).wait_for()


def test_errors_are_reported_in_words(service: Running, open_studio: Callable[..., Page]) -> None:
    page = open_studio(service.url)
    page.get_by_role("button", name="Generate").click()
    assert "what the picture should show" in page.get_by_role("alert").inner_text()
    page.get_by_label("Prompt", exact=True).fill("a")
    page.route("**/jobs", lambda route: route.abort())
    page.get_by_role("button", name="Generate").click()
    page.get_by_text("does not answer").wait_for()
    page.unroute("**/jobs")
    page.get_by_role("tab", name="Edit").click()
    page.set_input_files("input[type=file]", {
        "name": "a.png", "mimeType": "image/png", "buffer": b"no picture",
    })  # fmt: skip
    page.get_by_text("not a picture that the browser can read").wait_for()


def test_a_key_is_asked_for(
    pipeline: NextStepPipeline, open_studio: Callable[..., Page], tmp_path: Path
) -> None:
    keys = tmp_path / "keys.txt"
    key = add_key(keys, "ann")
    with running(build_app(pipeline, "tiny", None, keys, preview_share=100)) as made:
        page = open_studio(made.url, ready="dialog[open]")
        page.get_by_label("API key", exact=True).fill("wrong")
        page.get_by_role("button", name="Use this key").click()
        page.get_by_text("not known here").wait_for()
        page.get_by_label("API key", exact=True).fill(key)
        page.get_by_role("button", name="Use this key").click()
        # Until it closes, what is typed goes to the dialog.
        page.wait_for_selector("dialog[open]", state="detached")
        page.get_by_label("Prompt", exact=True).fill("a red apple")
        page.get_by_role("button", name="Generate").click()
        shown(page)
        page.wait_for_selector(".stage .made img[src^='blob:']")
        page.reload()
        page.wait_for_selector(".card img")
        assert page.evaluate("Object.values({...localStorage}).join()").find(key) < 0


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_nothing_stands_in_anybodys_way(
    service: Running, open_studio: Callable[..., Page], width: int, dark: bool
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe").Axe()
    page = open_studio(service.url, width, dark)

    def check(where: str) -> None:
        found = axe.run(page).response["violations"]
        assert not found, (where, [(one["id"], one["nodes"][0]["html"]) for one in found])
        assert page.evaluate("document.documentElement.scrollWidth") <= width, where

    check("an empty page")
    page.get_by_label("Prompt", exact=True).fill("a red apple")
    page.get_by_role("button", name="Generate").click()
    shown(page)
    check("a picture")
    page.get_by_role("button", name="Go on from a row").click()
    check("fork")
    page.get_by_role("button", name="Token uncertainty").click()
    page.wait_for_selector(".heat")
    check("microscope")
    page.locator(".actions").get_by_role("button", name="Edit").click()
    page.wait_for_selector(".mask-layer")
    until(lambda: page.evaluate("document.querySelector('.mask-layer').width === 128"))
    page.locator(".mask-layer").focus()
    for key in ("ArrowUp", " "):
        page.keyboard.press(key)
    until(page.get_by_role("button", name="Clear mask").is_enabled)
    check("edit")
    for tab in ("Story", "World", "Read"):
        page.get_by_role("tab", name=tab).click()
        check(tab)
