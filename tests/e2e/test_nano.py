"""The shipped model, through the command line, as somebody would meet it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextstep import NextStepPipeline
from nextstep.model.folder import SHIPPED
from nextstep.world.captions import default_caption
from nextstep.world.vocabulary import COLOURS


def run(*args: object) -> str:
    command = [sys.executable, "-m", "nextstep", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def border(path: Path) -> np.ndarray:
    """Median colour of the outermost pixels."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    edge = np.concatenate([pixels[:4].reshape(-1, 3), pixels[-4:].reshape(-1, 3)])
    return np.median(edge, axis=0)


def test_the_readme_picture(tmp_path: Path) -> None:
    out = tmp_path / "apple.png"
    run("generate", "red apple, noto style, white background", "--seed", 1, "-o", out)
    assert Image.open(out).size == (128, 128)
    assert border(out).min() > 220
    middle = np.asarray(Image.open(out))[40:100, 30:98].reshape(-1, 3).astype(int).mean(axis=0)
    assert middle[0] > middle[1] + 40, "the middle of a red apple is red"
    again = tmp_path / "again.png"
    run("generate", "red apple, noto style, white background", "--seed", 1, "-o", again)
    assert out.read_bytes() == again.read_bytes()


def test_editing_the_background(tmp_path: Path) -> None:
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    run("generate", "pizza, twemoji style, white background", "--seed", 2, "-o", first)
    run("edit", "make the background blue", "-i", first, "-o", second)
    assert np.abs(border(second) - COLOURS["blue"]).max() < 45
    assert json.loads(run("show-settings", second, "--json"))["task"] == "edit"


@pytest.fixture(scope="module")
def nano() -> NextStepPipeline:
    return NextStepPipeline.from_pretrained("nano")


@pytest.mark.parametrize("colour", list(COLOURS))
def test_every_background_colour(nano: NextStepPipeline, colour: str) -> None:
    picture = nano.generate(default_caption("fox", "noto", colour), seed=1)[0].image
    pixels = np.asarray(picture).astype(int)
    edge = np.median(np.concatenate([pixels[:4], pixels[-4:]]).reshape(-1, 3), axis=0)
    assert np.abs(edge - COLOURS[colour]).max() < 45


def test_same_seed_alone_in_a_batch_and_in_another_order(nano: NextStepPipeline) -> None:
    prompts = [default_caption(n, "noto", c) for n, c in zip(
        ["fox", "owl", "key", "bus", "sun", "rose", "bell", "crab"], COLOURS, strict=False
    )]  # fmt: skip
    arrays = lambda made: [np.asarray(p.image).astype(int) for p in made]  # noqa: E731
    together = arrays(nano.generate(prompts, seed=list(range(8))))
    turned = arrays(nano.generate(prompts[::-1], seed=list(range(8))[::-1]))[::-1]
    for i in (0, 5):
        alone = arrays(nano.generate(prompts[i], seed=i))[0]
        assert np.abs(alone - together[i]).max() <= 2
        assert np.abs(alone - turned[i]).max() <= 2


def test_what_is_shipped_fits() -> None:
    size = sum(f.stat().st_size for f in SHIPPED["nano"].rglob("*") if f.is_file())
    assert size < 50 * 10**6
    assert (SHIPPED["nano"] / "README.md").exists()


@pytest.mark.parametrize(
    ("script", "pictures"),
    [("draw_and_edit", ["apple-blue.png", "apple-mono.png", "apple.png"]),
     ("watch_it_grow", [f"row-{i}.png" for i in range(1, 9)])],
)  # fmt: skip
def test_examples_run(script: str, pictures: list[str], tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "examples" / f"{script}.py"
    subprocess.run([sys.executable, str(path)], check=True, cwd=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == pictures
