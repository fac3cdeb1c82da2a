"""Pictures with colour profiles look as they do elsewhere."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from nextstep.data.stored import decode
from nextstep.image import pictures
from tests.image.profiles import (
    ADOBE,
    ADOBE_D50,
    ADOBE_GAMMA,
    P3,
    P3_D50,
    cmyk_profile,
    expected,
    grey_profile,
    srgb_curve,
    srgb_encoded,
)

COLOURS = [(60, 200, 60), (200, 30, 40), (255, 255, 255), (0, 0, 0), (90, 120, 200), (250, 120, 0)]


def encoded(picture: Image.Image, form: str, profile: bytes | None, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, icc_profile=profile, **options)
    return buffer.getvalue()


def near(colour: object, wanted: object, by: int = 2) -> bool:
    return bool(np.abs(np.subtract(colour, wanted, dtype=float)).max() <= by)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("colour", COLOURS)
def test_wide_colours_become_srgb(form: str, colour: tuple[int, int, int]) -> None:
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    lossless["AVIF"] = {"quality": 100, "subsampling": "4:4:4"}
    spaces = (
        (P3, P3_D50, srgb_curve),
        (ADOBE, ADOBE_D50, lambda v: v**ADOBE_GAMMA),
    )
    for profile, primaries, curve in spaces:
        data = encoded(Image.new("RGB", (16, 16), colour), form, profile, **lossless.get(form, {}))
        wanted = expected(colour, primaries, curve)
        for found in (pictures.open_picture(data), decode(data, "a")):
            assert near(found.getpixel((8, 8)), wanted, 8 if form == "AVIF" else 2), (form, colour)


def test_a_strong_green_of_display_p3_is_as_bright_as_srgb_shows() -> None:
    data = encoded(Image.new("RGB", (4, 4), (60, 200, 60)), "PNG", P3)
    assert near(pictures.open_picture(data).getpixel((0, 0)), (0, 203, 11))


def test_pictures_in_srgb_keep_every_value() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (None, own):
        found = pictures.open_picture(encoded(noise, "PNG", profile))
        assert np.array_equal(np.asarray(found), np.asarray(noise))


@pytest.mark.parametrize("profile", [b"", b"no profile", P3[:200], P3[:-100] + bytes(90)])
def test_a_broken_profile_is_passed_over(profile: bytes) -> None:
    data = encoded(Image.new("RGB", (4, 4), (60, 200, 60)), "PNG", profile)
    found = pictures.open_picture(data).getpixel((0, 0))
    assert near(found, (60, 200, 60)) or profile.startswith(P3[:150])


def test_a_profile_of_another_kind_of_colours_is_passed_over() -> None:
    for mode, profile in (("RGB", grey_profile(1.8)), ("L", P3), ("RGB", cmyk_profile(_inks))):
        data = encoded(Image.new(mode, (4, 4), "#646464"), "PNG", profile)
        assert pictures.open_picture(data).getpixel((0, 0)) == (100, 100, 100)


def test_grey_profiles() -> None:
    wanted = round(float(srgb_encoded(np.array((100 / 255) ** 1.0))) * 255)
    for mode in ("L", "LA"):
        data = encoded(Image.new(mode, (4, 4), 100 if mode == "L" else (100, 255)), "PNG",
                       grey_profile(1.0))  # fmt: skip
        assert near(pictures.open_picture(data).getpixel((0, 0)), (wanted,) * 3), mode
    assert wanted > 160


def test_transparency_is_kept_apart_from_the_colours() -> None:
    wanted = expected((60, 200, 60), P3_D50, srgb_curve)
    clear = Image.new("RGBA", (4, 4), (60, 200, 60, 255))
    clear.putpixel((0, 0), (60, 200, 60, 0))
    clear.putpixel((1, 0), (60, 200, 60, 128))
    found = pictures.open_picture(encoded(clear, "PNG", P3))
    assert found.getpixel((0, 0)) == (255, 255, 255)
    assert near(found.getpixel((1, 0)), (wanted * 128 + 255 * 127) / 255)
    assert near(found.getpixel((2, 2)), wanted)


def _inks(inks: tuple[int, ...]) -> tuple[int, int, int]:
    """A press whose cyan is red; the other inks are grey."""
    return (50, 70, 50) if inks == (1, 0, 0, 0) else (100 - 25 * sum(inks), 0, 0)


def test_cmyk_with_a_profile() -> None:
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    for form in ("JPEG", "TIFF"):
        data = encoded(cyan, form, cmyk_profile(_inks), quality=100)
        red, green, blue = pictures.open_picture(data).getpixel((8, 8))
        assert red > 150 and red > 2 * max(green, blue), form
    white = encoded(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), "TIFF", cmyk_profile(_inks))
    assert near(pictures.open_picture(white).getpixel((8, 8)), (255, 255, 255))
    plain = encoded(Image.new("CMYK", (16, 16), (0, 0, 0, 255)), "TIFF", None)
    assert pictures.open_picture(plain).getpixel((8, 8)) == (0, 0, 0)


def test_lab_pictures_are_read() -> None:
    data = encoded(Image.new("LAB", (4, 4), (255, 128, 128)), "TIFF", None)
    assert near(pictures.open_picture(data).getpixel((0, 0)), (255, 255, 255))


def test_a_profile_counts_once() -> None:
    data = encoded(Image.new("RGB", (4, 4), (60, 200, 60)), "PNG", P3)
    once = pictures.open_picture(data)
    assert pictures.open_picture(once).getpixel((0, 0)) == once.getpixel((0, 0))
