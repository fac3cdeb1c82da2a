"""OneIG's rules: rendered text, likeness, spread."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextstep.errors import NextStepError
from nextstep.evaluate.benchmarks.base import ItemOutput
from nextstep.evaluate.benchmarks.files import cells_of, grid_of
from nextstep.evaluate.benchmarks.oneig import OneIG, OneIGZh
from nextstep.evaluate.benchmarks.statistics import Row, estimates
from nextstep.evaluate.text_match import Match, edit_distance, match, tidied
from tests.evaluate.benchmarks.fakes import FakeJudge
from tests.evaluate.benchmarks.official import SETS, picture, write_csv

PICTURE = picture(0)


@pytest.mark.parametrize(
    ("read", "asked", "found"),
    [
        ("Hello World", "Hello World", Match(0, True, 2, 2)),
        ("Hello, World!", "Hello World", Match(0, True, 2, 2)),
        ("Hello\nWorld", "Hello  World", Match(0, True, 2, 2)),
        ("Hello", "Hello World", Match(6, False, 1, 2)),
        ("World Hello", "Hello World", Match(8, False, 2, 2)),
        ("hello World", "Hello World", Match(1, False, 1, 2)),
        ("", "Hello World", Match(11, False, 0, 2)),
        ("No text recognized.", "Hello World", Match(11, False, 0, 2)),
        ("Hello Hello", "Hello World", Match(4, False, 1, 2)),
        ("the the cat", "the cat the", Match(6, False, 3, 3)),
        ("café", "cafe", Match(1, False, 0, 1)),
        ("你好世界", "你好世界", Match(0, True, 4, 4)),
        ("你 好 世 界", "你好\uff0c世界", Match(0, True, 4, 4)),
        ("你世", "你好世界", Match(2, False, 2, 4)),
        ("", "", Match(0, True, 0, 0)),
    ],
)
def test_readings_against_the_asked_text(read: str, asked: str, found: Match) -> None:
    assert match(read, asked) == found


def test_edit_distances() -> None:
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "abc") == edit_distance("abc", "") == 3
    assert edit_distance("flaw", "lawn") == 2
    assert tidied("  a\tb \n c ") == "a b c"


def text_rows(*matches: Match) -> list[Row]:
    return [
        Row(str(n), "text", {
            "distance": float(one.distance), "exact": float(one.exact),
            "found": float(one.found), "asked": float(one.asked),
        })
        for n, one in enumerate(matches)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("matches", "score"),
    [
        ([Match(0, True, 2, 2)], 1.0),
        ([Match(50, False, 0, 2)], 0.5),
        # The edit distance is cut off at 100.
        ([Match(100, False, 0, 2)], 0.0),
        ([Match(900, False, 0, 2)], 0.0),
        # Half of the pictures exact: 1 - 25/100 * 1/2 * 1/2.
        ([Match(0, True, 2, 2), Match(50, False, 0, 2)], 1 - 0.25 * 0.5 * 0.5),
        # All words there in another order: nothing is lost.
        ([Match(8, False, 2, 2)], 1.0),
        ([Match(10, False, 1, 2)], 1 - 0.1 * 0.5),
        # Words are counted over all pictures: 1 of 4, not the mean of 1/1 and 0/3.
        ([Match(40, False, 1, 1), Match(40, False, 0, 3)], 1 - 0.4 * 0.75),
        ([Match(20, False, 0, 1)] * 4, 0.8),
        ([Match(0, True, 1, 1)] * 3 + [Match(80, False, 0, 1)], 1 - 0.2 * 0.25 * 0.25),
        ([Match(1, False, 0, 1)], 0.99),
        ([Match(99, False, 0, 1)], 0.01),
    ],
)
def test_text_scores(matches: list[Match], score: float) -> None:
    told = estimates(text_rows(*matches), OneIG().metrics, 20)
    assert told["text"].value == pytest.approx(score)
    assert math.isnan(told["overall"].value)  # the other parts were not judged


def test_chinese_text_is_cut_off_earlier() -> None:
    rows = text_rows(Match(25, False, 0, 2))
    assert estimates(rows, OneIGZh().metrics, 20)["text"].value == pytest.approx(0.5)


def test_each_part_of_the_set_has_its_own_questions(tmp_path: Path) -> None:
    items = OneIG().read(SETS["oneig"](tmp_path))
    by_key = {item.key: item.record for item in items}
    assert by_key["anime/000"]["style"] == "baroque"
    assert by_key["anime/005"]["style"] is None
    asked = {1: ("Is there a cup?", [0]), 2: ("Is it red?", [1])}
    assert by_key["anime/000"]["questions"] == by_key["human/001"]["questions"] == asked
    assert by_key["text/003"]["text"] == "Hello World"
    assert by_key["reasoning/004"]["answer"] == "a falling apple"
    assert by_key["text/003"]["questions"] == {}
    (tmp_path / "OneIG-Bench.csv").write_text("category,id,prompt_en\nPoems,000,p\n")
    with pytest.raises(NextStepError, match="line 2"):
        OneIG().read(tmp_path)


def test_alignment_counts_missing_cells_as_nothing(tmp_path: Path) -> None:
    item = OneIG().read(SETS["oneig"](tmp_path))[1]
    judge = FakeJudge(lambda q: "Yes." if "cup" in q else "No")
    found = OneIG().measure(
        item, ItemOutput([PICTURE, None, PICTURE, PICTURE]), {"alignment": judge}
    )
    assert found.values == {"alignment": 0.375}
    assert found.failures == ["picture 1 is missing or black"]


def test_text_is_read_from_every_picture(tmp_path: Path) -> None:
    item = OneIG().read(SETS["oneig"](tmp_path))[3]
    outputs = ItemOutput([PICTURE, PICTURE, None, None])
    found = OneIG().measure(item, outputs, {"text": FakeJudge("Hello World")})
    assert found.values == {"distance": 5.5, "exact": 0.5, "found": 1.0, "asked": 2.0}


def colours(one: Image.Image | str) -> tuple[float, ...]:
    """Texts point one way, pictures by their brightness between that way and another."""
    if isinstance(one, str):
        return 1.0, 0.0
    angle = np.asarray(one).mean() / 255 * math.pi / 2
    return math.cos(angle), math.sin(angle)


def grey(share: float) -> Image.Image:
    return Image.new("L", (8, 8), round(255 * share)).convert("RGB")


def test_reasoning_style_and_diversity_are_cosines(tmp_path: Path) -> None:
    data = SETS["oneig"](tmp_path)
    grey(1.0).save(data / "style_references/baroque/0.png")
    judge = FakeJudge(embedding=colours)
    items = {item.key: item for item in OneIG().read(data)}
    outputs = ItemOutput([grey(0.0), grey(1.0), None, None])
    judges = {"reasoning": judge, "style": judge, "diversity": judge}
    reasoned = OneIG().measure(items["reasoning/004"], outputs, judges).values
    # One picture points as the answer, one at a right angle to it, two are missing.
    assert reasoned["reasoning"] == pytest.approx(0.25, abs=1e-6)
    # One pair of six is at distance 1.
    assert reasoned["diversity"] == pytest.approx(1 / 6, abs=1e-6)
    styled = OneIG().measure(items["anime/000"], outputs, judges).values
    assert styled["style"] == pytest.approx(0.25, abs=1e-6)
    both = OneIG().measure(items["anime/000"], outputs, judges | {"style2": judge}).values
    assert both["style"] == pytest.approx(0.25, abs=1e-6)
    nothing = OneIG().measure(items["reasoning/004"], ItemOutput([None] * 4), judges).values
    assert nothing == {"reasoning": 0.0, "diversity": 0.0}


def test_overall_is_the_mean_of_the_five_parts() -> None:
    values = {
        "alignment": 0.8, "distance": 50.0, "exact": 0.0, "found": 0.0, "asked": 1.0,
        "reasoning": 0.2, "style": 0.3, "diversity": 0.1,
    }  # fmt: skip
    told = estimates([Row("a", "anime", values)], OneIG().metrics, 20)
    assert told["overall"].value == pytest.approx((0.8 + 0.5 + 0.2 + 0.3 + 0.1) / 5)


def test_black_cells_are_missing_pictures(tmp_path: Path) -> None:
    item = OneIG().read(SETS["oneig"](tmp_path / "set"))[0]
    path = tmp_path / OneIG().files(item, "m")[0]
    path.parent.mkdir(parents=True)
    grid_of([picture(1), picture(2), picture(3)]).save(path, lossless=True)
    outputs = OneIG().outputs(tmp_path, item, "m")
    assert [one is None for one in outputs.pictures] == [False, False, False, True]
    assert cells_of(Image.open(path))[1].tobytes() == picture(2).tobytes()


def test_results_of_the_official_scorer(tmp_path: Path) -> None:
    benchmark = OneIG()
    items = benchmark.read(SETS["oneig"](tmp_path / "set"))
    write_csv(tmp_path / "alignment_prompt_score_EN_x.csv", [{"": "anime_000", "m": "0.5"}])
    write_csv(
        tmp_path / "text_prompt_score_EN_x.csv",
        [{"": "003", "m": "[12.0, 0.25, 0.5]"}],
    )
    write_csv(tmp_path / "style_prompt_score_EN_x.csv", [{"": "000", "m": "0.3"}])
    write_csv(tmp_path / "reasoning_prompt_score_EN_x.csv", [{"": "004", "m": ""}])
    found = benchmark.read_results(tmp_path, items)
    assert found["anime/000"].values == {"alignment": 0.5, "style": 0.3}
    assert found["text/003"].values == {"distance": 12, "exact": 0.25, "found": 1.0, "asked": 2.0}
    assert found["reasoning/004"].values == {"reasoning": 0.0}
    assert len(found["reasoning/004"].failures) == 1
