"""GenEval's rule on boxes made by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nextstep.errors import NextStepError
from nextstep.evaluate.benchmarks.base import Item, ItemOutput, Measurement
from nextstep.evaluate.benchmarks.geneval import (
    COLOURS,
    TEMPLATES,
    GenEval,
    crop_of,
    objects_of,
    read_colours,
    relations,
    verdict,
)
from nextstep.evaluate.benchmarks.statistics import Row, estimates
from nextstep.evaluate.judges.protocol import ScoredBox
from tests.evaluate.benchmarks.fakes import FakeJudge
from tests.evaluate.benchmarks.official import lines, picture

Box = tuple[float, float, float, float]


def box(x: float, y: float, side: float = 10) -> Box:
    return (x - side / 2, y - side / 2, x + side / 2, y + side / 2)


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        (box(0, 0), box(100, 0), {"left of"}),
        (box(100, 0), box(0, 0), {"right of"}),
        (box(0, 0), box(0, 100), {"above"}),
        (box(0, 100), box(0, 0), {"below"}),
        (box(0, 0), box(100, 100), {"left of", "above"}),
        (box(100, 0), box(0, 100), {"right of", "above"}),
        (box(0, 0), box(0, 0), set()),
        # An offset of less than a tenth of both sizes: 2 of 10 + 10.
        (box(0, 0), box(1.9, 0), set()),
        # Reduced by 2, the offset of 3 leaves a third of its length, under one half.
        (box(0, 0), box(3, 0), set()),
        # Of 5 it leaves three fifths.
        (box(0, 0), box(5, 0), {"left of"}),
        # Exactly one half does not count: 4 less 2 of 4.
        (box(0, 0), box(4, 0), set()),
        # 100 across and 60 down: 98 and 58 of 116.6, so only one passes a half.
        (box(0, 0), box(100, 60), {"left of"}),
        # The whole length divides, not the reduced one: 40 less 20 of 40 is one half.
        (box(0, 0, 100), box(40, 0, 100), set()),
    ],
)
def test_relations_of_boxes(first: Box, second: Box, found: set[str]) -> None:
    assert relations(first, second) == found


def seen(**counts: list[tuple[float, Box]]) -> dict[str, list[ScoredBox]]:
    return {
        name: [ScoredBox(name, score, place) for score, place in some]
        for name, some in counts.items()
    }


CUP, DOG = (0.9, box(0, 0)), (0.9, box(100, 0))


def wants(*include: dict[str, Any], exclude: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {"include": list(include), "exclude": exclude or []}


def cup(**more: Any) -> dict[str, Any]:
    return {"class": "cup", "count": 1, **more}


TWO = {"class": "cup", "count": 2}
DOG_LEFT = {"class": "dog", "count": 1, "position": ["left of", 0]}
DOG_RIGHT = {"class": "dog", "count": 1, "position": ["right of", 0]}


@pytest.mark.parametrize(
    ("asked", "objects", "right"),
    [
        (wants(cup()), seen(cup=[CUP]), True),
        (wants(cup()), seen(), False),
        (wants(cup()), seen(dog=[DOG]), False),
        (wants(cup(), {"class": "dog", "count": 1}), seen(cup=[CUP], dog=[DOG]), True),
        (wants(cup(), {"class": "dog", "count": 1}), seen(cup=[CUP]), False),
        (wants(TWO, exclude=[{"class": "cup", "count": 3}]), seen(cup=[CUP] * 2), True),
        (wants(TWO, exclude=[{"class": "cup", "count": 3}]), seen(cup=[CUP] * 3), False),
        (wants(TWO, exclude=[{"class": "cup", "count": 3}]), seen(cup=[CUP]), False),
        (wants(cup(), exclude=[{"class": "dog", "count": 1}]), seen(cup=[CUP], dog=[DOG]), False),
        (wants(cup(color="red")), seen(cup=[CUP]), True),
        (wants(cup(color="blue")), seen(cup=[CUP]), False),
        (wants(cup(), DOG_RIGHT), seen(cup=[CUP], dog=[DOG]), True),
        (wants(cup(), DOG_LEFT), seen(cup=[CUP], dog=[DOG]), False),
        # Where the cup is not as asked, there is nothing to lie beside.
        (wants(cup(color="blue"), DOG_RIGHT), seen(cup=[CUP], dog=[DOG]), False),
        # The most confident dog alone counts, and it lies right.
        (wants(cup(), DOG_RIGHT), seen(cup=[CUP], dog=[DOG, (0.5, box(-100, 0))]), True),
        (wants(), seen(), True),
    ],
)
def test_verdicts(asked: dict[str, Any], objects: dict[str, list[ScoredBox]], right: bool) -> None:
    found, why = verdict(asked, objects, lambda some, _: ["red"] * len(some))
    assert found is right
    assert bool(why) is not right


def test_thresholds_of_confidence() -> None:
    some = [ScoredBox("cup", score, box(0, 0)) for score in (0.2, 0.3, 0.31, 0.9, 0.91)]
    assert [one.score for one in objects_of(some, "colors")["cup"]] == [0.91, 0.9, 0.31]
    assert [one.score for one in objects_of(some, "counting")["cup"]] == [0.91]
    assert len(objects_of([ScoredBox("cup", 0.95, box(0, 0))] * 40, "counting")["cup"]) == 16
    assert set(objects_of([ScoredBox("mouse", 0.95, box(0, 0))], "colors")) == {"computer mouse"}
    assert objects_of([], "counting") == {}


def test_colours_come_from_the_nearest_class_of_the_masked_crop() -> None:
    directions = {name: np.eye(len(COLOURS))[n] for n, name in enumerate(COLOURS)}

    def embedding(one: Image.Image | str) -> np.ndarray:
        if isinstance(one, str):
            return next(directions[name] for name in COLOURS if name in one.split(" a ")[1])
        red, green, blue = np.asarray(one).reshape(-1, 3).mean(0)
        return directions["red"] if red > max(green, blue) else directions["blue"]

    image = Image.new("RGB", (40, 20), "blue")
    image.paste("red", (0, 0, 20, 20))
    cups = [
        ScoredBox("cup", 0.9, (0, 0, 20, 20)),
        ScoredBox("cup", 0.9, (20, 0, 40, 20)),
    ]
    assert read_colours(FakeJudge(embedding=embedding), image, cups, "cup") == ["red", "blue"]
    assert len(TEMPLATES) * len(COLOURS) == 30


def test_what_lies_outside_the_mask_is_grey() -> None:
    mask = np.zeros((10, 10), bool)
    mask[2:4, 2:4] = True
    outputs = crop_of(Image.new("RGB", (10, 10), "red"), ScoredBox("cup", 1, (2, 2, 6, 6), mask))
    assert outputs.size == (4, 4)
    assert outputs.getpixel((0, 0)) == (255, 0, 0)
    assert outputs.getpixel((3, 3)) == (0x99, 0x99, 0x99)
    thin = crop_of(Image.new("RGB", (10, 10), "red"), ScoredBox("cup", 1, (2, 2, 2, 2)))
    assert thin.size == (1, 1)


def test_overall_is_the_mean_of_the_tags() -> None:
    rows = [Row("a", "counting", {"correct": 1.0, "any": 1.0})]
    rows += [Row(f"b{n}", "colors", {"correct": 0.0, "any": 0.0}) for n in range(3)]
    found = estimates(rows, GenEval().metrics, 20)
    assert found["overall"].value == 0.5
    assert (found["pictures"].value, found["prompts"].value) == (0.25, 0.25)
    assert (found["counting"].value, found["colors"].value) == (1.0, 0.0)
    assert math.isnan(found["position"].value)


def test_missing_pictures_are_wrong_and_listed() -> None:
    item = Item("00000", "a photo of a cup", "single_object", wants(cup()))
    judge = FakeJudge(found=[ScoredBox("cup", 0.9, box(8, 8))])
    outputs = ItemOutput([picture(1), None, picture(2), None])
    found = GenEval().measure(item, outputs, {"detector": judge, "colours": judge})
    assert found.values == {"correct": 0.5, "any": 1.0}
    assert len(found.failures) == 2
    assert "picture 1" in found.failures[0]


def test_results_of_the_official_scorer(tmp_path: Path) -> None:
    item = Item("00001", "p", "colors", wants(cup()))
    some = [
        {"filename": f"out/00001/samples/{n:05d}.png", "correct": n == 0, "reason": "x"}
        for n in range(3)
    ]
    found = GenEval().read_results(lines(tmp_path / "results.jsonl", some), [item])
    assert found["00001"].values == {"correct": 0.25, "any": 1.0}
    assert found["00001"].failures == ["picture 3: the official scorer left it out"]
    with pytest.raises(NextStepError, match="no result of GenEval"):
        GenEval().read_results(lines(tmp_path / "other.jsonl", [{"filename": "a"}]), [item])


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ({"prompt": "p"}, "has no str 'tag'"),
        ({"prompt": "p", "tag": "shape", "include": []}, "unknown tag"),
        ({"prompt": "p", "tag": "colors", "include": [{"class": "cup"}]}, "no class and count"),
        ({"prompt": "p", "tag": "position", "include": [DOG_LEFT]}, "does not stand before it"),
    ],
)
def test_damaged_sets_are_named(tmp_path: Path, line: dict[str, Any], why: str) -> None:
    with pytest.raises(NextStepError, match=why):
        GenEval().read(lines(tmp_path / "set.jsonl", [line]))


def test_sets_that_are_no_sets(tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text("not json\n")
    with pytest.raises(NextStepError, match="line 1"):
        GenEval().read(tmp_path / "text.jsonl")
    with pytest.raises(NextStepError, match="no prompts"):
        GenEval().read(lines(tmp_path / "empty.jsonl", []))
    with pytest.raises(NextStepError, match="cannot be read"):
        GenEval().read(tmp_path / "none.jsonl")


def test_the_complete_set_is_known_by_its_numbers() -> None:
    items = [
        Item(f"{tag}{n}", "p", tag) for tag, count in GenEval.sizes.items() for n in range(count)
    ]
    assert len(items) == 553
    assert GenEval.complete(items)
    assert not GenEval.complete(items[:-1])
    assert json.dumps(Measurement().values) == "{}"
