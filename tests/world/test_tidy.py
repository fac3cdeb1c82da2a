"""Scenes on the grid of image tokens."""

from __future__ import annotations

from collections import Counter

from nextstep.text.tokenizer import TextTokenizer
from nextstep.world.live import WorldSource
from nextstep.world.scenes import Item, Scene, Sign
from nextstep.world.spec import Need, Spec, sight_of
from nextstep.world.tasks import TASKS
from nextstep.world.tidy import LARGE, tidy

TOKENIZER = TextTokenizer.train(["a red apple on a blue background, noto style"], 400)


def test_things_fill_whole_tokens() -> None:
    scene = Scene(items=(Item("red apple", "noto", 0.27, 0.71, 0.4),), sign=Sign("CAT", y=0.2))
    made = tidy(scene, 128)
    item, sign = made.items[0], made.sign
    assert sign is not None
    assert (item.x, item.y, item.size) == (0.3125, 0.6875, 0.34375)
    assert (sign.y, sign.height, sign.text) == (0.25, 0.21875, "CAT")
    assert tidy(made, 128) == made
    large = Scene(items=(Item("red apple", "noto", 0.49, 0.52, LARGE),))
    assert tidy(large, 128) == large


def test_what_would_meet_or_be_wrong_stays() -> None:
    near = Scene(items=(Item("cat", "flat", 0.3, 0.5, 0.39), Item("dog", "flat", 0.69, 0.5, 0.39)))
    close = near.with_item(1, Item("dog", "flat", 0.42, 0.5, 0.2))
    assert tidy(near, 128) != near
    assert tidy(close, 128) == close
    small = Scene(items=(Item("cat", "flat", 0.5, 0.5, 0.32),))
    assert tidy(small, 64).items[0].size == 0.1875
    asked = Spec((Need("cat", size="small"),))
    assert tidy(small, 128).items[0].size == 0.34375
    assert tidy(small, 128, 16, asked) == small


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
            free = any(item.size < LARGE for item in old.items) or old.sign is not None
            if free:
                changed[old != new] += 1
        for target in after.targets:
            part = after.parts[target]
            assert not part.spec.failures(sight_of(part.scene))
    assert changed[True] > 0.85 * changed.total()


def test_other_tasks_and_old_caches_are_as_before() -> None:
    plain, tidied = WorldSource(TOKENIZER), WorldSource(TOKENIZER, tidy_share=1.0)
    kinds = Counter()
    for index in range(60):
        before, after = plain.example(index, 1), tidied.example(index, 1)
        kinds[before == after] += TASKS[before.task].group != "drawing"
    assert kinds[True] and not kinds[False]
    assert "tidy_share" not in plain.shown()["world"]
    assert tidied.shown() != plain.shown()
