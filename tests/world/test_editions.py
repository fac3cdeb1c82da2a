"""Editions on the grid: few objects, whole image tokens, one answer to what is left open."""

import math
import re
from dataclasses import replace

import pytest

from nextstep.data.documents import derived_seed
from nextstep.errors import NextStepError
from nextstep.world.descriptions import changes_between, describe, name_with_style
from nextstep.world.drawings import atlas
from nextstep.world.editions import edition, editions
from nextstep.world.examples import Example, ImagePart, TextPart
from nextstep.world.lexicon import NUMBERS
from nextstep.world.lines import (
    region_of_change,
    what_is_asked_for,
    with_lines,
    with_regions,
)
from nextstep.world.scenes import Background, Scene, SceneItem, changed_region, grid_sign
from nextstep.world.tasks import TASKS, example

GRID = (8, 8)
CORE = [name for name, task in TASKS.items() if task.core and task.kind != "text"]


def test_sizes_of_the_editions() -> None:
    sizes = {name: (len(one.objects), len(one.styles)) for name, one in editions().items()}
    assert sizes == {"core-48": (48, 2), "core-96": (96, 3), "core-144": (144, 5), "full": (300, 5)}
    for one in editions().values():
        assert len(set(one.objects)) == len(one.objects)
        assert all(atlas().has(name, style) for name in one.objects for style in one.styles)
    assert set(edition("core-48").objects) < set(edition("core-96").objects)
    with pytest.raises(NextStepError, match="choose from core-48, core-96, core-144, full"):
        edition("core-49")


@pytest.mark.parametrize("task", CORE)
def test_objects_take_whole_image_tokens(task: str) -> None:
    for seed in range(20):
        for scene in example(task, seed, edition="core-48").scenes:
            for item in scene.items:
                count = math.ceil(item.size * 8)
                assert count in (3, 4, 7)
                for centre in (item.x, item.y):
                    first = centre * 8 - count / 2
                    assert first in ((0.5,) if count == 7 else (0, 2, 4))
            if scene.sign is not None:
                assert len(scene.sign.text) <= 4


def test_a_caption_on_the_grid_has_one_answer() -> None:
    answers: dict[str, str] = {}
    for task in ("single", "two_objects", "counting", "colours", "position", "attributes", "sizes"):
        for seed in range(150):
            one = example(task, derived_seed(task, seed), edition="core-48")
            said, line = one.parts[0], describe(one.scenes[-1])
            assert isinstance(said, TextPart)
            assert answers.setdefault(said.text, line) == line


@pytest.mark.parametrize("task", [t for t in CORE if TASKS[t].group in ("editing", "next_state")])
def test_nothing_outside_of_the_region_changes(task: str) -> None:
    for seed in range(25):
        parts = with_regions(example(task, seed, edition="core-48").parts, GRID)
        for part in parts:
            if not isinstance(part, ImagePart) or part.kept is None:
                continue
            before = parts[part.kept]
            assert isinstance(before, ImagePart)
            region = region_of_change(before.scene, part.scene, GRID)
            assert part.region == (None if region.covers(GRID) else region)
            changed = changed_region(before.scene, part.scene)
            rows = slice(region.top * 16, region.bottom * 16)
            changed[rows, region.left * 16 : region.right * 16] = False
            assert not changed.any()


def test_the_line_of_an_edit_says_source_objects_region_and_result() -> None:
    parts = example("move", 3, edition="core-48").parts
    picture, asked, line, target = with_lines(parts, GRID, source_line=True)
    assert isinstance(asked, TextPart)
    assert isinstance(line, TextPart)
    assert asked.text.endswith("\n")
    before, moved, change, after = line.text.split("; ")
    assert isinstance(picture, ImagePart)
    assert isinstance(target, ImagePart)
    assert (before, after) == (describe(picture.scene), describe(target.scene))
    assert change.startswith("change rows ")
    was, becomes, comes = moved.partition(" becomes ")
    assert becomes
    assert was in before
    assert comes in after


def test_the_line_of_an_answer_names_what_is_asked_for() -> None:
    dog, cat = SceneItem("dog face", "noto", 0.25, 0.25, 0.5), SceneItem("cat face", "noto")
    scene = Scene(Background("blue"), (dog, replace(cat, x=0.75, y=0.75, size=0.5)))
    for about, told in (
        (("cat face",), "cat bottom right"),
        (("cat face", "dog face"), "cat bottom right, dog top left; cat below dog"),
        (("dog face", "robot"), "dog top left, robot none"),
        (("robot",), "robot none"),
        (None, None),
    ):
        assert what_is_asked_for(about, [scene]) == told
    assert what_is_asked_for(None, [scene, scene.without_item(0)]) == "dog top left goes"


def line_before_the_last_part(made: Example) -> str:
    """What a model writes before it answers, or draws the last picture."""
    line = with_lines(made.parts, GRID, source_line=True)[-2]
    assert isinstance(line, TextPart)
    return line.text


def test_relations_in_lines_are_those_of_the_question() -> None:
    opposite = {"left of": "right of", "above": "below"}
    opposite |= {back: way for way, back in opposite.items()}
    asked = 0
    for seed in range(100):
        made = example("read_yes_no", seed, edition="core-48")
        answer = made.parts[-1]
        assert isinstance(answer, TextPart)
        line = line_before_the_last_part(made)
        question = next(way for way in [*opposite, " "] if way in made.text)
        if question != " ":
            asked += 1
            told = line.rpartition("; ")[2]
            assert (question in told) == (answer.text.strip() == "yes")
            assert any(way in told for way in opposite)
    assert asked > 20


def test_changes_stand_in_the_order_of_the_instruction() -> None:
    dog = SceneItem("dog face", "noto", 0.25, 0.25, 60 / 128)
    cat = SceneItem("cat face", "noto", 0.75, 0.75, 60 / 128)
    before = Scene(Background("blue"), (dog, cat))
    after = Scene(Background("blue"), (replace(dog, tint="red"), replace(cat, flip=True)))
    one, other = "dog top left becomes red dog top left", "cat bottom right becomes turned cat"
    for instruction, order in (
        ("the dog turns red while the cat looks away", (one, other)),
        ("The cat looks away, the dog turns red", (other, one)),
        ("catch it, and the dog turns red", (one, other)),
        ("all goes back", (one, other)),
    ):
        told = changes_between(before, after, instruction)
        assert [told.startswith(order[0]), order[1] in told] == [True, True]


def test_the_line_of_a_recalled_character_says_who_that_is() -> None:
    for seed in range(40):
        made = example("recall", seed, edition="core-48")
        asked = made.parts[-2]
        assert isinstance(asked, TextPart)
        who, drawn = line_before_the_last_part(made).strip().split("; ")
        assert drawn == describe(made.scenes[-1])
        assert asked.calls is not None
        name, place = asked.calls
        met = made.scenes[place].items[0]
        assert name in asked.text and who.split(" ", 1) == [name, name_with_style(met)]
        assert who.split(" ", 1)[1].rpartition(" ")[0] == drawn.split(",")[0]


@pytest.mark.parametrize("task", [name for name in CORE if name.startswith("read_")])
def test_the_line_of_an_answer_holds_the_answer(task: str) -> None:
    for seed in range(25):
        made = example(task, seed, edition="core-48")
        lined = with_lines(made.parts, GRID, source_line=True)
        line, answer = lined[-2], lined[-1]
        if isinstance(line, ImagePart):
            continue  # a caption that nobody asked for
        assert isinstance(answer, TextPart)
        told = line.text
        if task == "read_count":
            number = told.partition("; ")[2].strip().count(",") + 1
            assert answer.text == ("none" if told.endswith(" none\n") else NUMBERS[number])
        if task == "read_word":
            assert answer.text in told
        if task == "read_change" and "background" not in answer.text:
            assert len(re.findall(r" (becomes|goes|comes)", told)) == 1


def test_words_for_changes() -> None:
    dog = SceneItem("dog face", "noto", 0.25, 0.25, 60 / 128)
    cat = SceneItem("cat face", "noto", 0.75, 0.75, 60 / 128)
    scene = Scene(Background("blue"), (dog, cat))
    robot = replace(dog, name="robot")
    swapped = replace(dog, x=0.75, y=0.75), replace(cat, x=0.25, y=0.25)
    for after, told in (
        (scene.without_item(1), "cat bottom right goes"),
        (scene.with_item(0, robot), "dog top left becomes robot top left"),
        (scene.with_item(0, replace(dog, tint="red")), "dog top left becomes red dog top left"),
        (
            replace(scene, items=swapped),
            "dog top left becomes dog bottom right, cat bottom right becomes cat top left",
        ),
        (replace(scene, background=Background("pink")), "blue background becomes pink background"),
        (
            replace(scene, items=tuple(replace(item, style="mono") for item in scene.items)),
            "noto style becomes mono style",
        ),
        (replace(scene, sign=grid_sign("HI", 0)), 'sign "HI" comes'),
        (replace(scene, grey=True), ""),
    ):
        assert changes_between(scene, after) == told


def test_objects_alike_are_numbered_and_letters_have_their_columns() -> None:
    dog = SceneItem("dog face", "noto", 0.25, 0.25, 60 / 128)
    scene = Scene(Background("blue"), (dog, replace(dog, x=0.75)), grid_sign("CAT", 6))
    assert describe(scene) == (
        'dog top left, dog two top right, sign "CAT" bottom, columns 2-3C 4-5A 6-7T, '
        "noto style, blue background"
    )
