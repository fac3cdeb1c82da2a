"""What is taken for a picture: formats, file objects, arrays; large photos are halved."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nextstep.image import formats, masks, pictures

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (20, 30, 3), np.uint8)


def encoded(picture: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


PNG = encoded(Image.fromarray(NOISE), "PNG")


@pytest.mark.parametrize(
    "source",
    [
        PNG, bytearray(PNG), io.BytesIO(PNG), Image.open(io.BytesIO(PNG)), NOISE,
        torch.from_numpy(NOISE).permute(2, 0, 1),
        np.dstack([NOISE, np.full((20, 30), 255, np.uint8)]),
    ],
    ids=["bytes", "bytearray", "file", "PIL", "array", "tensor", "array with alpha"],
)  # fmt: skip
def test_pictures_come_in_many_forms(source: pictures.PictureLike) -> None:
    assert np.array_equal(np.asarray(pictures.open_picture(source)), NOISE)
    assert pictures.listed(source) == [source]


def test_a_file_that_was_just_written_is_read_from_its_beginning() -> None:
    buffer = io.BytesIO()
    Image.fromarray(NOISE).save(buffer, "PNG")
    assert np.array_equal(np.asarray(pictures.open_picture(buffer)), NOISE)


def test_grey_values_are_taken() -> None:
    grey = NOISE[..., 0]
    for values in (grey, torch.from_numpy(grey), grey[..., None], torch.from_numpy(grey)[None]):
        assert np.array_equal(np.asarray(pictures.open_picture(values))[..., 1], grey)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (NOISE / 255, r"holds uint8 from 0 to 255, not float64.*\(x \* 255\).round\(\)"),
        (torch.rand(3, 8, 8), "holds uint8 from 0 to 255, not float32"),
        (NOISE[None], r"has the shape \[H, W, 3\], not \[1, 20, 30, 3\]; give several .* a list"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), r"has the shape \[3, H, W\], not \[8, 8, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), "is empty"),
        (b"no picture", "the picture is not a picture that can be read"),
        (b"", "is not a picture that can be read"),
        (7, "a picture is a path, an open file, bytes, a PIL picture, .* not int"),
        (None, "not NoneType"),
        ({"a": 1}, "not dict"),
    ],
    ids=range(10),
)
def test_what_cannot_be_a_picture_is_reported(source: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        pictures.open_picture(source)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM"])
def test_formats_are_read(form: str) -> None:
    found = pictures.open_picture(encoded(Image.new("RGB", (32, 32), (200, 30, 40)), form))
    assert np.abs(np.subtract(found.getpixel((16, 16)), (200, 30, 40), dtype=float)).max() < 8


def test_heic_photos_are_read_where_the_library_is() -> None:
    pytest.importorskip("pillow_heif", reason="needs pillow-heif")
    assert formats.is_picture(".HEIC")
    data = encoded(Image.new("RGB", (64, 32), (200, 30, 40)), "HEIF", quality=95)
    found = pictures.open_picture(data)
    assert found.size == (64, 32)
    assert np.abs(np.subtract(found.getpixel((16, 16)), (200, 30, 40), dtype=float)).max() < 8


def test_formats_that_are_not_read_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "readable", lambda: formats.FORMATS)
    heic = bytes(3) + b"\x18ftypheic" + bytes(20)
    with pytest.raises(ValueError, match=r"pip install 'open-nextstep\[heif\]'"):
        pictures.open_picture(heic)
    with pytest.raises(ValueError, match="JPEG XL is not read; save it as PNG or JPEG"):
        pictures.open_picture(b"\xff\x0a" + bytes(20))
    assert "pillow-heif" in formats.unread_by_ending(".HEIC")
    assert "raw is not read" in formats.unread_by_ending(".CR2")
    assert formats.unread_by_ending(".txt") == formats.unread_by_ending(".jpg") == ""


def test_programs_in_pictures_are_never_run(tmp_path: Path) -> None:
    (tmp_path / "a.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    with pytest.raises(ValueError, match="is not a picture that can be read"):
        pictures.open_picture(tmp_path / "a.eps")


def test_pipes_and_folders_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("pipe.png", "."):
        with pytest.raises(ValueError, match="is not a picture file"):
            pictures.open_picture(tmp_path / name)


@pytest.mark.parametrize(
    ("size", "read"),
    [((6000, 4000), (3000, 2000)), ((8160, 6120), (2040, 1530)), ((1500, 1300), (1500, 1300))],
)
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_large_photos_are_halved(size: tuple[int, int], read: tuple[int, int], form: str) -> None:
    data = encoded(Image.linear_gradient("L").resize(size), form)
    found = pictures.open_picture(data)
    assert found.size == read
    assert pictures.original_size(found) == size
    assert abs(found.getpixel((5, read[1] // 2))[0] - 128) <= 2
    # What was halved once is not halved again.
    again = pictures.open_picture(found)
    assert again.size == read and pictures.original_size(again) == size
    small = found.resize((100, 80))
    assert pictures.original_size(small) == (100, 80), "a size that is no longer true"


def test_a_turned_photo_is_halved_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = Image.new("RGB", (4000, 2400), "red")
    wide.paste("blue", (0, 0, 2000, 2400))
    for form in ("JPEG", "PNG", "TIFF"):
        found = pictures.open_picture(encoded(wide, form, exif=exif))
        assert found.size == (1200, 2000), form
        assert pictures.original_size(found) == (2400, 4000)
        assert found.getpixel((400, 100))[2] > 200 and found.getpixel((400, 1900))[0] > 200


def test_a_photo_that_somebody_opened_stays_as_it_is() -> None:
    theirs = Image.open(io.BytesIO(encoded(Image.new("RGB", (4000, 3000), "red"), "JPEG")))
    assert pictures.open_picture(theirs).size == (2000, 1500)
    assert theirs.size == (4000, 3000) and theirs.getpixel((3999, 2999))[0] > 250


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_large_pictures_of_any_mode_are_halved(mode: str) -> None:
    large = Image.new(mode, (4000, 3000))
    assert pictures.open_picture(large).size == (2000, 1500)
    assert large.size == (4000, 3000), "somebody else's picture is left as it is"


def test_a_mask_belongs_to_the_photo_as_it_was_given() -> None:
    mask = Image.new("L", (6000, 4000))
    mask.paste(255, (0, 0, 3000, 4000))
    photo = pictures.open_picture(encoded(Image.new("RGB", (6000, 4000)), "JPEG"))
    fitted = masks.fit_mask(masks.read_mask(mask), pictures.original_size(photo), 32, 48)
    assert fitted[:, :24].all() and not fitted[:, 24:].any()


def test_sixteen_bit_masks_are_scaled() -> None:
    mask = masks.read_mask(Image.fromarray(np.array([[300, 65535]], np.uint16)))
    assert list(np.asarray(mask).reshape(-1)) == [0, 255]


def test_photos_are_decoded_within_bounded_memory(tmp_path: Path) -> None:
    """50 and 200 million pixels as JPEG need less than a tenth of what they have."""
    script = """
import resource, sys
from nextstep.image.pictures import open_picture
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
open_picture(sys.argv[1])
before = peak()
found = open_picture(sys.argv[2])
print(round(peak() - before), *found.size)
"""
    Image.new("RGB", (16, 16)).save(tmp_path / "small.jpg")
    for mode, size in (("RGB", (8160, 6120)), ("L", (16320, 12240))):
        Image.new(mode, size, 90).save(tmp_path / "large.jpg")
        ran = subprocess.run(
            [sys.executable, "-c", script, tmp_path / "small.jpg", tmp_path / "large.jpg"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        grown, *found = ran.stdout.split()
        assert found == ["2040", "1530"]
        assert int(grown) < 60, f"{grown} MiB for {size}"


def test_progressive_files_are_held_to_the_common_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_PIXELS", 1_000)
    photo = Image.new("RGB", (64, 64))
    assert pictures.open_picture(encoded(photo, "JPEG")).size == (64, 64)
    with pytest.raises(ValueError, match="64x64 pixels; at most"):
        pictures.open_picture(encoded(photo, "JPEG", progressive=True))
