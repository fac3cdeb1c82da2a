"""Dense scores: all met is 1, none is 0, and every requirement counts by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nextstep.evaluate.text_match import edit_distance
from nextstep.evaluate.world.dense import dense_score, detections_of_line, requirements, text_share
from nextstep.world.descriptions import describe
from nextstep.world.examples import ImagePart
from nextstep.world.spec import Constraint, Detection, Detections, Spec, detections_of
from nextstep.world.tasks import TASKS, examples

DOG, CAT = "dog face", "cat face"


def seen(name: str, x: float = 0.5, y: float = 0.5, colour: str | None = None) -> Detection:
    return Detection(name, (x - 0.2, y - 0.2, x + 0.2, y + 0.2), colour)


@pytest.mark.parametrize("task", [name for name, t in TASKS.items() if t.group == "drawing"])
def test_the_truth_meets_everything(task: str) -> None:
    for example in examples(task, "seen", 12, 0):
        for part in example.parts:
            if isinstance(part, ImagePart) and part.spec is not None:
                truth = detections_of(part.scene)
                assert part.spec.failures(truth) == []
                assert dense_score(part.spec, truth)[0] == 1.0


def test_half_of_the_objects_is_half_of_the_way() -> None:
    spec = Spec((Constraint(DOG), Constraint(CAT)), background=("blue",), style="noto")
    one = Detections((seen(DOG),), ("blue",), "mono")
    assert requirements(spec, one) == {"objects": [1.0, 0.0], "background": [1.0], "style": [0.0]}
    assert dense_score(spec, one) == (0.5, {"objects": 0.5, "background": 1.0, "style": 0.0})
    assert dense_score(spec, Detections())[0] == 0.0


@pytest.mark.parametrize(("number", "share"), [(0, 0.0), (2, 2 / 3), (3, 1.0), (4, 3 / 4)])
def test_counts_are_shares(number: int, share: float) -> None:
    spec = Spec((Constraint(DOG, count=3),))
    detections = Detections(tuple(seen(DOG, 0.1 * n) for n in range(number)))
    assert requirements(spec, detections)["objects"] == [share]


def test_attributes_count_apart_from_names() -> None:
    spec = Spec(
        (Constraint(DOG, colour="red", region="left"), Constraint(CAT, relation=("right of", 0)))
    )
    wrong_place = Detections((seen(DOG, 0.8, 0.5, "red"), seen(CAT, 0.2)))
    found = requirements(spec, wrong_place)
    assert found == {"objects": [1.0, 1.0], "attributes": [1.0], "layout": [0.0, 0.0]}
    right = Detections((seen(DOG, 0.2, 0.5, "red"), seen(CAT, 0.8)))
    assert dense_score(spec, right)[0] == 1.0
    assert spec.failures(right) == []


def test_more_than_asked_costs() -> None:
    spec = Spec((Constraint(DOG),), exclude=(CAT,), only=True)
    assert requirements(spec, Detections((seen(DOG), seen(CAT))))["extra"] == [0.0, 0.5]
    assert requirements(spec, Detections((seen(DOG),)))["extra"] == [1.0, 1.0]


def test_letters_of_a_sign_are_shares() -> None:
    assert text_share("OPEN", "open") == 1.0
    assert text_share("OPXN", "OPEN") == 0.75
    assert text_share("something else", "OPEN") == 0.0
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "abc") == edit_distance("abc", "") == 3


@pytest.mark.parametrize("task", ["two_objects", "counting", "single"])
def test_a_true_line_says_what_the_scene_shows(task: str) -> None:
    """The line of a scene names its objects, style and background."""
    for example in examples(task, "seen", 20, 3):
        scene = example.scenes[-1]
        told, truth = detections_of_line(describe(scene)), detections_of(scene)
        assert sorted(one.name for one in told.objects) == sorted(one.name for one in truth.objects)
        assert (told.style, told.background) == (truth.style, truth.background)
        plain = replace(
            example.parts[-1].spec, include=tuple(
                replace(n, size=None, at=None, extent=None, colour=None, relation=None)
                for n in example.parts[-1].spec.include
            )
        )  # fmt: skip
        assert dense_score(plain, told)[0] == 1.0


def test_a_line_of_other_words_says_nothing() -> None:
    assert detections_of_line("") == Detections()
    assert detections_of_line("some words, without meaning") == Detections()
