"""The studio's history in a real browser: several pictures at once, marks, reasons, masks."""

from __future__ import annotations

import base64
import io
import zipfile
from collections.abc import Callable
from typing import TYPE_CHECKING

import httpx2
import numpy as np
import pytest
from PIL import Image

from tests.e2e.conftest import drag, jobs, press_for_new_job, shown
from tests.serve.conftest import Running, until

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Page

STUDIO = {"X-Client": "studio"}
NAMELESS = """() => [...document.querySelectorAll('button, input, select, textarea, canvas, a')]
  .filter((one) => one.checkVisibility() && !one.innerText?.trim() && !one.labels?.length
    && !one.getAttribute('aria-label') && !one.title)
  .map((one) => one.outerHTML.slice(0, 200))"""
PAINTED = """() => {
  const field = document.querySelector('.mask-layer');
  const { data } = field.getContext('2d').getImageData(0, 0, field.width, field.height);
  let painted = 0;
  for (let i = 3; i < data.length; i += 4) painted += data[i] > 127;
  return painted;
}"""


def made(url: str, prompt: str, headers: dict[str, str] | None = None, **more: object) -> str:
    body = {"prompt": prompt, "size": "32x32", "steps": 2, **more}
    job = httpx2.post(f"{url}/jobs", json=body, headers=headers, timeout=60).json()["id"]
    httpx2.get(f"{url}/jobs/{job}/events?previews=false", timeout=60)
    return job


def forget_all(url: str) -> None:
    for job in jobs(url):
        httpx2.delete(f"{url}/jobs/{job['id']}")


def test_several_are_compared_saved_and_removed_together(
    service: Running,
    open_studio: Callable[..., Page],
    tmp_path: Path,
) -> None:
    forget_all(service.url)
    one = made(service.url, "one apple", STUDIO, seed=1)
    two = made(service.url, "two cats", STUDIO, seed=2, n=2)
    made(service.url, "left alone", STUDIO)
    page = open_studio(service.url)
    page.get_by_role("button", name="Choose several").click()
    assert page.get_by_role("button", name="Compare").is_disabled()
    for name in ("one apple", "two cats"):
        page.locator(f".card[aria-label^='{name}']").click()
    assert "2 chosen, 3 pictures" in page.locator(".chosen-bar").inner_text()

    page.get_by_role("button", name="Compare").click()
    until(lambda: page.locator("dialog.compare .compared img").count() == 3)
    told = page.locator("dialog.compare figcaption").all_inner_texts()
    assert "Seed 1" in told[0] and "Seed 2" in told[1] and "Picture 1" in told[2]
    assert not any("Steps" in text for text in told), "what is the same need not be said"
    page.keyboard.press("Escape")
    page.locator("dialog.compare").wait_for(state="detached")

    with page.expect_download() as waited:
        page.locator(".chosen-bar").get_by_role("button", name="Save").click()
    waited.value.save_as(tmp_path / "all.zip")
    with zipfile.ZipFile(tmp_path / "all.zip") as file:
        assert file.testzip() is None
        found = {name: file.read(name) for name in file.namelist()}
    assert list(found) == ["one-apple.png", "two-cats-1.png", "two-cats-2.png"]
    stored = [httpx2.get(f"{service.url}/jobs/{job}/pictures/{index}").content
              for job, index in ((one, 0), (two, 0), (two, 1))]  # fmt: skip
    assert list(found.values()) == stored

    page.get_by_role("button", name="Remove the chosen ones").click()
    assert page.locator(".card").count() == 1
    page.get_by_role("button", name="Undo").click()
    until(lambda: page.locator(".card").count() == 3)
    assert len(jobs(service.url)) == 3


def test_two_of_one_size_are_laid_over_each_other(
    service: Running,
    open_studio: Callable[..., Page],
) -> None:
    forget_all(service.url)
    for seed in (1, 2):
        made(service.url, f"apple {seed}", STUDIO, seed=seed)
    page = open_studio(service.url)
    page.get_by_role("button", name="Choose several").click()
    for card in page.locator(".card").all():
        card.click()
    page.get_by_role("button", name="Compare").click()
    page.locator(".swipe img").nth(1).wait_for()
    page.get_by_label("Border between").fill("20")
    until(lambda: "20%" in page.locator(".swipe").get_attribute("style"))


def test_jobs_of_the_api_are_marked(
    service: Running,
    open_studio: Callable[..., Page],
) -> None:
    forget_all(service.url)
    made(service.url, "asked for here", STUDIO)
    made(service.url, "asked for elsewhere")
    service.openai().images.generate(prompt="by a client", size="32x32", model="tiny")
    page = open_studio(service.url)
    label = {name: page.locator(f".card[aria-label^='{name}']").get_attribute("aria-label")
             for name in ("asked for here", "asked for elsewhere", "by a client")}  # fmt: skip
    assert "API" not in label["asked for here"]
    assert "through the API, /jobs" in label["asked for elsewhere"]
    assert "through the API, /images" in label["by a client"]
    assert page.locator(".badge.api").count() == 2
    page.get_by_label("Prompt", exact=True).fill("drawn now")
    job = press_for_new_job(page, "Generate")
    shown(page)
    assert httpx2.get(f"{service.url}/jobs/{job}").json()["endpoint"] == "studio"


def test_failures_say_why(
    service: Running,
    open_studio: Callable[..., Page],
) -> None:
    forget_all(service.url)
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(file, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    failed = made(service.url, "put <image_1> into <image_2>", STUDIO, images=[uri])
    reason = httpx2.get(f"{service.url}/jobs/{failed}").json()["error"]
    gone = made(service.url, "a picture that is lost", STUDIO)
    store = service.app.state.service.jobs.store
    store.files.remove(store.get(gone).parts[0]["file"])
    page = open_studio(service.url)
    card = page.locator(".card.failed")
    assert reason in card.get_attribute("aria-label") and reason in card.get_attribute("title")
    card.click()
    assert reason in page.locator(".standing.failed").inner_text()
    page.get_by_role("tab", name="Create").click()
    page.locator(".card[aria-label^='a picture that is lost']").click()
    page.locator(".stage .gone").wait_for()
    assert len(page.locator(".stage .gone").inner_text()) > 10


def test_painted_mask_and_growing_picture_outlive_a_reload(
    service: Running,
    open_studio: Callable[..., Page],
) -> None:
    forget_all(service.url)
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    page = open_studio(service.url)
    page.get_by_role("tab", name="Edit").click()
    page.set_input_files("input[type=file]", {
        "name": "a.png", "mimeType": "image/png", "buffer": file.getvalue(),
    })  # fmt: skip
    page.wait_for_selector(".mask-layer")
    until(lambda: page.evaluate("document.querySelector('.mask-layer').width === 128"))
    drag(page, ".mask-layer", (0.3, 0.2), (0.6, 0.8))
    until(lambda: page.evaluate(PAINTED))
    painted = page.evaluate(PAINTED)
    page.get_by_label("Soft edge").fill("6")
    page.get_by_label("Instruction").fill("make it blue")
    page.get_by_text("Guidance and steps").click()
    page.get_by_label("Steps a token").fill("60")
    job = press_for_new_job(page, "Change it")
    until(lambda: page.evaluate("document.querySelector('.stage > .growing').dataset.row >= 2"))
    page.reload()
    until(lambda: page.evaluate("document.querySelector('.stage > .growing')?.dataset.row >= 2"))
    until(lambda: page.evaluate(PAINTED) == painted)
    assert page.get_by_label("Soft edge").input_value() == "6"
    shown(page)
    told = httpx2.get(f"{service.url}/jobs/{job}").json()
    assert told["settings"]["mask_feather"] == 6
    mask = Image.open(io.BytesIO(httpx2.get(service.url + told["mask"]).content))
    kept = np.asarray(mask.convert("L")) == 0
    png = httpx2.get(service.url + told["pictures"][0]["url"]).content
    result = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    assert kept.any() and (result[kept] == noise[kept]).all()


@pytest.mark.parametrize("width", [1440, 1280, 390])
def test_every_control_has_a_name_and_the_header_one_line(
    service: Running,
    open_studio: Callable[..., Page],
    width: int,
) -> None:
    made(service.url, "an apple", STUDIO, n=2)
    page = open_studio(service.url, width)
    page.locator(".card").first.click()
    page.get_by_role("button", name="Choose several").click()
    for tab in ("Create", "Edit", "Story", "World", "Read"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate(NAMELESS) == [], tab
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    tops = page.evaluate("[...document.querySelectorAll('.tab')].map((t) => t.offsetTop)")
    assert len(set(tops)) == 1
    if width > 1000:
        used = page.evaluate("document.querySelector('.work').getBoundingClientRect().width")
        assert used > 0.9 * width
