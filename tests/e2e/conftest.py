"""A browser, a service around a tiny model, and what a person does with both."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from nextstep.engine.pretrained import Parts, save_parts
from nextstep.engine.settings import ModelDefaults
from nextstep.pipeline import NextStepPipeline
from nextstep.serve.api.server import build_app
from tests.serve.conftest import Running, running

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no browser to try the studio in: apt-get install chromium")
    with api.sync_playwright() as playwright:
        # Chromium's own sandbox cannot be had by root, as whom containers run tests.
        made = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture(scope="module")
def pipeline(tiny_parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> NextStepPipeline:
    """The tiny random model, with pictures of eight rows."""
    own = tiny_parts.defaults
    defaults = ModelDefaults(128, 128, own.generate, own.edit)
    folder = tmp_path_factory.mktemp("models") / "tall"
    save_parts(tiny_parts._replace(defaults=defaults), folder)
    return NextStepPipeline.from_pretrained(folder)


@pytest.fixture(scope="module")
def service(pipeline: NextStepPipeline) -> Iterator[Running]:
    with running(build_app(pipeline, "tiny", None, preview_share=100)) as made:
        yield made


@pytest.fixture
def open_studio(browser: Browser) -> Iterator[Callable[..., Page]]:
    contexts, faults = [], list[str]()

    def open_page(
        url: str, width: int = 1280, dark: bool = False, ready: str = ".controls"
    ) -> Page:
        size: Any = {"width": width, "height": 900}
        contexts.append(
            browser.new_context(viewport=size, color_scheme="dark" if dark else "light")
        )
        page = contexts[-1].new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda asked: faults.append(asked.url) if away(asked.url) else None)
        page.on("console", lambda said: faults.append(said.text) if policy(said.text) else None)

        def away(address: str) -> bool:
            return not address.startswith((url, "data:", "blob:"))

        page.goto(url)
        page.wait_for_selector(ready)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults


def policy(said: str) -> bool:
    return "Content Security Policy" in said


def jobs(url: str) -> list[dict[str, Any]]:
    return httpx2.get(f"{url}/jobs").json()["data"]


def drag(page: Page, selector: str, start: tuple[float, float], end: tuple[float, float]) -> None:
    """With the pointer, in shares of the element's box."""
    box = page.locator(selector).bounding_box()
    assert box is not None
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, end)]
    page.mouse.move(*places[0])
    page.mouse.down()
    page.mouse.move(*places[1], steps=6)
    page.mouse.up()


def shown(page: Page, state: str = "done") -> str:
    """The id of the job on the stage, once it is in a state."""
    page.wait_for_selector(f".stage[data-state={state}]")
    return page.get_attribute(".stage", "data-job") or ""


def press_for_new_job(page: Page, button: str) -> str:
    before = page.locator(".stage").get_attribute("data-job") or ""
    page.get_by_role("button", name=button).click()
    page.wait_for_selector(f".stage[data-job]:not([data-job='{before}'])")
    return page.get_attribute(".stage", "data-job") or ""
