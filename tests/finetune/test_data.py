"""A folder of pictures becomes captioned samples with latents; what is wrong is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from nextstep.data.documents import SampleError
from nextstep.data.prepare.contact_sheet import comparison
from nextstep.data.shard_writer import RawSample
from nextstep.data.shards import ShardSet
from nextstep.data.sources import ShardSource
from nextstep.engine.pretrained import Parts
from nextstep.engine.request import SourceLimits
from nextstep.engine.settings import ModelDefaults
from nextstep.errors import NextStepError
from nextstep.finetune.data import (
    SET_NAME,
    build_samples,
    captioned,
    count_cut,
    file_words,
    open_samples,
    shapes,
    that_fit,
)
from nextstep.image.sizes import filling_grids, kept_share
from tests.data.test_webdataset import shard
from tests.data.toys import picture as encoded_picture


def noise_png() -> bytes:
    return encoded_picture(1)


def picture(path: Path, colour: str = "red", size: tuple[int, int] = (40, 40)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def texts(folder: Path, caption: str | None = None) -> list[str]:
    items = list(captioned(folder, caption))
    assert all(isinstance(item, RawSample) for item in items), items
    return [str(item.record["caption"]) for item in items]


@pytest.mark.parametrize(
    ("stem", "words"),
    [("red_apple-02", "red apple"), ("a-cat (3)", "a cat"), ("007", ""), ("owl", "owl"),
     ("two__owls", "two owls"), ("mp3 player", "mp3 player")],
)  # fmt: skip
def test_words_of_file_names(stem: str, words: str) -> None:
    assert file_words(stem) == words


def test_captions_come_from_texts_names_or_a_template(tmp_path: Path) -> None:
    picture(tmp_path / "red_apple.png")
    picture(tmp_path / "more" / "owl-2.jpg")
    assert texts(tmp_path) == ["owl", "red apple"]
    assert texts(tmp_path, "{name}, my style") == ["owl, my style", "red apple, my style"]
    assert texts(tmp_path, "my cat") == ["my cat", "my cat"]
    with pytest.raises(NextStepError, match=r"has a text for \{caption\}"):
        captioned(tmp_path, "{caption}, my style")
    (tmp_path / "red_apple.txt").write_text("an apple\n")
    (tmp_path / "more" / "owl-2.json").write_text(json.dumps({"caption": "an owl"}))
    assert texts(tmp_path) == ["an owl", "an apple"]
    assert texts(tmp_path, "{caption} ({name})") == ["an owl (owl)", "an apple (red apple)"]


def test_what_has_no_caption_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "12.png")
    (item,) = captioned(tmp_path)
    assert isinstance(item, SampleError)
    assert "12.png" in str(item) and "no words" in str(item)
    picture(tmp_path / "apple.png")
    (tmp_path / "apple.txt").write_text("an apple")
    broken = [item for item in captioned(tmp_path) if isinstance(item, SampleError)]
    assert [error.key for error in broken] == ["12.png"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"folder": "none"}, "there is no folder"),
        ({"folder": "empty"}, "holds no pictures"),
        ({"folder": "full", "caption": "  "}, "the caption is empty"),
        ({"folder": "full", "caption": "x", "edits": True}, "leave --caption out"),
        ({"folder": "empty", "edits": True}, "holds no texts"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path: Path, given: dict, said: str) -> None:
    (tmp_path / "empty").mkdir()
    picture(tmp_path / "full" / "a.png")
    with pytest.raises(NextStepError, match=said):
        captioned(tmp_path / given.pop("folder"), **given)


def test_samples_are_encoded_once_and_lose_their_text_now_and_then(
    tmp_path: Path, tiny_parts: Parts
) -> None:
    for number, colour in enumerate(("red", "blue", "green")):
        picture(tmp_path / "in" / f"thing {'abc'[number]}.png", colour)
    (tmp_path / "in" / "thing d.png").write_bytes(b"no picture")
    report = build_samples(captioned(tmp_path / "in"), tmp_path, False)
    assert (report.samples, report.reasons) == (3, {"corrupt picture": 1})
    samples = open_samples(tmp_path, tiny_parts, 0.3, shapes(tiny_parts))
    plain = samples.source.source
    assert plain.pictures(plain.document(1, 5))[0].shape == (32, 32, 3)  # the tiny model's size
    tokens = samples.source.pictures(samples.source.document(1, 5))
    assert tokens[0].shape == (4, 64)
    lengths = [len(samples.source.document(i, seed)) for i in range(3) for seed in range(100)]
    assert max(lengths) == samples.longest
    assert 0.2 < np.mean(np.array(lengths) < samples.longest) < 0.4
    again = open_samples(tmp_path, tiny_parts, 0.3, shapes(tiny_parts))
    found = again.source.pictures(again.source.document(1, 5))
    assert np.array_equal(found[0], tokens[0])


def test_a_caption_that_is_too_long_is_left_out_and_named(
    tmp_path: Path, tiny_parts: Parts
) -> None:
    for name, caption in (("a", "an apple"), ("b", "a red apple " * 200), ("c", "a pear")):
        picture(tmp_path / "in" / f"{name}.png")
        (tmp_path / "in" / f"{name}.txt").write_text(caption)
    report = build_samples(
        that_fit(captioned(tmp_path / "in"), tiny_parts, shapes(tiny_parts)), tmp_path, False
    )
    assert report.samples == 2
    assert [(error.key, error.reason) for error in report.broken] == [("b.png", "caption too long")]
    assert "this model reads at most 256" in str(report.broken[0])
    assert open_samples(tmp_path, tiny_parts, 0.1, shapes(tiny_parts)).longest <= 256


def test_only_long_captions_are_refused_by_name(tmp_path: Path, tiny_parts: Parts) -> None:
    picture(tmp_path / "in" / "a.png")
    with pytest.raises(NextStepError, match=r"none of 1 samples .* a.png: caption too long"):
        items = that_fit(
            captioned(tmp_path / "in", "a red apple " * 200), tiny_parts, shapes(tiny_parts)
        )
        build_samples(items, tmp_path, False)


def test_captions_come_from_tables_and_shards(tmp_path: Path) -> None:
    picture(tmp_path / "table" / "x 1.png")
    (tmp_path / "table" / "metadata.csv").write_text("file_name,text\nx 1.png,a red apple\n")
    assert texts(tmp_path / "table") == ["a red apple"]
    assert texts(tmp_path / "table", "{caption} ({name})") == ["a red apple (x)"]
    assert texts(tmp_path / "table", "{name}, my style") == ["x, my style"]
    (tmp_path / "tars").mkdir()
    shard(tmp_path / "tars" / "a.tar", {"k.1.png": noise_png(), "k.1.txt": b"a pear"})
    assert texts(tmp_path / "tars") == ["a pear"]
    assert texts(tmp_path / "tars" / "a.tar", "{caption}, my style") == ["a pear, my style"]


def test_stray_texts_do_not_switch_to_captions(tmp_path: Path) -> None:
    picture(tmp_path / "red_apple.png")
    (tmp_path / "LICENSE.txt").write_text("free")
    (tmp_path / "notes.json").write_text("[]")
    assert texts(tmp_path) == ["red apple"]
    with pytest.raises(NextStepError, match=r"no picture in .* has a text for \{caption\}"):
        captioned(tmp_path, "{caption}, my style")


def test_hidden_files_are_no_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "red_apple.png")
    (tmp_path / "._red_apple.png").write_bytes(b"a resource fork")
    assert texts(tmp_path, "my cat") == ["my cat"]


def of_size(parts: Parts, height: int, width: int, side: int = 0) -> Parts:
    config = replace(parts.model.config, image_position_side=side)
    model = SimpleNamespace(config=config)
    return parts._replace(defaults=ModelDefaults(height, width), model=model)


def test_shapes_follow_the_model(tiny_parts: Parts) -> None:
    assert shapes(of_size(tiny_parts, 512, 512)).areas == (512,)
    assert shapes(of_size(tiny_parts, 128, 128)).grids == ((8, 8),)
    assert shapes(of_size(tiny_parts, 512, 256)).grids == ((32, 16),)
    assert shapes(of_size(tiny_parts, 512, 512), "crop").grids == ((32, 32),)


@pytest.mark.parametrize("edits", [False, True])
def test_kept_aspects_stay_inside_what_the_model_reads(tiny_parts: Parts, edits: bool) -> None:
    model = of_size(tiny_parts, 128, 128, side=8)
    options = shapes(model, None if edits else "aspect", edits)
    limits = SourceLimits(16, 128 * 128, 128)
    for width, height in ((400, 300), (300, 400), (1920, 1080), (1080, 1920), (512, 512)):
        rows, columns = options.grid(height, width)
        assert max(rows, columns) == 8 and rows * columns <= 64
        tall, wide = limits.fitted(height, width)
        assert abs(rows - tall // 16) <= 1 and abs(columns - wide // 16) <= 1
        # With eight tokens a side 16:9 is 8x4 or 8x5.
        assert kept_share(height, width, (rows, columns)) > 0.85


@pytest.mark.parametrize(("area", "side"), [(4, 4), (64, 8), (100, 100), (256, 20), (7, 3)])
def test_filling_grids_have_no_room_left(area: int, side: int) -> None:
    grids = filling_grids(area, side)
    assert grids and {(c, r) for r, c in grids} == set(grids)
    for rows, columns in grids:
        assert max(rows, columns) <= side and rows * columns <= area
        room_down = rows < side and (rows + 1) * columns <= area
        room_across = columns < side and rows * (columns + 1) <= area
        assert not (room_down and room_across)
        assert max(rows, columns) <= 4 * min(rows, columns)


def test_whole_pictures_are_kept_or_cut_as_asked(tmp_path: Path, tiny_parts: Parts) -> None:
    """A white border on the short sides is cut away, or kept in a wide grid."""
    wide = Image.new("RGB", (96, 32), "white")
    wide.paste("red", (32, 0, 64, 32))
    (tmp_path / "in").mkdir()
    wide.save(tmp_path / "in" / "a wide thing.png")
    build_samples(captioned(tmp_path / "in"), tmp_path, False)
    shards = ShardSet(tmp_path / "data", SET_NAME)
    found = {}
    for fit in ("crop", "aspect"):
        options = shapes(tiny_parts, fit)
        source = ShardSource(shards, shards.kind, tiny_parts.text_tokenizer, options)
        found[fit] = source.pictures(source.document(0, 0))[0]
        assert count_cut(shards, options) == (fit == "crop")
    assert (found["crop"][8:-8, 8:-8] == (255, 0, 0)).all()
    assert found["aspect"].shape[1] > found["aspect"].shape[0]
    assert (found["aspect"][:, [0, -1]] == 255).all()


def test_a_comparison_has_a_column_for_every_text() -> None:
    rows = [(name, [Image.new("RGB", (32, 32), name)] * 3) for name in ("red", "blue")]
    wide = comparison(rows, ["a", "b", "c"])
    high = comparison(rows, ["a", "b", "c"], across=2)
    assert high.width < wide.width and high.height > wide.height
    colours = {colour for _, colour in wide.getcolors(1 << 16)}
    assert {(255, 0, 0), (0, 0, 255)} <= colours
