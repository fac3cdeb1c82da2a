"""Pictures are written as PNG, JPEG or WebP by their ending, with their settings inside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextstep.engine.metadata import read_record
from nextstep.engine.results import GeneratedPicture
from nextstep.errors import NextStepError
from nextstep.image.encode import encode

GRADIENT = np.add.outer(np.arange(64), np.arange(64))[..., None].repeat(3, 2).astype(np.uint8)
SETTINGS = {"prompt": 'ein "roter" Apfel 🍎, 苹果', "version": "1", "seed": 2**62, "guidance": 1.5}
MADE = GeneratedPicture(Image.fromarray(GRADIENT), SETTINGS)


@pytest.mark.parametrize(
    ("ending", "form"),
    [(".png", "PNG"), (".jpg", "JPEG"), (".JPEG", "JPEG"), (".webp", "WEBP"), (".PNG", "PNG")],
)
def test_the_ending_decides_and_the_settings_are_inside(
    tmp_path: Path, ending: str, form: str
) -> None:
    path = tmp_path / f"a{ending}"
    MADE.save(path)
    with Image.open(path) as picture:
        assert picture.format == form
        assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - GRADIENT).max() <= 6
    assert read_record(path) == SETTINGS


@pytest.mark.parametrize("name", ["a.gif", "a.bmp", "a", "a.png.txt", ".png"])
def test_other_endings_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(NextStepError, match=r"does not end in .png, .jpg, .jpeg or .webp"):
        MADE.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_settings_that_no_jpeg_can_hold_are_reported() -> None:
    with pytest.raises(NextStepError, match="do not fit into a JPEG file"):
        encode(MADE.image, "JPEG", {"prompt": "x" * 70_000})


@pytest.mark.parametrize("comment", [b"", b"ASCII\0\0\0{", b"ASCII\0\0\0[1]", b"UNICODE\0a"])
def test_foreign_comments_are_no_settings(tmp_path: Path, comment: bytes) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = comment
    MADE.image.save(tmp_path / "a.jpg", exif=exif)
    with pytest.raises(NextStepError, match="carries no NextStep settings"):
        read_record(tmp_path / "a.jpg")
