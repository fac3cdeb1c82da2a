"""Pictures of scenes, and the exact facts about them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextstep.text.wording import join_words
from nextstep.world import layout
from nextstep.world.draw import Draw
from nextstep.world.lexicon import world_objects
from nextstep.world.scenes import (
    Background,
    Scene,
    SceneItem,
    Sign,
    changed_region,
    render,
    single,
)
from nextstep.world.signs import WORDS, is_held_out_word
from nextstep.world.spec import (
    REGIONS,
    RELATIONS,
    Constraint,
    Detection,
    Detections,
    Spec,
    detections_of,
    exact_spec,
    is_related,
    region_of,
)
from nextstep.world.vocabulary import COLOURS
from tests.world.facts import overlaps, visible_shares

DOG = SceneItem("dog face", "noto", 0.3, 0.4, 0.4)
CAT = SceneItem("cat face", "noto", 0.75, 0.6, 0.3, tint="blue")


def test_a_scene_is_its_background_and_its_boxes() -> None:
    scene = Scene(Background("green"), (DOG, CAT))
    pixels = render(scene, 128)
    assert pixels.shape == (128, 128, 3)
    assert pixels.dtype == np.uint8
    drawn = np.any(pixels != COLOURS["green"], axis=-1)
    for item in scene.items:
        left, top, right, bottom = item.box(128)
        inside = drawn[top:bottom, left:right]
        # The box is tight: something is drawn at each of its edges, or one pixel within.
        for edge in (inside[:2], inside[-2:], inside[:, :2], inside[:, -2:]):
            assert edge.any()
        drawn[top:bottom, left:right] = False
    assert not drawn.any()


def test_size_and_place_are_shares() -> None:
    scene = Scene(Background("white"), (DOG, CAT))
    for large, small in zip(
        detections_of(scene, 128).objects, detections_of(scene, 64).objects, strict=True
    ):
        assert np.allclose(large.box, small.box, atol=1.5 / 64)


def test_backgrounds() -> None:
    assert (render(Scene(Background("pink")), 16) == COLOURS["pink"]).all()
    fading = render(Scene(Background("red", "blue")), 32)
    assert tuple(fading[0, 5]) == COLOURS["red"]
    assert tuple(fading[-1, 5]) == COLOURS["blue"]
    assert (fading == fading[:, :1]).all()


def test_holes_and_grey() -> None:
    whole = Scene(Background("blue"), (DOG,))
    holed = replace(whole, hole=(0.25, 0.25, 0.5, 0.75))
    changed = changed_region(whole, holed)
    assert changed[32:96, 32:64].mean() > 0.95
    changed[32:96, 32:64] = False
    assert not changed.any()
    grey = render(replace(whole, grey=True))
    assert (grey == grey[..., :1]).all()


def test_signs_fit_and_differ() -> None:
    seen = set()
    for text in ("A", "GO", "HELLO", "WWWWWWWW"):
        for size in (64, 128):
            picture = Sign(text).picture(size)
            assert picture.height == round(0.3 * size)
            assert picture.width <= round(0.92 * size)
        seen.add(picture.tobytes())
    assert len(seen) == 4
    assert all(1 <= len(word) <= 8 and word.isupper() for word in WORDS)
    assert 0.05 < np.mean([is_held_out_word(word) for word in WORDS]) < 0.15


def test_visible_shares_count_what_covers() -> None:
    apart = Scene(Background(), (DOG, CAT))
    assert visible_shares(apart) == [1.0, 1.0]
    behind = Scene(Background(), (DOG, replace(DOG, name="cat face")))
    shares = visible_shares(behind)
    assert shares[0] < 0.3
    assert shares[1] == 1.0
    half_out = visible_shares(Scene(Background(), (replace(DOG, x=0.0),)))[0]
    assert 0.4 < half_out < 0.6
    under_sign = Scene(Background(), (DOG,), Sign("WATER", 0.3, 0.4))
    assert visible_shares(under_sign)[0] < 0.6
    assert overlaps(behind)
    assert not overlaps(apart)


def test_singles_are_unchanged() -> None:
    picture = np.asarray(single("dog face", "noto", "blue", 64))
    assert np.array_equal(
        picture, render(Scene(Background("blue"), (SceneItem("dog face", "noto"),)), 64)
    )


@given(st.integers(0, 2**32), st.integers(1, 7))
def test_arrangements_do_not_overlap(seed: int, count: int) -> None:
    places = layout.spread(Draw(seed).rng, count)
    assert len(places) == count
    for i, (x, y, size) in enumerate(places):
        assert min(x, y) - size / 2 >= -1e-9
        assert max(x, y) + size / 2 <= 1 + 1e-9
        for u, v, other in places[:i]:
            assert max(abs(x - u), abs(y - v)) >= (size + other) / 2 - 1e-9


@given(st.integers(0, 2**32), st.sampled_from(RELATIONS))
def test_related_places_are_related(seed: int, kind: str) -> None:
    first, second = layout.related(Draw(seed).rng, kind)
    assert [k for k in RELATIONS if is_related(first[:2], second[:2], k)] == [kind]


def test_regions_are_the_nine_thirds() -> None:
    assert [region_of(x, y) for x, y in REGIONS.values()] == list(REGIONS)
    assert layout.beside("middle", "left of") == "left"
    assert layout.beside("top", "above") is None


def test_specs_say_what_fails() -> None:
    scene = Scene(Background("green"), (DOG, CAT))
    detections = detections_of(scene)
    exact = exact_spec(scene, avoid=("fox", "dog face"))
    assert exact.failures(detections) == []
    assert exact.exclude == ("fox",)
    spec = Spec(
        (Constraint("dog face", relation=("left of", 1)), Constraint("cat face", colour="blue")),
        style="noto", background=("green",),
    )  # fmt: skip
    assert spec.failures(detections) == []
    moved = Scene(Background("red"), (replace(DOG, x=0.9), replace(CAT, tint="red", x=0.2)))
    wrong = spec.failures(detections_of(moved))
    assert wrong == [
        "1 dog face asked, 0 right", "1 cat face asked, 0 right", "background red",
    ]  # fmt: skip
    crowded = Detections(
        (*detections.objects, Detection("fox", (0, 0, 0.1, 0.1))), ("green",), "noto"
    )
    assert exact.failures(crowded) == ["fox should not be there", "3 objects in all"]
    assert spec.metadata("position", "words")["include"][0] == {
        "class": "dog", "count": 1, "position": ["left of", 1],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("label", "one", "two"),
    [
        ("dog face", "a dog", "two dogs"),
        ("scissors", "a pair of scissors", "two pairs of scissors"),
        ("unicorn", "a unicorn", "two unicorns"),
        ("flying saucer", "a UFO", "two UFOs"),
        ("hourglass done", "an hourglass", "two hourglasses"),
        ("octopus", "an octopus", "two octopuses"),
        ("french fries", "a box of fries", "two boxes of fries"),
    ],
)
def test_words_of_objects(label: str, one: str, two: str) -> None:
    obj = world_objects()[label]
    assert (obj.a(), obj.count(2)) == (one, two)


def test_grammar() -> None:
    found = world_objects()
    assert len(found) == len({obj.word for obj in found.values()}) == 300
    assert sum(obj.core for obj in found.values()) == 144
    assert found["scissors"].a("orange") == "an orange pair of scissors"
    assert found["dog face"].the("big blue") == "the big blue dog"
    assert join_words(["a", "b", "c"]) == "a, b and c"
