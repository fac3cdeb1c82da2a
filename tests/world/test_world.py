"""Vocabulary, drawings and training sequences, on a small made-up emoji set."""

from __future__ import annotations

import json
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nextstep.world import captions, drawings, scenes, sources
from nextstep.world.crops import CropMaker
from nextstep.world.lexicon import Word
from nextstep.world.tasks.wording import BACKGROUND_FRAMES, FRAMES, STYLE_FRAMES
from nextstep.world.vocabulary import (
    COLOURS,
    OBJECTS,
    STYLES,
    background_allowed,
    is_held_out,
    sample_objects,
)


def test_vocabulary() -> None:
    assert len(set(OBJECTS)) == len(OBJECTS) == 144
    assert not background_allowed("mono", "black")
    assert sample_objects(20, 0) == sample_objects(20, 0)
    assert len(set(sample_objects(20, 0))) == 20


def test_held_out_pairs_are_few_and_every_object_keeps_styles() -> None:
    held = [(n, s) for n in OBJECTS for s in STYLES if is_held_out(n, s)]
    assert 0.03 < len(held) / (len(OBJECTS) * len(STYLES)) < 0.08
    for name in OBJECTS:
        assert sum(not is_held_out(name, style) for style in STYLES) >= 3


@pytest.fixture
def made_up_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two packages as npm would leave them: an SVG set with an alias, and a WebP set."""
    monkeypatch.setenv("NEXTSTEP_CACHE", str(tmp_path))
    empty = drawings.Atlas(tmp_path, {}, {})
    monkeypatch.setattr(drawings, "atlas", lambda: empty)
    _forget_drawings()
    npm = tmp_path / "npm"

    def package(name: str, version: str) -> Path:
        folder = npm / f"{name.replace('/', '__')}-{version}"
        folder.mkdir(parents=True)
        return folder

    names = package(*sources.NAMES_PACKAGE)
    (names / "en").mkdir()
    entries = [
        {"label": "red apple", "hexcode": "1F34E", "group": 4},
        {
            "label": "fist",
            "hexcode": "270A",
            "group": 1,
            "skins": [
                {"tone": tone, "hexcode": f"270A-1F3F{'BCDEF'[tone - 1]}"} for tone in range(1, 6)
            ],
        },
        {"label": "red heart", "hexcode": "2764-FE0F", "group": 0},
        {"label": "ewe", "hexcode": "1F411", "group": 3},
        {"label": "flag: X", "hexcode": "1F1FD", "group": 9},
        {"label": "part", "hexcode": "1F3FB"},
    ]
    (names / "en" / "data.json").write_text(json.dumps(entries))
    square = '<path fill="{}" d="M2 4h12v8H2z"/>'
    icons = {
        "width": 16,
        "height": 16,
        "icons": {
            "apple": {"body": square.format("#f00")},
            "heart": {"body": square.format("currentColor")},
        },
        "aliases": {"sheep": {"parent": "apple"}},
    }
    chars = {"1f34e": "apple", "2764": "heart", "1f411": "sheep"}
    for style in ("noto", "twemoji", "openmoji", "blob"):
        source = sources.STYLE_PACKAGES[style]
        folder = package(source.package, source.version)
        (folder / "icons.json").write_text(json.dumps(icons))
        # The "blob" set has no table of its own and finds names through the others.
        (folder / "chars.json").write_text(json.dumps({} if style == "blob" else chars))
    source = sources.STYLE_PACKAGES["3d"]
    folder = package(source.package, source.version) / "assets"
    folder.mkdir()
    picture = Image.new("RGBA", (64, 64))
    picture.paste((0, 0, 255, 255), (16, 8, 48, 56))
    picture.save(folder / "2764-fe0f.webp", lossless=True)
    yield tmp_path
    _forget_drawings()


def _forget_drawings() -> None:
    for cached in (
        sources.emoji_names, sources._icon_names_by_code, sources.toned_codes,
        drawings.emoji_set, drawings.full_drawing, drawings.sprite,
    ):  # fmt: skip
        cached.cache_clear()


def test_names_and_sets(made_up_sets: Path) -> None:
    assert sources.emoji_names() == {
        "red apple": "1f34e", "fist": "270a", "red heart": "2764", "ewe": "1f411",
        "sheep": "1f411",
    }  # fmt: skip
    assert sources.toned_codes() == {"fist": tuple(f"270a-1f3f{end}" for end in "bcdef")}
    for style in ("noto", "blob"):
        assert "1f34e" in sources.EmojiSet(style)
        assert "1f999" not in sources.EmojiSet(style)
    assert [n for n, _ in sources.all_drawings("3d", 20)] == ["red heart"]


def test_drawings_are_cut_to_their_outline(made_up_sets: Path) -> None:
    apple = sources.EmojiSet("noto").draw("1f34e", 60)
    assert apple.size == (60, 40)
    assert apple.getpixel((30, 20)) == (255, 0, 0, 255)
    assert sources.EmojiSet("noto").draw("1f411", 60).size == (60, 40)  # through the alias
    assert sources.EmojiSet("noto").draw("2764", 60).getpixel((30, 20))[:3] == (27, 27, 27)
    assert sources.EmojiSet("3d").draw("2764", 48).size == (32, 48)
    with pytest.raises(KeyError, match="no emoji 1f999"):
        sources.EmojiSet("3d").draw("1f999", 10)


def test_a_scene_is_centred_on_its_colour(made_up_sets: Path) -> None:
    picture = scenes.single("red apple", "noto", "blue", 100)
    assert picture.size == (100, 100)
    assert picture.getpixel((2, 2)) == COLOURS["blue"]
    assert picture.getpixel((50, 50)) == (255, 0, 0)


def test_an_atlas_holds_what_the_sets_draw(made_up_sets: Path, tmp_path: Path) -> None:
    names, said = ["red apple", "ewe", "red heart"], []
    (tmp_path / "atlas").mkdir()
    foreign = tmp_path / "atlas" / "video.mp4.part"
    foreign.write_bytes(b"another program's")
    drawings.build_atlas(tmp_path / "atlas", names, ["noto", "blob"], said.append)
    stored = drawings.Atlas.open(tmp_path / "atlas")
    assert sorted(p.name for p in stored.folder.iterdir()) == [
        "blob.webp", "index.json", "noto.webp", "video.mp4.part",
    ]  # fmt: skip
    assert len(said) == 2
    for style in ("noto", "blob"):
        for name in names:
            there, drawn = stored.drawing(name, style), drawings.from_sets(name, style)
            assert there.size == drawn.size
            assert there.getchannel("A").tobytes() == drawn.getchannel("A").tobytes()
            # Lossless, but colours under full transparency are not kept.
            assert there.convert("RGBa").tobytes() == drawn.convert("RGBa").tobytes()
    assert not stored.has("red apple", "3d")
    with pytest.raises(KeyError, match="no red apple in style 3d"):
        stored.drawing("red apple", "3d")


def test_npm_absent_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXTSTEP_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(RuntimeError, match="npm, which is not installed"):
        sources.fetch_package("nothing", "1.0.0")
    assert not list((tmp_path / "npm").iterdir())


def test_a_set_that_another_process_fetched_meanwhile_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXTSTEP_CACHE", str(tmp_path))
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "icons.json").write_text("{}")

    def pack(command: list[str], **_: object) -> None:
        scratch = Path(command[command.index("--pack-destination") + 1])
        with tarfile.open(scratch / "set.tgz", "w:gz") as tar:
            tar.add(tmp_path / "package", "package")
        other = tmp_path / "npm" / "set-1.0.0"
        other.mkdir()
        (other / "icons.json").write_text("{}")

    monkeypatch.setattr(sources.subprocess, "run", pack)
    assert (sources.fetch_package("set", "1.0.0") / "icons.json").exists()
    assert [path.name for path in (tmp_path / "npm").iterdir()] == ["set-1.0.0"]


def test_captions_name_everything() -> None:
    rng = random.Random(0)
    said = {captions.caption(rng, "fox", "noto", "red") for _ in range(300)}
    assert len(said) == len(captions.CAPTIONS)
    assert all("fox" in text for text in said)
    assert captions.default_caption("fox", "3d", "red") == "fox, 3d style, red background"
    assert "mono" in captions.style_edit(rng, "mono")
    assert "pink" in captions.background_edit(rng, "pink")


def test_single_pictures_leave_held_out_phrasings_out() -> None:
    """What tests ask in words that training never used is not said about single pictures either."""
    rng = random.Random(0)
    forms = {form.replace("name", "p").replace("{colour}", "{bg}") for form, _ in captions.CAPTIONS}
    held_out = {FRAMES.held_out, STYLE_FRAMES.held_out, BACKGROUND_FRAMES.held_out}
    assert not forms & {form.replace("{bg.a}", "a {bg}") for form in held_out}
    said = {captions.style_edit(rng, "3d") for _ in range(300)}
    assert said == {form.format(style="3d") for form in captions.STYLE_EDITS.trained}
    said = {captions.background_edit(rng, "orange") for _ in range(300)}
    trained = captions.BACKGROUND_EDITS.trained
    assert said == {form.format(bg=Word("orange")) for form in trained}
    assert captions.BACKGROUND_EDITS.held_out.format(bg=Word("orange")) not in said


def test_crops_are_a_function_of_the_step() -> None:
    icons = np.random.default_rng(0).integers(0, 255, (5, 16, 16, 4), dtype=np.uint8)
    photo = Image.effect_noise((90, 70), 60).convert("RGB")
    maker = CropMaker(icons, [photo], size=32, batch=12)
    one, again, other = maker(3), maker(3), maker(4)
    assert one.shape == (12, 3, 32, 32)
    assert float(one.min()) >= -1
    assert float(one.max()) <= 1
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
