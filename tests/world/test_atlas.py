"""The drawings that ship: complete, small, at their scale, and the ones the packages draw."""

from __future__ import annotations

import numpy as np
import pytest

from nextstep.world import sources
from nextstep.world.colours import TINTS, colour_shares, painted
from nextstep.world.drawings import (
    ATLAS_FOLDER,
    ATLAS_SIDE,
    atlas,
    atlas_names,
    colour_of,
    faces_a_side,
    from_sets,
    full_drawing,
    sprite,
    visible_on,
)
from nextstep.world.lexicon import TONED, world_objects
from nextstep.world.vocabulary import OBJECTS, STYLES, TONES


def test_it_is_complete_and_small() -> None:
    assert sum(path.stat().st_size for path in ATLAS_FOLDER.iterdir()) <= 12_000_000
    stored = atlas()
    assert list(stored.cells) == atlas_names()
    for style in STYLES:
        for obj in world_objects().values():
            assert stored.has(obj.label, style)
            for tone in TONES:
                assert stored.has(obj.label, style, tone) == (obj.toned and style != "mono")
        assert all(size is None or max(size) == ATLAS_SIDE for size in stored.sizes[style])


def test_drawings_fill_their_outline() -> None:
    for style in STYLES:
        for name in OBJECTS[::24]:
            picture = atlas().drawing(name, style)
            assert picture.getchannel("A").getbbox() == (0, 0, *picture.size)


@pytest.mark.parametrize("style", STYLES)
def test_they_are_what_the_packages_draw(style: str) -> None:
    source = sources.STYLE_PACKAGES[style]
    folder = f"{source.package.replace('/', '__')}-{source.version}"
    if not (sources.cache_dir() / "npm" / folder).exists():
        pytest.skip("nextstep world fetch has not been run here")
    pytest.importorskip("resvg_py")
    toned = [(TONED[0], "dark")] if style != "mono" else []
    for name, tone in [("dog face", None), ("rocket", None), *toned]:
        stored, drawn = atlas().drawing(name, style, tone), from_sets(name, style, tone)
        assert stored.size == drawn.size
        apart = np.asarray(stored.convert("RGBa"), int) - np.asarray(drawn.convert("RGBa"), int)
        assert np.abs(apart).max() <= 1


def test_sprites_are_scaled_and_turned() -> None:
    picture = sprite("fish", "noto", 40)
    assert max(picture.size) == 40
    turned = sprite("fish", "noto", 40, flip=True)
    assert np.array_equal(np.asarray(turned)[:, ::-1], np.asarray(picture))
    whole = sprite("fish", "noto", ATLAS_SIDE)
    assert whole.tobytes() == full_drawing("fish", "noto").tobytes()
    assert faces_a_side("helicopter", "noto")
    assert not faces_a_side("red heart", "flat")


def test_painted_drawings_have_the_colour_that_is_reported() -> None:
    wrong = []
    for style in STYLES:
        for obj in list(world_objects().values())[::7]:
            drawing = np.asarray(sprite(obj.label, style, 48))
            for tint in TINTS:
                shares = colour_shares(painted(drawing, tint))
                shares.pop("skin", None)
                if next(iter(shares)) != tint:
                    wrong.append((obj.word, style, tint, shares))
    assert len(wrong) <= 10, wrong  # of 1720


def test_colour_words_come_from_the_pixels() -> None:
    known = {
        ("lemon", "3d"): "yellow", ("cactus", "flat"): "green", ("red heart", "twemoji"): "red",
        ("eggplant", "flat"): "purple", ("carrot", "flat"): "orange", ("pig face", "flat"): "pink",
        ("dolphin", "noto"): "blue", ("elephant", "twemoji"): "gray", ("skull", "flat"): "white",
        ("hedgehog", "twemoji"): "brown", ("dog face", "mono"): "black", ("rainbow", "noto"): None,
    }  # fmt: skip
    assert {key: colour_of(*key) for key in known} == known
    assert colour_of("banana", "3d", tint="blue") == "blue"


def test_what_can_be_told_from_a_background() -> None:
    assert visible_on("banana", "3d", None, "blue")
    assert not visible_on("banana", "3d", None, "yellow")
    assert not visible_on("dog face", "mono", None, "black")
    assert visible_on("dog face", "mono", "yellow", "black")
    assert not visible_on("dog face", "noto", "red", "red")
