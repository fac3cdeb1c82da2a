"""Words that are drawn are read, and scored by OneIG's text rule."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont

from nextstep.evaluate.benchmarks.base import ItemOutput
from nextstep.evaluate.benchmarks.oneig import OneIG
from nextstep.evaluate.benchmarks.statistics import Row, estimates
from nextstep.evaluate.judges.protocol import Judge
from nextstep.evaluate.judges.rapidocr import RapidOcrJudge
from nextstep.evaluate.text_match import match
from tests.evaluate.benchmarks.official import SETS

pytest.importorskip("rapidocr")


@pytest.fixture(scope="module")
def judge() -> Judge:
    return RapidOcrJudge(side=320)


def sign(text: str) -> Image.Image:
    image = Image.new("RGB", (256, 128), "white")
    ImageDraw.Draw(image).text((16, 40), text, "black", ImageFont.load_default(32))
    return image


@pytest.mark.parametrize("text", ["Hello World", "NEXT STEP 42"])
def test_drawn_words_are_read(judge: Judge, text: str) -> None:
    read = match(judge.ask("", [sign(text)]), text)
    assert read.exact
    assert read.found == read.asked == len(text.split())


def test_a_blank_picture_has_no_words(judge: Judge) -> None:
    assert judge.ask("", [Image.new("RGB", (256, 128), "white")]) == ""
    assert judge.ask("", []) == ""


def test_text_scores_of_drawn_words(judge: Judge, tmp_path: Path) -> None:
    benchmark = OneIG()
    item = benchmark.read(SETS["oneig"](tmp_path))[3]

    def score(*words: str) -> float:
        found = benchmark.measure(item, ItemOutput([sign(one) for one in words]), {"text": judge})
        return estimates([Row("a", "text", found.values)], benchmark.metrics, 20)["text"].value

    assert score("Hello World") == 1.0
    # One picture of two says only the first word: ED 6/2, CR 1/2, WAC 3/4.
    assert score("Hello", "Hello World") == pytest.approx(1 - 3 * 0.5 * 0.25 / 100)
