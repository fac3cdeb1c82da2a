"""The studio's files over HTTP."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from nextstep.serve.api.keys import add_key
from nextstep.serve.api.studio import FOLDER
from tests.serve.conftest import Running, running

IMPORT = re.compile(r"""^(?:import|export).*from ?['"]([^'"\n]+)['"]""", re.MULTILINE)
FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file())


def test_the_page_and_its_files(service: Running) -> None:
    page = httpx2.get(service.url)
    assert page.status_code == 200 and "OpenNextStep Studio" in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert not re.search(r"<script[^>]*>[^<]|\son\w+=|style=", page.text), "nothing inline"
    with httpx2.Client(base_url=f"{service.url}/studio") as client:
        for name in FILES:
            answer = client.get(f"/{name}")
            assert answer.status_code == 200, name
            same = client.get(f"/{name}", headers={"If-None-Match": answer.headers["etag"]})
            assert same.status_code == 304 and not same.content
    assert httpx2.post(service.url).headers["allow"] == "GET"


def test_every_file_that_is_asked_for_is_there() -> None:
    asked = set(re.findall(r"/studio/([\w./-]+)", (FOLDER / "index.html").read_text()))
    assert asked <= set(FILES)
    for path in FOLDER.glob("**/*.js"):
        for name in IMPORT.findall(path.read_text()):
            assert name.startswith("./") and (path.parent / name).is_file(), (path.name, name)


@pytest.mark.parametrize("path", ["../app.py", "%2e%2e/app.py", "style", ""])
def test_nothing_else_is_served(service: Running, path: str) -> None:
    assert httpx2.get(f"{service.url}/studio/{path}").status_code == 404


def test_the_page_needs_no_key_but_everything_behind_it_does(
    app_of: Callable, tmp_path: Path
) -> None:
    add_key(tmp_path / "keys.txt", "ann")
    with running(app_of(keys=tmp_path / "keys.txt")) as made:
        assert httpx2.get(made.url).status_code == 200
        assert httpx2.get(f"{made.url}/studio/app.js").status_code == 200
        assert httpx2.get(f"{made.url}/studio/../jobs").status_code != 200
        assert httpx2.get(f"{made.url}/jobs").status_code == 401


def test_what_the_page_must_know_of_the_model(service: Running) -> None:
    card = httpx2.get(f"{service.url}/v1/models").json()["data"][0]
    assert card["defaults"]["generate"]["guidance"] == 2.0
    assert card["defaults"]["edit"]["image_guidance"] == 1.5
    assert card["most_side"] is None and card["most_steps"] == 200
