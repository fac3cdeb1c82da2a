"""Every task in every split: true to its words, the same every time, nothing held out leaks."""

from __future__ import annotations

import functools
import hashlib
import importlib
import re
import subprocess
import sys
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from nextstep.errors import NextStepError
from nextstep.world.descriptions import describe
from nextstep.world.editions import editions
from nextstep.world.examples import Example, ImagePart, TextPart
from nextstep.world.lexicon import NUMBERS, world_objects
from nextstep.world.scenes import Scene, changed_region, render
from nextstep.world.spec import detections_of, is_related, region_of
from nextstep.world.splits import (
    SPLITS,
    Phrasings,
    is_held_out,
    is_held_out_pair,
    is_held_out_word,
)
from nextstep.world.tasks import (
    GROUPS,
    PRACTICE,
    TASKS,
    choose_tasks,
    example,
    examples,
    splits_of,
)
from nextstep.world.tasks.next_state_wording import BACK
from nextstep.world.tasks.wording import AT
from tests.world.facts import overlaps, visible_shares

SAMPLES = 12
CASES = [
    (task, split, edition)
    for task in TASKS.values()
    for edition in ("full", "core-48")
    if task.core or edition == "full"
    for split in ("train", *splits_of(task.name, edition))
]


drawn = functools.cache(example)


def made(
    task: str, split: str = "train", count: int = SAMPLES, edition: str = "full"
) -> list[Example]:
    return [drawn(task, seed, split, edition) for seed in range(count)]


def test_every_group_has_its_tasks() -> None:
    assert {task.group for task in TASKS.values()} == set(GROUPS)
    assert abs(sum(GROUPS.values()) - 1) < 1e-9


@pytest.mark.parametrize(
    ("task", "split", "edition"), CASES, ids=lambda v: getattr(v, "name", str(v))
)
def test_targets_satisfy_their_specs(task: object, split: str, edition: str) -> None:
    name = task.name  # type: ignore[attr-defined]
    for one in made(name, split, 4, edition):
        assert one.task == name
        assert one.targets or TASKS[name].group in PRACTICE
        for place in one.targets:
            part = one.parts[place]
            if isinstance(part, ImagePart):
                assert part.spec is not None
                assert part.spec.failures(detections_of(part.scene)) == []
            else:
                assert part.text.strip() in part.answers
            assert one.metadata(place)["tag"] == name
        for scene in one.scenes:
            assert not overlaps(scene)
            assert min(visible_shares(scene), default=1.0) == 1.0
        known = editions()[edition]
        for scene in one.scenes:
            assert {item.name for item in scene.items} <= set(known.objects)
            assert {item.style for item in scene.items} <= set(known.styles)
            assert scene.background.colour in known.backgrounds


@pytest.mark.parametrize("name", TASKS)
def test_words_are_well_formed(name: str) -> None:
    splits = ("train", "held_out_phrasings") if "held_out_phrasings" in TASKS[name].splits else (
        "train",
    )  # fmt: skip
    texts = [one.text for split in splits for one in made(name, split, 30)]
    for text in texts:
        assert not re.search(r"[{}]|  | [,.;?]|None", text), text
        assert not re.search(r"\b[Aa] [aeio]|\b[Aa]n [^aeiouAEIOUh]", text), text
    assert len(set(texts)) > (4 if name == "fill" else 10)


@pytest.mark.parametrize("name", TASKS)
def test_training_sees_nothing_held_out(name: str) -> None:
    for one in made(name, "train", 30):
        for scene in one.scenes:
            assert not any(is_held_out(item.name, item.style) for item in scene.items)
            pairs = combinations([item.name for item in scene.items], 2)
            assert not any(is_held_out_pair(a, b) for a, b in pairs)
            assert scene.sign is None or not is_held_out_word(scene.sign.text)


@pytest.mark.parametrize("name", TASKS)
def test_tests_of_a_split_hold_what_it_is_about(name: str) -> None:
    for split in TASKS[name].splits:
        for one in made(name, split, 6):
            items = [item for scene in one.scenes for item in scene.items]
            if split == "held_out_styles":
                assert any(is_held_out(item.name, item.style) for item in items)
            elif split == "held_out_pairs":
                pairs = combinations({item.name for item in items}, 2)
                if name == "story":  # The friend need not have come yet.
                    continue
                assert any(is_held_out_pair(a, b) for a, b in pairs)
            elif split == "held_out_words" and name != "story":
                signs = [scene.sign.text for scene in one.scenes if scene.sign]
                assert signs
                assert all(is_held_out_word(text) for text in signs)


def test_held_out_phrasings_are_other_sentences() -> None:
    for name in ("fill", "remove", "read_word", "read_style"):

        def said(split: str) -> set[str]:
            texts = [one.text for one in made(name, split, 60)]  # noqa: B023
            hidden = "|".join(
                sorted({t.word for t in world_objects().values()}, key=len, reverse=True)
            )
            return {re.sub(rf"\b({hidden})\b|\".*\"| \S+$", "X", t).lower() for t in texts}

        assert len(said("held_out_phrasings")) == 1
        assert not said("held_out_phrasings") & said("train")


def test_phrasings_hold_one_out_by_their_words() -> None:
    forms = Phrasings("a {x}\nb {x}\nc {x}\nd {x}\ne {x}\nf {x.a}")
    assert forms.held_out not in forms.trained
    assert forms.held_out != "a {x}"
    assert len(forms.trained) == 5
    with pytest.raises(ValueError, match="five other ways"):
        Phrasings("a\nb\nc")
    with pytest.raises(ValueError, match="differ in what they say"):
        Phrasings("a {x}\nb {x}\nc {x}\nd {x}\ne {x}\nf {y}")


MODULES = [
    "captions",
    *(f"tasks.{name}" for name in (
        "changes", "drawing", "editing", "next_state_wording", "reading_wording", "stories",
        "story_wording", "wording",
    )),
]  # fmt: skip


def lists_of_phrasings() -> dict[str, Phrasings]:
    """All lists of what people ask for and are told, by the first form."""
    modules = [importlib.import_module(f"nextstep.world.{name}") for name in MODULES]
    values = [value for module in modules for value in vars(module).values()]
    return {one.forms[0]: one for one in values if isinstance(one, Phrasings)}


def bare_words(form: str) -> list[str]:
    """The words of a form and its signs, without articles; fields without their properties."""
    said = re.sub(r"{(\w+)(?:\.\w+)?}", r" \1_ ", form.lower())
    return [word for word in re.findall(r"\w+|[^\w\s]", said) if word not in ("a", "an", "the")]


@pytest.mark.parametrize("phrasings", lists_of_phrasings().values(), ids=lambda v: v.forms[0])
def test_words_of_a_held_out_phrasing_are_trained_in_others(phrasings: Phrasings) -> None:
    assert len(set(phrasings.forms)) == len(phrasings.forms) >= 14
    trained = [bare_words(form) for form in phrasings.trained]
    for word in filter(str.isalpha, bare_words(phrasings.held_out)):
        assert sum(word in form for form in trained) >= 3, word
    # An article alone does not make it another phrasing.
    assert bare_words(phrasings.held_out) not in trained


def test_held_out_phrasings_stay_the_same() -> None:
    """A new form with a smaller hash would change what the scores of this split are about."""
    told = "\n".join(sorted(one.held_out for one in lists_of_phrasings().values()))
    assert hashlib.sha256(told.encode()).hexdigest()[:16] == "ae0668c3afd9e3ee"


def test_held_out_shares() -> None:
    labels = list(world_objects())
    pairs = list(combinations(labels[::3], 2))
    assert 0.03 < np.mean([is_held_out_pair(a, b) for a, b in pairs]) < 0.07
    assert all(is_held_out_pair(a, b) == is_held_out_pair(b, a) for a, b in pairs[:500])
    assert not is_held_out_pair(labels[0], labels[0])


def digest(count: int) -> str:
    """Everything about some samples of every task."""
    found = hashlib.sha256()
    for name in TASKS:
        for one in (example(name, seed) for seed in range(count)):
            found.update(one.text.encode())
            for scene in one.scenes:
                found.update(render(scene, 64).tobytes())
    return found.hexdigest()


def test_the_same_in_another_process() -> None:
    code = "from tests.world.test_tasks import digest; print(digest(2))"
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert told.stdout.strip() == digest(2)


def test_examples_of_a_test_are_not_those_of_training() -> None:
    tested = {one.text + str(one.scenes) for one in examples("two_objects", "seen", 50)}
    assert len(tested) == 50
    assert not tested & {one.text + str(one.scenes) for one in made("two_objects", "train", 200)}
    assert examples("story", "seen", 2, seed=1) == examples("story", "seen", 2, seed=1)
    assert examples("story", "seen", 2, seed=1) != examples("story", "seen", 2, seed=2)


def boxes_that_differ(before: Scene, after: Scene) -> list[tuple[int, int, int, int]]:
    items = set(before.items) ^ set(after.items)
    boxes = [item.box(128) for item in items]
    if before.sign != after.sign:
        boxes += [sign.box(128) for sign in (before.sign, after.sign) if sign]
    for scene in (before, after):
        if scene.hole:
            left, top, right, bottom = (round(edge * 128) for edge in scene.hole)
            boxes.append((left, top, right, bottom))
    return boxes


@pytest.mark.parametrize(
    "name",
    ["add", "remove", "replace", "move", "resize", "recolour", "style", "skin_tone", "fill",
     "change_word", "turns", "next_state"],
)  # fmt: skip
def test_changes_leave_the_rest_alone(name: str) -> None:
    for one in made(name, "train", 15):
        for place in one.targets:
            part = one.parts[place]
            if not isinstance(part, ImagePart) or part.kept is None:
                continue
            source = one.parts[part.kept]
            assert isinstance(source, ImagePart)
            changed = changed_region(source.scene, part.scene)
            assert changed.any(), one.text
            if source.scene.background != part.scene.background:
                continue
            for left, top, right, bottom in boxes_that_differ(source.scene, part.scene):
                changed[top:bottom, left:right] = False
            assert not changed.any(), one.text


def test_only_targets_of_edits_are_trained() -> None:
    for name in ("add", "style", "combine"):
        for one in made(name):
            shown = [part for part in one.parts if isinstance(part, ImagePart)]
            assert [part.trained for part in shown] == [False] * (len(shown) - 1) + [True]
            assert isinstance(one.parts[-1], ImagePart)


def test_stories_keep_their_characters_and_style() -> None:
    for one in made("story", "train", 40):
        assert 2 <= len(one.scenes) <= 6
        hero = one.scenes[0].items[0]
        for scene in one.scenes:
            assert {item.style for item in scene.items} == {hero.style}
            assert hero.name in [item.name for item in scene.items]
        assert world_objects()[hero.name].word in one.text
        shown = [isinstance(part, ImagePart) for part in one.parts[: 2 * len(one.scenes)]]
        assert shown == [False, True] * len(one.scenes)


def test_what_is_undone_is_as_it_was() -> None:
    undone, back = 0, {*BACK.trained, BACK.held_out}
    for one in made("next_state", "train", 150):
        past: list[Scene] = []
        for before, said, after in zip(one.parts, one.parts[1:], one.parts[2:], strict=False):
            if not (isinstance(before, ImagePart) and isinstance(said, TextPart)):
                continue
            assert isinstance(after, ImagePart)
            if said.text in back:
                assert after.scene == past.pop()
                undone += 1
            else:
                past.append(before.scene)
    assert undone > 5


def test_recall_asks_for_somebody_far_back() -> None:
    for one in made("recall", "train", 40):
        *before, last = one.scenes
        item = last.items[0]
        (place,) = [i for i, scene in enumerate(before) if scene.items[0].name == item.name]
        assert 4 <= len(before) - place <= 8
        assert before[place].items[0] == item


def test_numbers_in_captions_are_counted() -> None:
    for one in made("counting", "train", 30):
        part = one.parts[-1]
        assert isinstance(part, ImagePart)
        for constraint in part.spec.include if part.spec else ():
            assert (
                sum(item.name == constraint.name for item in part.scene.items) == constraint.count
            )
            assert world_objects()[constraint.name].count(constraint.count) in one.text


def test_answers_are_true() -> None:
    for one in made("read_count", "train", 40):
        (scene,), (question, answer) = one.scenes, one.parts[-2:]
        assert isinstance(question, TextPart)
        assert isinstance(answer, TextPart)
        # The longest plural that fits: "striped fish" before "fish".
        asked = max(
            (t for t in world_objects().values() if re.search(rf"\b{t.plural}\b", question.text)),
            key=lambda obj: len(obj.plural),
        )
        number = sum(item.name == asked.label for item in scene.items)
        assert answer.text == f" {'none' if number == 0 else NUMBERS[number]}"
        assert str(number) in answer.answers
    for one in made("read_where", "train", 40):
        (scene,), answer = one.scenes, one.parts[-1]
        assert isinstance(answer, TextPart)
        first, second = scene.items
        ways = AT[region_of(first.x, first.y)]
        side = {"on the left": "left of", "on the right": "right of", "above it": "above",
                "below it": "below"}.get(answer.answers[0])  # fmt: skip
        assert answer.answers[0] in ways or (
            side and is_related((first.x, first.y), (second.x, second.y), side)
        )
    for one in made("read_word", "train", 10):
        (scene,), answer = one.scenes, one.parts[-1]
        assert isinstance(answer, TextPart)
        assert scene.sign
        assert scene.sign.text in answer.answers


def test_weights() -> None:
    usual = choose_tasks()
    assert set(usual) == set(TASKS)
    assert abs(sum(usual.values()) - 1) < 1e-9
    assert "skin_tone" not in choose_tasks(edition="core-48")
    assert choose_tasks({"add": 3, "single": 1, "plain": 0}) == {"add": 0.75, "single": 0.25}
    assert set(choose_tasks(["drawing"])) == {
        t.name for t in TASKS.values() if t.group == "drawing"
    }
    for bad, why in (
        ({"nothing": 1.0}, "no task 'nothing'"),
        ({"add": -1.0}, "negative"),
        ({"add": 0.0}, "no task is left"),
    ):
        with pytest.raises(NextStepError, match=why):
            choose_tasks(bad)


def test_bad_requests_are_named() -> None:
    with pytest.raises(NextStepError, match="no task 'x'"):
        example("x", 0)
    with pytest.raises(NextStepError, match="it has train, seen, held_out_styles"):
        example("single", 0, "held_out_pairs")
    with pytest.raises(NextStepError, match="has no task 'skin_tone'"):
        example("skin_tone", 0, edition="core-48")
    assert set(SPLITS) >= {s for task in TASKS.values() for s in task.splits}


def test_practice_with_letters_says_where_each_one_stands() -> None:
    repeated = 0
    for one in examples("letters", count=40, edition="core-48"):
        (scene,) = one.scenes
        line, whole = describe(scene), render(scene, 64)
        for sign in scene.signs:
            place = {0.125: "top", 0.5: "middle", 0.875: "bottom"}[sign.y]
            assert f'"{sign.text}"' in one.text
            assert f'sign "{sign.text}" {place}, columns ' in line
            alone = render(replace(scene, sign=sign, more_signs=()), 64)
            top = round((sign.y - 0.125) * 64)
            assert (whole[top : top + 16] == alone[top : top + 16]).all()
        repeated += all(len(set(sign.text)) == 1 for sign in scene.signs)
    assert 20 <= repeated <= 34
