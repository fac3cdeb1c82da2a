"""Scenes on the grid of image tokens."""

from __future__ import annotations

from collections import Counter

from nextstep.text.tokenizer import TextTokenizer
from nextstep.world.grid_aligned import tidy
from nextstep.world.live import WorldSource
from nextstep.world.scenes import FILL, Item, Scene, Sign
from nextstep.world.spec import Need, Spec, sight_of
from nextstep.world.tasks import TASKS

TOKENIZER = TextTokenizer.train(["a red apple on a blue background, noto style"], 400)


def test_things_fill_whole_tokens() -> None:
    scene = Scene(items=(Item("red apple", "noto", 0.27, 0.71, 0.4),), sign=Sign("CAT", y=0.2))
    made = tidy(scene, 128)
    item, sign = made.items[0], made.sign
    assert sign is not None
    assert (item.x, item.y, item.size) == (0.25, 0.75, 0.46875)
    assert (sign.y, sign.height, sign.text) == (0.25, 0.21875, "CAT")
    assert tidy(made, 128) == made


def test_a_thing_alone_is_a_single_drawing() -> None:
    """It becomes as large as things of single pictures, unless its place or size was asked for."""
    scene = Scene(items=(Item("cat", "flat", 0.3, 0.3, 0.58),))
    assert tidy(scene, 128).items == (Item("cat", "flat"),)
    asked = Spec((Need("cat", region="top left"),))
    item = tidy(scene, 128, 16, asked).items[0]
    assert (item.x, item.y, item.size) == (0.25, 0.25, 0.46875)


def test_what_would_meet_moves_and_what_was_asked_stays() -> None:
    pair = Scene(items=(Item("cat", "flat", 0.42, 0.5, 0.3), Item("dog", "flat", 0.7, 0.5, 0.3)))
    # Half of the side would leave the dog no place, three eighths does.
    assert [item.x for item in tidy(pair, 128).items] == [0.4375, 0.8125]
    assert {item.size for item in tidy(pair, 128).items} == {0.34375}
    small = Spec((Need("cat", size="small"), Need("dog", size="small")))
    assert {item.size for item in tidy(pair, 128, 16, small).items} == {0.34375 - 0.125}
    nowhere = Spec((Need("cat", at=(0.42, 0.5), size="small"), Need("dog", size="big")))
    assert tidy(pair, 128, 16, nowhere) == pair


def test_drawings_keep_what_is_asked() -> None:
    """Nearly all scenes of drawing can be tidied, and all keep their captions' truth."""
    tasks = [name for name, task in TASKS.items() if task.group == "drawing"]
    plain = WorldSource(TOKENIZER, 128, tasks)
    source = WorldSource(TOKENIZER, 128, tasks, tidy_share=1.0)
    changed: Counter[bool] = Counter()
    for index in range(150):
        before, after = plain.example(index, 3), source.example(index, 3)
        assert before.text == after.text
        for old, new in zip(before.scenes, after.scenes, strict=True):
            free = len(old.items) != 1 or old.items[0].size != FILL
            if free:
                changed[old != new] += 1
        for target in after.targets:
            part = after.parts[target]
            assert not part.spec.failures(sight_of(part.scene))
    assert changed[True] > 0.95 * changed.total()


def test_other_tasks_and_old_caches_are_as_before() -> None:
    plain, tidied = WorldSource(TOKENIZER), WorldSource(TOKENIZER, tidy_share=1.0)
    kinds = Counter()
    for index in range(60):
        before, after = plain.example(index, 1), tidied.example(index, 1)
        kinds[before == after] += TASKS[before.task].group != "drawing"
    assert kinds[True] and not kinds[False]
    assert "tidy_share" not in plain.shown()["world"]
    assert tidied.shown() != plain.shown()
