"""Colour spaces that a file names without a profile: what its numbers mean, brought to sRGB.

Cameras mark Adobe RGB in EXIF, PNG has the chunks cICP, gAMA and cHRM, AVIF and HEIF the box nclx.
Code points are those of ITU-T H.273, curves those of IEC 61966-2-1 (sRGB), Adobe RGB (1998) and
ITU-R BT.2100 (PQ, HLG).

Legend: values of pixels in 0..1 after any leading shape, channels (RGB) last.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import ExifTags, Image

SPACE = "colour_space"
"""Key in `Image.info` of the `RGBSpace` that the file named."""
HEAD = 65536
"""Bytes of a file in which its marks are looked for."""
STRIP = 256
"""Rows that are converted together: their numbers take twelve times the memory of pixels."""

D65 = (0.3127, 0.3290)
Chromaticities = tuple[tuple[float, float], ...]
BT709: Chromaticities = (D65, (0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
"""(x, y) of white, red, green and blue."""
_P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
_SMPTE = (D65, (0.630, 0.340), (0.310, 0.595), (0.155, 0.070))
PRIMARIES: dict[int, Chromaticities] = {
    1: BT709,
    4: ((0.310, 0.316), (0.67, 0.33), (0.21, 0.71), (0.14, 0.08)),
    5: (D65, (0.64, 0.33), (0.29, 0.60), (0.15, 0.06)),
    6: _SMPTE,
    7: _SMPTE,
    9: (D65, (0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    11: ((0.314, 0.351), *_P3),
    12: (D65, *_P3),
    22: (D65, (0.630, 0.340), (0.295, 0.605), (0.155, 0.077)),
}
SRGB_CURVE, PQ, HLG = "sRGB", "PQ", "HLG"
CURVES: dict[int, str | float] = {
    # Pictures made as video are: screens show both curves alike.
    1: SRGB_CURVE, 6: SRGB_CURVE, 14: SRGB_CURVE, 15: SRGB_CURVE,
    4: 2.2, 5: 2.8, 8: 1.0, 13: SRGB_CURVE, 16: PQ, 18: HLG,
}  # fmt: skip
"""Transfer characteristics that are known; a number is the exponent of a power."""
PQ_NITS, WHITE_NITS = 10000.0, 203.0
"""Of PQ's largest value, and of what stands for white (ITU-R BT.2408)."""
HLG_WHITE = 0.75
"""The value of HLG that stands for white there."""
GAMMA_NEAR, POINT_NEAR = 0.01, 0.005
"""PNG files say sRGB in numbers of about this precision."""


@dataclass(frozen=True)
class RGBSpace:
    """What the numbers of a picture mean.

    Attributes:
        points: (x, y) of white, red, green and blue.
        curve: from numbers to light: "sRGB", "PQ", "HLG" or the exponent of a power.
    """

    points: Chromaticities
    curve: str | float

    @property
    def is_srgb(self) -> bool:
        """Whether its numbers are sRGB's, so that not one of them may change."""
        return self.points == BT709 and self.curve == SRGB_CURVE


ADOBE_RGB = RGBSpace((D65, (0.64, 0.33), (0.21, 0.71), (0.15, 0.06)), 2.19921875)


def coded(primaries: int, transfer: int) -> RGBSpace | None:
    """The space of two code points; None where the curve is not known."""
    curve = CURVES.get(transfer)
    return None if curve is None else RGBSpace(PRIMARIES.get(primaries, BT709), curve)


def note_space(picture: Image.Image, head: bytes) -> None:
    """Keep in `picture.info` what space a file names without a profile.

    Args:
        picture: just opened.
        head: the first `HEAD` bytes of its file.
    """
    found = None
    if picture.format == "PNG":
        found = _cicp(head)
        if found is not None:
            picture.info.pop("icc_profile", None)  # which cICP goes before
        elif "srgb" not in picture.info:
            found = _png_space(picture.info)
    elif picture.format in ("AVIF", "HEIF"):
        place = head.find(b"colrnclx")
        if 0 <= place <= len(head) - 12:
            found = coded(*struct.unpack_from(">HH", head, place + 8))
    if found is not None:
        picture.info[SPACE] = found


def space_of(picture: Image.Image) -> RGBSpace | None:
    """The space that a picture was marked with, unless it is sRGB."""
    found = picture.info.get(SPACE) or _exif_space(picture)
    return found if isinstance(found, RGBSpace) and not found.is_srgb else None


def _png_space(info: Mapping[Any, Any]) -> RGBSpace | None:
    """That of a PNG's chunks gAMA and cHRM, as Pillow gives them."""
    gamma, given = info.get("gamma"), info.get("chromaticity")
    points = BT709
    if isinstance(given, tuple) and len(given) == 8:
        # White comes first there too; points without an inverse are no space.
        pairs = tuple((float(given[i]), float(given[i + 1])) for i in range(0, 8, 2))
        if np.abs(np.subtract(pairs, BT709)).max() > POINT_NEAR and _is_space(pairs):
            points = pairs
    if not isinstance(gamma, float) or not 0.1 <= gamma <= 10:
        return None if points == BT709 else RGBSpace(points, SRGB_CURVE)
    # Programs write the nearest power beside sRGB's points, and mean sRGB.
    plain = points == BT709 and abs(gamma - 1 / 2.2) <= GAMMA_NEAR
    return None if plain else RGBSpace(points, 1 / gamma)


def _cicp(head: bytes) -> RGBSpace | None:
    """The space of a PNG's chunk cICP, which stands before the pixels."""
    place = 8
    while place + 8 <= len(head):
        size, name = struct.unpack_from(">I4s", head, place)
        if name == b"IDAT":
            return None
        if name == b"cICP" and size == 4 and place + 12 <= len(head):
            primaries, transfer, matrix, _ = head[place + 8 : place + 12]
            return coded(primaries, transfer) if matrix == 0 else None
        place += size + 12
    return None


def _exif_space(picture: Image.Image) -> RGBSpace | None:
    """Adobe RGB, where a camera says so (DCF 2.0: InteropIndex R03)."""
    try:
        exif = picture.getexif()
        mark = exif.get_ifd(ExifTags.IFD.Interop).get(ExifTags.Interop.InteropIndex)
        adobe = str(mark).strip("\0 ") == "R03"
        space = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.ColorSpace)
    except Exception:  # damaged EXIF data raises what it likes
        return None
    return ADOBE_RGB if adobe or space == 2 else None


def converted(picture: Image.Image, space: RGBSpace) -> Image.Image:
    """An RGB picture of that space in sRGB; light above white is cut off."""
    light = _to_light(space.curve)(np.arange(256) / 255).astype(np.float32)
    matrix = _to_srgb_light(space.points).astype(np.float32)
    values = np.asarray(picture)
    made = np.empty_like(values)
    for top in range(0, len(values), STRIP):
        srgb = light[values[top : top + STRIP]] @ matrix.T
        made[top : top + STRIP] = (_encoded(srgb) * 255).round()
    return Image.fromarray(made)


def _to_light(curve: str | float) -> Callable[[np.ndarray], np.ndarray]:
    if isinstance(curve, float):
        return lambda value: value**curve
    return {SRGB_CURVE: _srgb_light, PQ: _pq_light, HLG: _hlg_light}[curve]


def _srgb_light(value: np.ndarray) -> np.ndarray:
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _pq_light(value: np.ndarray) -> np.ndarray:
    """ITU-R BT.2100 table 4, white at `WHITE_NITS`."""
    root = value ** (4096 / (2523 * 128))
    share = np.maximum(root - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * root)
    return share ** (16384 / 2610) * (PQ_NITS / WHITE_NITS)


def _hlg_light(value: np.ndarray) -> np.ndarray:
    """ITU-R BT.2100 table 5 with the system gamma 1.2 on each channel, white at `HLG_WHITE`."""
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)

    def scene(signal: np.ndarray) -> np.ndarray:
        bright = (np.exp((signal - c) / a) + b) / 12
        return np.where(signal <= 0.5, signal**2 / 3, bright)

    light: np.ndarray = (scene(value) / scene(np.array(HLG_WHITE))) ** 1.2
    return light


def _encoded(light: np.ndarray) -> np.ndarray:
    light = light.clip(0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


@cache
def _to_srgb_light(points: Chromaticities) -> np.ndarray:
    """[3, 3]: light of a space -> light of sRGB, its white becoming sRGB's (Bradford)."""
    cones = np.array(
        [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
    )
    gains = (cones @ _xyz(D65)) / (cones @ _xyz(points[0]))
    adapted = np.linalg.solve(cones, np.diag(gains) @ cones)
    matrix: np.ndarray = np.linalg.solve(_to_xyz(BT709), adapted @ _to_xyz(points))
    return matrix


def _to_xyz(points: Chromaticities) -> np.ndarray:
    """[3, 3]: light of a space -> CIE XYZ with white at Y = 1."""
    columns = np.stack([_xyz(point) for point in points[1:]], axis=1)
    return columns * np.linalg.solve(columns, _xyz(points[0]))


def _xyz(point: tuple[float, float]) -> np.ndarray:
    x, y = point
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _is_space(points: Chromaticities) -> bool:
    """Whether every colour has its numbers in it."""
    if not all(0 <= x <= 1 and 0 < y <= 1 for x, y in points):
        return False
    columns = np.stack([_xyz(point) for point in points[1:]], axis=1)
    return bool(abs(np.linalg.det(columns)) > 1e-6)
