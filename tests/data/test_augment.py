"""Random choices on the text side of a sample."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextstep.data import augment
from nextstep.data.augment import Shares, augment_edit, choose_caption, edit_pieces
from nextstep.errors import NextStepError

DRAWS = 20_000


def share(hits: int, of: int = DRAWS) -> float:
    return hits / of


def near(found: float, wanted: float, of: int = DRAWS) -> bool:
    """Within four standard deviations of a share over so many draws."""
    return abs(found - wanted) < 4 * (wanted * (1 - wanted) / of) ** 0.5 + 1e-9


def test_pick_follows_weights() -> None:
    rng = random.Random(1)
    found = Counter(augment.pick(rng, "abcd", [1, 0, 6, 3]) for _ in range(DRAWS))
    assert near(share(found["a"]), 0.1)
    assert found["b"] == 0
    assert near(share(found["c"]), 0.6)


def test_a_caption_is_chosen_by_key_and_among_alternatives() -> None:
    captions = {"caption": "own", "caption_all": {"x": "one", "y": ["two", "three"], "z": " "}}
    weights = {"caption": 1.0, "caption_all": 3.0, "absent": 5.0, "off": 0.0}
    rng = random.Random(2)
    found = Counter(choose_caption(captions, weights, rng) for _ in range(DRAWS))
    assert near(share(found["own"]), 0.25)
    assert set(found) <= {"own", "one", "two", "three"}
    assert choose_caption({"caption": ["a"]}, {"caption": 1.0}, rng) == "a"
    for nothing in ({}, {"caption": ""}, {"caption": []}, {"caption": 7}, {"off": "a"}):
        assert choose_caption(nothing, weights, rng) is None


@pytest.mark.parametrize(
    ("caption", "rest"),
    [
        ("The image shows a red Apple on NASA's desk.", "a red Apple on NASA's desk."),
        ("This picture clearly depicts two cats", "two cats"),
        ("In this image, there is a dog.", "a dog."),
        ("in the photo we can see a house", "a house"),
        ("The image is a painting of a bird", "a painting of a bird"),
        ("An image of a bird", "a bird"),
        ("图中展示了一只猫", "一只猫"),
        ("这张图片展示了一只猫", "一只猫"),
        ("画面中是一只狗", "一只狗"),
        ("照片中\uff0c我们可以看到三只鸟", "三只鸟"),
        # What says something stays.
        ("A photo of a cat", "A photo of a cat"),
        ("An oil painting of a fox", "An oil painting of a fox"),
        ("A picture frame hangs on the wall", "A picture frame hangs on the wall"),
        ("The scene is dark", "The scene is dark"),
        ("图书馆里有人", "图书馆里有人"),
        ("The image shows ", "The image shows "),
    ],
)
def test_boilerplate_openers_are_removed(caption: str, rest: str) -> None:
    assert augment.without_opener(caption) == rest
    rng = random.Random(0)
    assert choose_caption({"caption_all": [caption]}, {"caption_all": 1.0}, rng) == rest
    assert choose_caption({"caption": caption}, {"caption": 1.0}, rng) == caption


@given(st.text())
def test_capitals_are_never_lowered(caption: str) -> None:
    assert augment.upper_first(caption).endswith(caption[1:])
    assert augment.without_opener(caption) in caption


def test_templates_wrap_the_caption_as_it_is() -> None:
    rng = random.Random(3)
    templates = ["A sticker: {caption}", "{caption}!"]
    found = {augment.in_template("a {x} {0}", templates, rng) for _ in range(50)}
    assert found == {"A sticker: a {x} {0}", "a {x} {0}!"}
    assert augment.in_template("a", [], rng) == "a"
    for bad in ("no place", "{caption} {caption}"):
        with pytest.raises(NextStepError, match="exactly once"):
            augment.check_templates([bad])


def test_edits_take_their_pictures_from_tags_in_every_form() -> None:
    full = [0, "make it red", 1]
    assert edit_pieces("<image_0>make it red<image_1>", 2) == full
    assert edit_pieces("<image>make it red<image>", 2) == full
    assert edit_pieces("<image_0>make it red", 2) == full
    assert edit_pieces("make it red", 2) == full
    assert edit_pieces("put <image_1> into <image_0>", 3) == ["put ", 1, " into ", 0, 2]
    for wrong in ("<image_0><image_0>", "<image_7>", "<image><image><image>"):
        with pytest.raises(ValueError, match="every picture needs one"):
            edit_pieces(wrong, 2)


def test_an_edit_of_one_source_loses_its_conditions_in_the_released_shares() -> None:
    rng, pieces = random.Random(4), edit_pieces("make it red", 2)
    found: Counter[object] = Counter()
    for _ in range(DRAWS):
        found[tuple(augment_edit(pieces, Shares(), rng))] += 1
    third = 0.2 / 3
    # Without the source; the pictures' place no longer matters.
    assert near(share(found["make it red", 1]), third)
    assert near(share(found[0, 1]), third)
    assert near(share(found[1,]), third), "dropping both leaves the target alone"
    assert near(share(found["make it red", 0, 1]), 0.1 * 0.8)
    assert near(share(found[0, "make it red", 1]), 0.9 * 0.8)
    assert sum(found.values()) == DRAWS
    assert len(found) == 5


def test_an_edit_of_two_sources_loses_one_of_them() -> None:
    rng, pieces = random.Random(5), edit_pieces("put <image_0> into <image_1> now", 3)
    shares = Shares(tags_last=0.0)
    found = Counter(tuple(augment_edit(pieces, shares, rng)) for _ in range(DRAWS))
    assert near(share(found["put ", 0, " into ", 1, " now", 2]), 0.7)
    assert near(share(found["put into ", 1, " now", 2]), 0.3 * 0.3)
    assert near(share(found["put ", 0, " into now", 2]), 0.3 * 0.7)
    assert len(found) == 3


def test_pictures_may_stand_after_the_instruction() -> None:
    pieces = edit_pieces("put <image_0> into <image_1> now", 3)
    shares = Shares(tags_last=1.0, drop_one_source_prob=0.0)
    assert augment_edit(pieces, shares, random.Random(0)) == ["put into now", 0, 1, 2]


@given(st.integers(1, 5), st.integers(0, 2**32))
def test_the_target_always_stays_last(pictures: int, seed: int) -> None:
    pieces = edit_pieces("change it", pictures)
    rng = random.Random(seed)
    assert augment_edit(pieces, Shares(), rng)[-1] == pictures - 1
    assert augment_edit(pieces, Shares.none(), rng) == pieces


def test_shares_are_shares() -> None:
    with pytest.raises(NextStepError, match="tags_last is a share between 0 and 1"):
        Shares(tags_last=1.5)


@given(
    st.lists(st.tuples(st.integers(1, 30), st.booleans()), min_size=1, max_size=12).filter(
        lambda pieces: any(picture for _, picture in pieces)
    ),
    st.integers(1, 150),
    st.integers(0, 2**32),
)
def test_the_window_is_contiguous_fits_and_cannot_grow(
    pieces: list[tuple[int, bool]], room: int, seed: int
) -> None:
    costs, pictures = zip(*pieces, strict=True)
    first, end = augment.fitting_window(costs, pictures, room, random.Random(seed))
    assert any(pictures[first:end])
    used = sum(costs[first:end])
    chunks = augment._chunks(pictures)
    starts = [start for start, _ in chunks]
    assert first in starts, "a picture keeps the text before it"
    if used > room:
        # Not even the first picture with its text fits; the caller sees that.
        assert (first, end) in chunks
        return
    before = next((chunk for chunk in chunks if chunk[1] == first), None)
    after = next((chunk for chunk in chunks if chunk[0] == end), None)
    for neighbour in (before, after):
        if neighbour is not None:
            assert used + sum(costs[slice(*neighbour)]) > room


def test_every_picture_of_a_long_sample_is_seen() -> None:
    costs, pictures = [3, 10] * 8, [False, True] * 8
    seen: Counter[int] = Counter()
    for seed in range(400):
        first, end = augment.fitting_window(costs, pictures, 40, random.Random(seed))
        assert end - first == 6
        seen.update(range(first, end))
    assert all(seen[place] > 20 for place in range(16))
