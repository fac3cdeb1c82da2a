"""Colours that a file marks without a profile look as they do elsewhere."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from nextstep.data.stored import decode
from nextstep.image import formats
from nextstep.image.colour_spaces import (
    ADOBE_RGB,
    BT709,
    HLG,
    PQ,
    PRIMARIES,
    SRGB_CURVE,
    RGBSpace,
    converted,
)
from nextstep.image.pictures import flatten, open_picture
from tests.image.profiles import ADOBE, ADOBE_D50, ADOBE_GAMMA, P3, P3_D50, expected, srgb_curve

COLOURS = [(60, 200, 60), (200, 30, 40), (255, 255, 255), (0, 0, 0), (90, 120, 200), (250, 120, 0)]
P3_CODE, BT2020_CODE, SRGB_CODE, PQ_CODE, HLG_CODE = 12, 9, 13, 16, 18


def near(colour: object, wanted: object, by: int = 2) -> bool:
    return bool(np.abs(np.subtract(colour, wanted, dtype=float)).max() <= by)


def png(colour: Sequence[int], chunks: dict[bytes, bytes], **options: object) -> bytes:
    info, buffer = PngInfo(), io.BytesIO()
    for name, data in chunks.items():
        info.add(name, data)
    Image.new("RGB", (4, 4), tuple(colour)).save(buffer, "PNG", pnginfo=info, **options)
    assert all(name in buffer.getvalue() for name in chunks)
    return buffer.getvalue()


def cicp(primaries: int, transfer: int) -> dict[bytes, bytes]:
    return {b"cICP": bytes((primaries, transfer, 0, 1))}


def gama(value: float) -> dict[bytes, bytes]:
    return {b"gAMA": struct.pack(">I", round(value * 100_000))}


def chrm(points: Sequence[Sequence[float]]) -> dict[bytes, bytes]:
    return {b"cHRM": b"".join(struct.pack(">I", round(v * 100_000)) for p in points for v in p)}


def adobe_exif(index: str | None, space: int) -> Image.Exif:
    exif = Image.Exif()
    inside: dict[int, object] = {ExifTags.Base.ColorSpace: space}
    if index is not None:
        inside[ExifTags.IFD.Interop] = {ExifTags.Interop.InteropIndex: index}
    exif[ExifTags.IFD.Exif] = inside
    return exif


def shown(data: bytes) -> tuple[int, ...]:
    found = open_picture(data).getpixel((1, 1))
    assert decode(data, "a").getpixel((1, 1)) == found, "data sets see the same colours"
    return found  # type: ignore[return-value]


def adobe(colour: Sequence[int]) -> np.ndarray:
    return expected(colour, ADOBE_D50, lambda v: v**ADOBE_GAMMA)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("index", "space"), [("R03", 0xFFFF), (None, 2), ("R03", 1)])
def test_adobe_rgb_of_cameras(form: str, index: str | None, space: int) -> None:
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    for colour in COLOURS:
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16), colour).save(
            buffer, form, exif=adobe_exif(index, space), **options.get(form, {})
        )
        assert near(shown(buffer.getvalue()), adobe(colour), 3), colour


@pytest.mark.parametrize(("index", "space"), [("R98", 1), (None, 1), (None, 0xFFFF)])
def test_srgb_of_cameras_keeps_every_value(index: str | None, space: int) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    buffer = io.BytesIO()
    noise.save(buffer, "PNG", exif=adobe_exif(index, space))
    assert np.array_equal(np.asarray(open_picture(buffer.getvalue())), np.asarray(noise))


def test_profile_goes_before_a_cameras_mark() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (60, 200, 60)).save(
        buffer, "PNG", exif=adobe_exif("R03", 0xFFFF), icc_profile=P3
    )
    assert near(shown(buffer.getvalue()), expected((60, 200, 60), P3_D50, srgb_curve))


def test_code_points_of_png() -> None:
    for colour in COLOURS:
        wanted = expected(colour, P3_D50, srgb_curve)
        assert near(shown(png(colour, cicp(P3_CODE, SRGB_CODE))), wanted)
        assert shown(png(colour, cicp(1, SRGB_CODE))) == colour
        # They go before a profile, and what is not known is passed over.
        assert near(shown(png(colour, cicp(P3_CODE, SRGB_CODE), icc_profile=ADOBE)), wanted)
        assert near(shown(png(colour, cicp(P3_CODE, 2), icc_profile=ADOBE)), adobe(colour))
        assert shown(png(colour, cicp(P3_CODE, 2))) == colour


def test_gamma_and_chromaticities_of_png() -> None:
    points = ADOBE_RGB.points
    for colour in COLOURS:
        both = {**gama(1 / ADOBE_GAMMA), **chrm(points)}
        assert near(shown(png(colour, both)), adobe(colour))
        assert near(shown(png(colour, chrm(PRIMARIES[P3_CODE]))),
                    expected(colour, P3_D50, srgb_curve))  # fmt: skip
        linear = 255 * np.array([encoded(value / 255) for value in colour])
        assert near(shown(png(colour, gama(1.0))), linear, 1)
        # What programs write for sRGB changes nothing.
        for same in (gama(0.45455), chrm(BT709), {**gama(0.45455), **chrm(BT709)},
                     {**both, b"sRGB": b"\0"}):  # fmt: skip
            assert shown(png(colour, same)) == colour


@pytest.mark.parametrize("points", [((0, 0),) * 4, ((0.3, 0.3),) * 4, ((9, 9),) * 4])
def test_impossible_chromaticities_are_passed_over(points: tuple) -> None:
    assert shown(png((60, 200, 60), chrm(points))) == (60, 200, 60)
    assert shown(png((60, 200, 60), {b"gAMA": b"\0\0\0\0"})) == (60, 200, 60)


def encoded(light: float) -> float:
    return light * 12.92 if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055


@pytest.mark.parametrize(("form", "module"), [("AVIF", None), ("HEIF", "pillow_heif")])
def test_code_points_of_avif_and_heif(form: str, module: str | None) -> None:
    if module:
        pytest.importorskip(module, reason="pillow-heif reads HEIC: pip install pillow-heif")
    assert form in formats.readable()
    buffer = io.BytesIO()
    options = {"subsampling": "4:4:4"} if form == "AVIF" else {"chroma": 444}
    Image.new("RGB", (64, 64), (60, 200, 60)).save(buffer, form, quality=100, **options)
    data = buffer.getvalue()
    place = data.index(b"colrnclx") + 8
    plain = shown(data)
    assert near(plain, (60, 200, 60), 8)
    marked = data[:place] + struct.pack(">HH", P3_CODE, SRGB_CODE) + data[place + 4 :]
    assert near(shown(marked), expected(plain, P3_D50, srgb_curve), 8)


@pytest.mark.parametrize("curve", [SRGB_CURVE, PQ, HLG, 1.8])
@pytest.mark.parametrize("code", sorted(PRIMARIES))
def test_grey_stays_grey_and_brighter_stays_brighter(code: int, curve: str | float) -> None:
    greys = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    made = np.asarray(converted(Image.fromarray(greys), RGBSpace(PRIMARIES[code], curve))).astype(
        int
    )
    assert np.ptp(made, axis=2).max() <= 1
    assert (np.diff(made[0, :, 0]) >= 0).all()
    assert made[0, 0].tolist() == [0, 0, 0] and made[0, 255].min() >= 254


@pytest.mark.parametrize(("curve", "white"), [(PQ, 0.5807), (HLG, 0.75)])
def test_white_of_hdr_is_white(curve: str, white: float) -> None:
    """ITU-R BT.2408: diffuse white stands at 58 % of PQ and at 75 % of HLG."""
    near_white = Image.new("RGB", (1, 1), (round(white * 255),) * 3)
    found = converted(near_white, RGBSpace(PRIMARIES[BT2020_CODE], curve)).getpixel((0, 0))
    assert near(found, (255, 255, 255), 3)
    half = Image.new("RGB", (1, 1), (round(white * 255) - 60,) * 3)
    assert converted(half, RGBSpace(BT709, curve)).getpixel((0, 0))[0] < 190


def test_marks_are_obeyed_once_and_on_large_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextstep.image.pictures.FINE_PIXELS", 64)
    data = io.BytesIO()
    Image.new("RGB", (64, 64), (60, 200, 60)).save(data, "PNG", exif=adobe_exif("R03", 0xFFFF))
    made = open_picture(data.getvalue())
    assert made.size == (8, 8) and near(made.getpixel((1, 1)), adobe((60, 200, 60)))
    assert flatten(made).getpixel((1, 1)) == made.getpixel((1, 1))
    data.seek(0)
    assert near(open_picture(data).getpixel((1, 1)), adobe((60, 200, 60)))


def test_transparent_and_grey_pictures() -> None:
    buffer = io.BytesIO()
    info = PngInfo()
    info.add(b"gAMA", struct.pack(">I", 100_000))
    Image.new("RGBA", (4, 4), (60, 200, 60, 255)).save(buffer, "PNG", pnginfo=info)
    linear = [255 * encoded(value / 255) for value in (60, 200, 60)]
    assert near(shown(buffer.getvalue()), linear, 1)
    buffer = io.BytesIO()
    Image.new("L", (4, 4), 60).save(buffer, "PNG", pnginfo=info)
    assert near(shown(buffer.getvalue()), [linear[0]] * 3, 1)


@pytest.mark.parametrize("spoil", [lambda d: d[:40], lambda d: d.replace(b"cICP", b"cICQ")])
def test_damaged_marks_are_no_errors_of_their_own(spoil: Callable[[bytes], bytes]) -> None:
    data = spoil(png((60, 200, 60), cicp(P3_CODE, SRGB_CODE)))
    try:
        assert shown(data) == (60, 200, 60)
    except ValueError as error:
        assert "\n" not in str(error)
