"""Small colour profiles, made from the numbers that the ICC format and the colour spaces print."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import numpy as np

SRGB_D50 = ((0.43607, 0.38515, 0.14307), (0.22249, 0.71687, 0.06061), (0.01392, 0.09708, 0.71410))
P3_D50 = ((0.51512, 0.29198, 0.15710), (0.24120, 0.69225, 0.06657), (-0.00105, 0.04189, 0.78407))
ADOBE_D50 = ((0.60974, 0.20528, 0.14919), (0.31111, 0.62567, 0.06322), (0.01947, 0.06087, 0.74457))
"""[XYZ, RGB]: what the primaries are under the white of profiles, D50."""
ADOBE_GAMMA = 2.19921875


def srgb_curve(value: np.ndarray) -> np.ndarray:
    """sRGB and Display P3: encoded 0..1 -> light."""
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def srgb_encoded(light: np.ndarray) -> np.ndarray:
    light = light.clip(0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def expected(
    colour: Sequence[int], primaries: Sequence[Sequence[float]], curve: Callable
) -> np.ndarray:
    """What a colour of another space is in sRGB, by the definition of both."""
    light = curve(np.array(colour) / 255)
    srgb = np.linalg.solve(np.array(SRGB_D50), np.array(primaries) @ light)
    return (srgb_encoded(srgb) * 255).round()


def _tag(kind: bytes, data: bytes) -> bytes:
    body = kind + bytes(4) + data
    return body + bytes(-len(body) % 4)


def _xyz(values: Sequence[float]) -> bytes:
    return _tag(b"XYZ ", b"".join(struct.pack(">i", round(v * 65536)) for v in values))


def _curve(curve: Callable) -> bytes:
    values = (curve(np.linspace(0, 1, 1024)) * 65535).round().astype(">u2")
    return _tag(b"curv", struct.pack(">I", len(values)) + values.tobytes())


def _profile(kind: bytes, space: bytes, pcs: bytes, name: str, tags: dict[bytes, bytes]) -> bytes:
    text = name.encode() + b"\0"
    named = struct.pack(">I", len(text)) + text + bytes(78)
    tags = {b"desc": _tag(b"desc", named), b"wtpt": _xyz((0.9642, 1.0, 0.8249)), **tags}
    place, table, body = 132 + 12 * len(tags), b"", b""
    for sign, data in tags.items():
        table += sign + struct.pack(">II", place + len(body), len(data))
        body += data
    size = place + len(body)
    head = struct.pack(">I4sI4s4s4s12x4s", size, b"test", 0x02400000, kind, space, pcs, b"acsp")
    head = head.ljust(64, b"\0") + bytes(4)
    white = b"".join(struct.pack(">i", round(v * 65536)) for v in (0.9642, 1.0, 0.8249))
    return (head + white).ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def rgb_profile(name: str, primaries: Sequence[Sequence[float]], curve: Callable) -> bytes:
    columns = zip((b"r", b"g", b"b"), zip(*primaries, strict=True), strict=True)
    tags = {sign + b"XYZ": _xyz(column) for sign, column in columns}
    tags |= {sign + b"TRC": _curve(curve) for sign in (b"r", b"g", b"b")}
    return _profile(b"mntr", b"RGB ", b"XYZ ", name, tags)


def grey_profile(gamma: float) -> bytes:
    return _profile(b"mntr", b"GRAY", b"XYZ ", "grey", {b"kTRC": _curve(lambda v: v**gamma)})


def cmyk_profile(corner: Callable[[tuple[int, ...]], tuple[int, int, int]]) -> bytes:
    """A profile of two grid points a colour: `corner` gives Lab (L 0..100, a, b) of full inks."""
    cells = []
    for number in range(16):
        inks = tuple(number >> shift & 1 for shift in (3, 2, 1, 0))
        lightness, a, b = corner(inks)
        cells += [round(lightness * 2.55), a + 128, b + 128]
    same = bytes(range(256))
    matrix = b"".join(struct.pack(">i", 65536 * (i % 4 == 0)) for i in range(9))
    table = bytes((4, 3, 2, 0)) + matrix + same * 4 + bytes(cells) + same * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", "inks", {b"A2B0": _tag(b"mft1", table)})


P3 = rgb_profile("Display P3", P3_D50, srgb_curve)
ADOBE = rgb_profile("Adobe RGB (1998)", ADOBE_D50, lambda v: v**ADOBE_GAMMA)
