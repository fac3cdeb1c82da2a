"""Sizes, buckets and pictures in and out."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nextstep.image import pictures
from nextstep.image.sizes import (
    ASPECT_BUCKETS,
    fitting_size,
    multi_area_bucket,
    nearest_bucket,
    scaled_buckets,
)


def test_the_seventeen_buckets() -> None:
    assert len(set(ASPECT_BUCKETS)) == 17
    assert ASPECT_BUCKETS[0] == (8, 32)
    assert (16, 16) in ASPECT_BUCKETS
    assert {(w, h) for h, w in ASPECT_BUCKETS} == set(ASPECT_BUCKETS)
    assert all(240 <= h * w <= 256 for h, w in ASPECT_BUCKETS)


@given(st.integers(16, 4000), st.integers(16, 4000))
def test_nearest_bucket_is_nearest(height: int, width: int) -> None:
    rows, columns = nearest_bucket(height, width)
    gap = abs(rows / columns - height / width)
    assert all(gap <= abs(r / c - height / width) for r, c in ASPECT_BUCKETS)


def test_areas() -> None:
    assert scaled_buckets(512)[8] == (32, 32)
    assert multi_area_bucket(1024, 1024) == (64, 64)
    assert multi_area_bucket(600, 600) == (32, 32)
    assert multi_area_bucket(100, 100) == (16, 16)
    with pytest.raises(ValueError, match="multiple of 256"):
        scaled_buckets(300)


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_fitting_size(height: int, width: int) -> None:
    h, w = fitting_size(height, width, 16, 128 * 128)
    assert h % 16 == w % 16 == 0
    assert min(h, w) >= 16


def test_pixels_round_trip() -> None:
    array = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    pixels = pictures.to_pixels([Image.fromarray(array)])
    assert float(pixels.min()) == -1.0
    assert float(pixels.max()) == 1.0
    assert np.array_equal(pictures.to_bytes(pixels)[0], array)


def test_alpha_lies_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert pictures.open_picture(clear).getpixel((0, 0)) == (255, 255, 255)
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert pictures.open_picture(half).getpixel((0, 0)) == (127, 127, 127)


def test_sixteen_bits_are_scaled() -> None:
    ramp = np.linspace(0, 65535, 16, dtype=np.uint16).reshape(4, 4)
    loaded = np.asarray(pictures.open_picture(Image.fromarray(ramp)))[..., 0]
    assert np.array_equal(loaded, ramp // 257)
    with pytest.raises(ValueError, match="32-bit values are not read"):
        pictures.open_picture(Image.fromarray(np.full((4, 4), 70_000, np.int32)))
    with pytest.raises(ValueError, match="floating-point"):
        pictures.open_picture(Image.new("F", (4, 4)))


def test_exif_orientation(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert pictures.open_picture(tmp_path / "turned.jpg").size == (4, 8)


def test_resize_and_crop_keeps_the_centre() -> None:
    picture = Image.new("RGB", (40, 10), (255, 0, 0))
    picture.paste((0, 255, 0), (15, 0, 25, 10))
    square = pictures.resize_and_crop(picture, 10, 10)
    assert square.size == (10, 10)
    assert square.getpixel((5, 5)) == (0, 255, 0)


def test_bad_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="no picture"):
        pictures.open_picture(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(ValueError, match="not a picture"):
        pictures.open_picture(tmp_path / "text.png")
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "PNG")
    (tmp_path / "cut.png").write_bytes(buffer.getvalue()[:200])
    with pytest.raises(ValueError, match="cannot be read"):
        pictures.open_picture(tmp_path / "cut.png")
    monkeypatch.setattr(pictures, "MAX_PIXELS", 100)
    with pytest.raises(ValueError, match="pixels; at most"):
        pictures.open_picture(Image.new("RGB", (20, 20)))


@given(st.integers(1, 15))
def test_small_areas_have_buckets_by_the_released_rule(tokens: int) -> None:
    buckets = scaled_buckets(16 * tokens)
    assert (tokens, tokens) in buckets
    assert {(w, h) for h, w in buckets} == set(buckets)
    assert all(h * w <= tokens**2 < (max(h, w) + 1) * min(h, w) for h, w in buckets)


def test_areas_may_be_chosen() -> None:
    assert multi_area_bucket(4000, 4000, areas=(128, 256)) == (16, 16)
    assert multi_area_bucket(200, 200, areas=(128, 256)) == (8, 8)
    assert multi_area_bucket(10, 40, areas=(128, 256)) == (4, 16)


def test_a_crop_lies_where_it_is_asked() -> None:
    ramp = Image.fromarray(np.tile(np.arange(40, dtype=np.uint8), (10, 1))).convert("RGB")
    left, centre, right = (
        np.asarray(pictures.resize_and_crop(ramp, 10, 10, (0.5, across)))[0, 0, 0]
        for across in (0.0, 0.5, 1.0)
    )
    assert (left, centre, right) == (0, 15, 30)
