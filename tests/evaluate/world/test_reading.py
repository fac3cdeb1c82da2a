"""Answers in other words are right; other answers are not."""

from __future__ import annotations

import itertools

import pytest

from nextstep.evaluate.world.questions import chosen, questions
from nextstep.evaluate.world.reading import caption, is_right, place
from nextstep.world.examples import TextPart
from nextstep.world.tasks.wording import AT, TO


@pytest.mark.parametrize(
    ("task", "said", "answers"),
    [
        ("read_count", "There are three.", ("three", "3")),
        ("read_count", "3", ("three", "3")),
        ("read_count", "no", ("none", "0", "no")),
        ("read_colour", "It is Red.", ("red",)),
        ("read_style", "twemoji style", ("twemoji",)),
        ("read_yes_no", "Yes, it is.", ("yes",)),
        ("read_word", 'it says "CAT"', ('"CAT"', "CAT")),
        ("read_word", "CAT", ('"CAT"', "CAT")),
        ("read_where", "at the centre", ("in the middle",)),
        ("read_where", "to the left of it", ("on the left", "left")),
        ("read_where", "over it", ("above it",)),
        ("read_change", "the cat moved to the upper left corner",
         ("the cat moved to the top left corner",)),
        ("read_caption", "noto style picture of a cat and two dogs, blue to red background",
         ("two dogs and a cat, noto style, blue to red background",)),
        ("read_caption", "a red apple on a red background, mono style",
         ("a red apple, mono style, red background",)),
    ],
)  # fmt: skip
def test_other_words(task: str, said: str, answers: tuple[str, ...]) -> None:
    assert is_right(task, said, answers)


@pytest.mark.parametrize(
    ("task", "said", "answers"),
    [
        ("read_count", "three or four", ("three", "3")),
        ("read_count", "", ("none", "0")),
        ("read_colour", "red and blue", ("red",)),
        ("read_yes_no", "no", ("yes",)),
        ("read_word", "CART", ('"CAT"',)),
        ("read_where", "in the top left corner", ("at the top",)),
        ("read_where", "below it", ("above it",)),
        ("read_change", "the cat moved to the top", ("the cat moved to the top left corner",)),
        ("read_caption", "a cat and three dogs, noto style, blue background",
         ("a cat and two dogs, noto style, blue background",)),
        ("read_caption", "a cat, noto style, red to blue background",
         ("a cat, noto style, blue to red background",)),
        ("read_caption", "a cat, flat style, blue background",
         ("a cat, noto style, blue background",)),
    ],
)  # fmt: skip
def test_other_answers(task: str, said: str, answers: tuple[str, ...]) -> None:
    assert not is_right(task, said, answers)


def test_every_accepted_answer_is_right_and_the_next_ones_rarely() -> None:
    for task, split in chosen(["reading"]):
        answers = []
        for question in questions(task, split, 8):
            part = question.example.parts[question.asked[-1]]
            assert isinstance(part, TextPart)
            assert all(is_right(task, answer, part.answers) for answer in part.answers)
            answers.append(part.answers)
        if task not in ("read_yes_no", "read_count", "read_style", "read_where"):
            pairs = itertools.pairwise(answers)
            assert sum(is_right(task, a[0], b) for a, b in pairs) <= 2


def test_captions_are_taken_apart() -> None:
    told = caption("Two striped fish, a fish and a bunch of grapes, 3d style, pink background.")
    assert told is not None
    objects, style, background = told
    assert objects == {"tropical fish": 2, "fish": 1, "grapes": 1}
    assert (style, background) == ("3d", "pink")
    assert caption("hello there") is None


def test_every_way_to_say_a_place_is_that_place() -> None:
    for forms in (AT, TO):
        for region, said in forms.items():
            assert {place(form) for form in said} == {region}
