"""Source pictures of any size are read: shrunk to what the model knows, their shape kept."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nextstep.engine.pretrained import Parts
from nextstep.image.sizes import fitting_size
from nextstep.pipeline import NextStepPipeline
from nextstep.serve.jobs import backend as b
from nextstep.serve.jobs.engine_backend import EngineBackend
from tests.conftest import QUICK, TINY, random_model
from tests.serve.conftest import engine_of, picture_bytes
from tests.serve.test_jobs import ends_of

PHOTOS = {(400, 300): (64, 48), (640, 480): (64, 48), (1920, 1080): (64, 32), (300, 400): (48, 64)}
"""(width, height) -> what a model of 4 x 4 image tokens with learned positions reads."""


@pytest.fixture(scope="module")
def positioned(tiny_parts: Parts) -> NextStepPipeline:
    """A model whose learned positions end at its own square, as the nano model's do."""
    parts = tiny_parts._replace(
        model=random_model(replace(TINY, image_position_side=4)),
        defaults=replace(tiny_parts.defaults, height=64, width=64),
    )
    return NextStepPipeline(*parts)


@pytest.mark.parametrize(("size", "read"), PHOTOS.items())
def test_photos_are_edited_read_and_gone_on_from(
    positioned: NextStepPipeline, size: tuple[int, int], read: tuple[int, int]
) -> None:
    photo = Image.new("RGB", size, "red")
    height, width = positioned.source_limits.fitted(photo.height, photo.width)
    assert (width, height) == read
    assert positioned.edit(photo, "make it blue")[0].image.size == read
    assert positioned.edit(photo, "blue", mask=Image.new("L", size, 255))[0].image.size == read
    assert positioned.next_state(photo, "it moves", **vars(QUICK)).image.size == read
    assert isinstance(positioned.read(photo, max_tokens=1), str)
    engine = engine_of(positioned)
    assert engine.request("make it blue", [photo]).grid == (read[1] // 16, read[0] // 16)


@pytest.mark.parametrize("size", PHOTOS)
def test_the_service_chats_about_photos(
    positioned: NextStepPipeline, size: tuple[int, int]
) -> None:
    asked = b.JobRequest(
        b.CHAT, parts=("what is it?", 0), sources=("any",), max_tokens=2, draws=0, seed=1
    )
    backend = EngineBackend(engine_of(positioned))
    try:
        _, wait = ends_of(backend, {"chat": asked}, picture_bytes(size=size))
        assert wait()["chat"].kind == "done", wait()
    finally:
        backend.close(1)


sides = st.integers(1, 5000)


@given(sides, sides, st.integers(1, 64), st.integers(1, 40))
def test_fitted_sizes_stay_inside_the_area_and_the_side(
    height: int, width: int, tokens: int, side: int
) -> None:
    tall, wide = fitting_size(height, width, 16, tokens * 256, side * 16)
    assert tall % 16 == wide % 16 == 0
    assert 16 <= max(tall, wide) <= 16 * side
    assert tall * wide <= tokens * 256


@given(sides, sides)
def test_fitted_sizes_keep_the_shape(height: int, width: int) -> None:
    tall, wide = fitting_size(height, width, 16, 1024 * 1024, 2048)
    if min(tall, wide) >= 160:
        assert abs(math.log(tall / wide * width / height)) < 0.1


def test_small_pictures_keep_their_size() -> None:
    assert fitting_size(40, 70, 16, 128 * 128, 128) == (32, 64)
    assert fitting_size(128, 128, 16, 128 * 128, 128) == (128, 128)


def test_commands_say_the_size_at_which_a_photo_is_read(
    positioned: NextStepPipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    from nextstep.cli.report import say_read_size

    small, large = Image.new("RGB", (64, 64)), Image.new("RGB", (1920, 1080))
    say_read_size(positioned, [Path("a.png"), Path("b.jpg")], [small, large])
    assert capsys.readouterr().err == "b.jpg: 1920x1080 pixels, read as 64x32\n"
