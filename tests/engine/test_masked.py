"""Edits inside a mask and pictures sampled anew in part: everything else stays, byte for byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nextstep.engine.engine import Engine
from nextstep.engine.pretrained import Parts
from nextstep.engine.reproduce import replay
from nextstep.engine.results import GeneratedPicture
from nextstep.engine.scheduler import Scheduler
from nextstep.engine.state import PictureState
from nextstep.errors import NextStepError
from nextstep.image.masks import feathered, fit_mask, read_mask, touched
from nextstep.pipeline import NextStepPipeline
from tests.cli.test_commands import nextstep
from tests.engine.reference import reference_tokens

BOX = (20, 5, 30, 28)
"""Left, top, right, bottom: touches both tokens of the second of two columns."""
TALL = (32, 48)


def noise(width: int = 32, height: int = 32) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def clear(box: tuple[int, int, int, int] = BOX, size: tuple[int, int] = (32, 32)) -> Image.Image:
    mask = Image.new("RGBA", size, (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), box)
    return mask


def marked(box: tuple[int, int, int, int] = BOX, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    return fit_mask(read_mask(clear(box, size)), size, size[1], size[0])


@pytest.fixture(scope="module")
def engine(tiny_parts: Parts) -> Engine:
    return Engine.of_parts(tiny_parts)


def finish(engine: Engine, ticket: int) -> tuple[GeneratedPicture, torch.Tensor]:
    ends = {e.ticket: e for e in engine.run_until_idle() if e.kind == "finished"}
    picture = ends[ticket].picture
    assert picture is not None
    return picture, ends[ticket].tokens


def resumed(engine: Engine, state: PictureState) -> int:
    return engine.submit(state.request, state)


def outside_equal(one: Image.Image, other: Image.Image, mask: np.ndarray) -> bool:
    return bool((np.asarray(one)[~mask] == np.asarray(other)[~mask]).all())


def test_masks_mark_by_transparency_or_by_light() -> None:
    grey = Image.new("L", (4, 4), 0)
    grey.putpixel((1, 2), 255)
    assert np.argwhere(np.asarray(read_mask(grey))).tolist() == [[2, 1]]
    layered = clear((1, 2, 2, 3), (4, 4))
    assert np.argwhere(np.asarray(read_mask(layered))).tolist() == [[2, 1]]
    assert touched(marked(), 16).tolist() == [False, True, False, True]
    # A pixel may change when any part of it was marked.
    assert fit_mask(read_mask(grey), (4, 4), 2, 2).tolist() == [[False, False], [True, False]]


def test_pipeline_keeps_everything_outside_the_mask(tiny_pipeline: NextStepPipeline) -> None:
    source = noise()
    for many in (1, 3):
        made = tiny_pipeline.edit(source, "make it blue", mask=clear(), num_images=many, seed=4)
        for picture in made:
            assert picture.image.size == source.size
            assert outside_equal(picture.image, source, marked())
            assert not outside_equal(picture.image, source, ~marked())
    assert made[0].image.tobytes() != made[1].image.tobytes()
    again = replay(tiny_pipeline, made[0].settings, [source], clear())
    assert again.image.tobytes() == made[0].image.tobytes()
    with pytest.raises(NextStepError, match="--mask FILE"):
        replay(tiny_pipeline, made[0].settings, [source])
    with pytest.raises(NextStepError, match="inside another mask"):
        replay(tiny_pipeline, made[0].settings, [source], clear((0, 0, 4, 4)))


def test_engine_keeps_latents_and_equals_the_pipeline(
    engine: Engine, tiny_pipeline: NextStepPipeline
) -> None:
    request = engine.request("make it blue", [noise()], mask=clear(), seed=4)
    other = engine.request("two cats", seed=1)
    tickets = engine.submit(request), engine.submit(other)
    ends = {e.ticket: e for e in engine.run_until_idle() if e.kind == "finished"}
    picture, tokens = ends[tickets[0]].picture, ends[tickets[0]].tokens
    assert picture is not None
    sampled = touched(marked(), 16)
    assert torch.equal(tokens[~sampled], request.sources[0].tokens[~sampled])
    assert not torch.isclose(tokens[sampled], request.sources[0].tokens[sampled]).all(1).any()
    alone = finish(engine, engine.submit(request))[0]
    assert alone.png() == picture.png()
    plain = tiny_pipeline.edit(noise(), "make it blue", mask=clear(), seed=4)[0]
    apart = np.abs(np.asarray(plain.image).astype(int) - np.asarray(picture.image))
    assert apart.max() <= 1
    assert plain.settings["mask"] == picture.settings["mask"]


def test_given_tokens_stand_as_if_they_had_been_sampled(tiny_parts: Parts) -> None:
    """The tokens between given ones are those of a picture that sampled all, with its own draws."""
    engine = Engine.of_parts(tiny_parts)
    request = engine.request("a red apple", height=64, width=64, seed=2)
    _, whole = finish(engine, engine.submit(request))
    state = engine.state(request, whole)
    mask = np.zeros((64, 64), dtype=bool)
    for left, top in ((16, 0), (32, 16), (0, 48), (48, 48)):
        mask[top : top + 16, left : left + 16] = True
    same = state.resample(Image.new("RGB", (64, 64)), mask)
    _, again = finish(engine, resumed(engine, same))
    assert torch.equal(again, whole)
    job = same.request.sequence(engine.text_tokenizer, 256)
    plain = reference_tokens(engine.model, job)
    assert torch.allclose(plain, whole, atol=1e-4)


def test_a_region_is_sampled_anew(engine: Engine, tmp_path: Path) -> None:
    request = engine.request("a red apple", height=48, width=32, seed=2)
    picture, tokens = finish(engine, engine.submit(request))
    state = engine.state(request, tokens)
    new = state.resample(picture.image, marked(BOX, TALL), prompt="two cats", seed=9, guidance=3.0)
    new.save(tmp_path / "state")
    made, again = finish(engine, resumed(engine, PictureState.load(tmp_path / "state")))
    sampled = touched(marked(BOX, TALL), 16)
    assert torch.equal(again[~sampled], tokens[~sampled])
    assert outside_equal(made.image, picture.image, marked(BOX, TALL))
    assert (made.settings["seed"], made.settings["prompt"]) == (9, "two cats")
    assert made.settings["origin"].startswith("part sampled anew of the picture ")
    # What was never drawn is sampled too.
    part = engine.state(request, tokens[:4])
    made, again = finish(
        engine, resumed(engine, part.resample(picture.image, marked(BOX, TALL), seed=9))
    )
    assert torch.equal(again[[0, 2]], tokens[[0, 2]])
    assert not torch.equal(again[4], tokens[4])
    with pytest.raises(NextStepError, match="is empty"):
        state.resample(picture.image, np.zeros((48, 32), dtype=bool))
    with pytest.raises(NextStepError, match="differ in size"):
        state.resample(picture.image, np.ones((32, 32), dtype=bool))


def test_forks_say_where_they_come_from(engine: Engine, tiny_pipeline: NextStepPipeline) -> None:
    request = engine.request("a red apple", seed=2)
    picture, tokens = finish(engine, engine.submit(request))
    state = engine.state(request, tokens)
    same = finish(engine, resumed(engine, state.fork(1, seed=2)))[0]
    assert same.png() == picture.png()
    other = finish(engine, resumed(engine, state.fork(1, seed=3)))[0]
    with pytest.raises(NextStepError, match="is a fork from row 1 of the picture"):
        replay(tiny_pipeline, other.settings)


def test_change_fades_in_from_the_border_of_its_mask(
    tiny_pipeline: NextStepPipeline, tmp_path: Path
) -> None:
    source, asked = noise(), {"mask": clear(), "seed": 4}
    (hard,) = tiny_pipeline.edit(source, "make it blue", **asked)
    (soft,) = tiny_pipeline.edit(source, "make it blue", **asked, mask_feather=3)
    before, new, made = (np.asarray(one).astype(float) for one in (source, hard.image, soft.image))
    share = feathered(marked(), 3)[..., None]
    assert outside_equal(source, soft.image, marked())
    assert np.abs(made - (before + share * (new - before))).max() <= 0.5
    assert soft.settings["mask_feather"] == 3 and "mask_feather" not in hard.settings
    again = replay(tiny_pipeline, soft.settings, [source], mask=clear())
    assert again.image.tobytes() == soft.image.tobytes()
    with pytest.raises(NextStepError, match="no effect on an edit without a mask"):
        tiny_pipeline.edit(source, "make it blue", mask_feather=3)
    with pytest.raises(NextStepError, match="no effect on a picture without source"):
        tiny_pipeline.generate("an apple", mask_feather=3)
    with pytest.raises(NextStepError, match="between 0 and 256"):
        tiny_pipeline.edit(source, "make it blue", **asked, mask_feather=257)


def test_masks_are_checked(tiny_pipeline: NextStepPipeline, engine: Engine) -> None:
    for mask, word in (
        (clear(size=(33, 32)), "the mask has 33x32 pixels and its picture 32x32"),
        (clear((0, 0, 0, 0)), "marks nothing"),
    ):
        with pytest.raises(ValueError, match=word):
            tiny_pipeline.edit(noise(), "a", mask=mask)
    with pytest.raises(NextStepError, match="keeps its source's size of 32x32"):
        tiny_pipeline.edit(noise(), "a", mask=clear(), height=48)
    with pytest.raises(NextStepError, match="picture that it belongs to"):
        engine.request("a", mask=clear())


def test_a_picture_that_keeps_all_is_done_at_once(tiny_parts: Parts) -> None:
    engine = Engine.of_parts(tiny_parts)
    request = engine.request("a", seed=1)
    _, tokens = finish(engine, engine.submit(request))
    job = request.sequence(engine.text_tokenizer, 256)
    given = engine.state(request, tokens).resample(
        Image.new("RGB", (32, 32)), marked((31, 31, 32, 32), (32, 32))
    )
    scheduler = Scheduler(engine.model)
    ticket = scheduler.submit(given.request.sequence(engine.text_tokenizer, 256))
    kinds = [e.kind for e in scheduler.run_until_idle() if e.ticket == ticket]
    assert kinds == ["started", "row", "finished"]
    assert job.given is None


def test_command(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    noise().save(tmp_path / "source.png")
    clear().save(tmp_path / "mask.png")
    source, mask, out = (tmp_path / f"{name}.png" for name in ("source", "mask", "out"))
    said = ["-i", source, "--mask", mask, "--model", tiny_folder]
    status, _, errors = nextstep(capsys, "edit", "make it blue", *said, "-o", out)
    assert status == 0, errors
    with Image.open(out) as picture:
        assert outside_equal(picture, noise(), marked())
    assert nextstep(capsys, "verify", out, *said)[0] == 0
    noise(16, 16).save(mask)
    assert nextstep(capsys, "edit", "x", *said, "-o", out)[0] == 2
