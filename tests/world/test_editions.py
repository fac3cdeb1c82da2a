"""Editions on the grid: few objects, whole image tokens, one answer to what is left open."""

import math
from dataclasses import replace

import pytest

from nextstep.data.documents import derived_seed
from nextstep.errors import NextStepError
from nextstep.world.descriptions import describe, name_with_places
from nextstep.world.drawings import atlas
from nextstep.world.editions import edition, editions
from nextstep.world.examples import ImagePart, TextPart
from nextstep.world.lines import (
    objects_that_change,
    region_of_change,
    what_is_asked_for,
    with_lines,
    with_regions,
)
from nextstep.world.scenes import Background, Scene, SceneItem
from nextstep.world.tasks import TASKS, example
from nextstep.world.truth import changed_region

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
    (gone,) = (item for item in picture.scene.items if item not in target.scene.items)
    assert moved == name_with_places(picture.scene, [gone])
    assert moved in before


def test_the_line_of_an_answer_names_what_is_asked_for() -> None:
    dog, cat = SceneItem("dog face", "noto", 0.25, 0.25, 0.5), SceneItem("cat face", "noto")
    scene = Scene(Background("blue"), (dog, replace(cat, x=0.75, y=0.75, size=0.5)))
    for question, told in (
        ("Where is the cat?", "cat bottom right"),
        ("how many dogs are there?", "dog top left"),
        ("Is the cat below the dog?", "dog top left, cat bottom right"),
        ("Is there a robot?", "none"),
        ("What can you see?", None),
        ("What colour is the background?", None),
    ):
        assert what_is_asked_for(question, scene) == told


def test_edits_of_everything_name_no_object() -> None:
    for task in ("background", "style", "add"):
        for seed in range(10):
            made = example(task, seed, edition="core-48")
            before, after = made.scenes
            assert objects_that_change(before, after) == []
