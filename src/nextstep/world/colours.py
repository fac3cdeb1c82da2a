"""Colours: their words measured from pixels, and drawings painted in another colour.

Legend: h w pixels of a drawing; channels are RGB or RGBA, uint8.
"""

from __future__ import annotations

import numpy as np

TINTS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 49),
    "orange": (243, 140, 40),
    "yellow": (250, 211, 80),
    "green": (76, 175, 80),
    "blue": (66, 133, 244),
    "purple": (142, 68, 173),
    "pink": (248, 150, 190),
    "gray": (150, 150, 150),
}
"""Colours in which a drawing can be painted, sRGB 0..255."""

COLOUR_WORDS = (
    "black", "gray", "white", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown",
)  # fmt: skip
"""Words that pixels can get: the eleven basic colour terms of English."""

_NAMES = (*COLOUR_WORDS, "skin")
_OPAQUE = 160


def oklab(rgb: np.ndarray) -> np.ndarray:
    """OKLab of sRGB 0..255, [..., 3] -> [..., 3] (lightness 0..1, a, b); Ottosson 2020."""
    x = np.asarray(rgb, np.float32) / 255
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    to_lms = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ],
        np.float32,
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ],
        np.float32,
    )
    return np.cbrt(linear @ to_lms.T) @ to_lab.T


def colour_index(rgb: np.ndarray) -> np.ndarray:
    """Which colour word each pixel gets, as a place in `COLOUR_WORDS`, or 11 for pale skin tones.

    Args:
        rgb: [..., 3], sRGB 0..255.

    Returns:
        Integers [...].
    """
    lab = oklab(rgb)
    light, chroma = lab[..., 0], np.hypot(lab[..., 1], lab[..., 2])
    hue = np.degrees(np.arctan2(lab[..., 2], lab[..., 1])) % 360
    rules = [
        ("black", light < 0.26),
        ("black", (chroma < 0.035) & (light < 0.40)),
        ("white", (chroma < 0.03) & (light > 0.88)),
        ("gray", chroma < 0.035),
        ("pink", (hue < 12) & (light > 0.55)),
        ("pink", (hue < 25) & (light > 0.68)),
        ("pink", (hue < 45) & (light > 0.76) & (chroma > 0.06)),
        ("brown", (hue > 27) & (hue < 100) & (light < 0.65) & (chroma < 0.14)),
        ("red", (hue < 38) & (chroma > 0.11)),
        ("brown", (hue < 100) & (light < 0.60)),
        ("skin", (hue < 95) & (chroma < 0.13)),
        ("orange", (hue < 74)),
        ("yellow", (hue < 115) & (light > 0.68)),
        ("green", (hue < 190)),
        ("blue", (hue < 286)),
        ("purple", (hue < 335)),
        ("pink", light > 0.55),
        ("purple", light < 0.42),
    ]
    return np.select([test for _, test in rules], [_NAMES.index(n) for n, _ in rules], 3)


def colour_shares(drawing: np.ndarray) -> dict[str, float]:
    """How much of a drawing has each colour, most first.

    Args:
        drawing: uint8 [h, w, 4], RGBA; half-transparent pixels do not count.
    """
    opaque = drawing[drawing[..., 3] >= _OPAQUE][:, :3]
    if not len(opaque):
        return {}
    counts = np.bincount(colour_index(opaque), minlength=len(_NAMES)) / len(opaque)
    order = np.argsort(-counts, kind="stable")
    return {_NAMES[i]: float(counts[i]) for i in order if counts[i] > 0}


def main_colour(drawing: np.ndarray, share: float = 0.6) -> str | None:
    """The word for a drawing that is mostly of one colour, else None."""
    found = colour_shares(drawing)
    first = next(iter(found), None)
    return first if first in COLOUR_WORDS and found[first] >= share else None


def painted(drawing: np.ndarray, colour: str) -> np.ndarray:
    """A drawing in shades of one colour: its middle grey becomes the colour itself.

    Args:
        drawing: uint8 [h, w, 4], RGBA.
        colour: a key of `TINTS`.

    Returns:
        uint8 [h, w, 4] with the same outline.
    """
    grey = drawing[..., :3].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32) / 255
    opaque = grey[drawing[..., 3] >= _OPAQUE]
    if not len(opaque):
        return drawing
    middle = float(np.median(opaque))
    full = np.array(TINTS[colour], np.float32)
    dark = full * (0.2 + 0.3 * float(full @ [0.299, 0.587, 0.114]) / 255)
    light = 255 - (255 - full) * 0.4
    # A step in grey counts as it would from mid-grey, so flat drawings stay flat.
    step = grey[..., None] - middle
    down = np.clip(-step / max(middle, 0.5), 0, 1)
    up = np.clip(step / max(1 - middle, 0.5), 0, 1)
    shades = full + down * (dark - full) + up * (light - full)
    return np.dstack([np.rint(shades).astype(np.uint8), drawing[..., 3]])


def as_grey(picture: np.ndarray) -> np.ndarray:
    """A picture without its colours, uint8 [h, w, 3]."""
    grey = picture.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=-1)


def stands_out(drawing: np.ndarray, background: tuple[int, int, int]) -> float:
    """Share of a drawing's pixels that differ clearly from a background, 0..1."""
    opaque = drawing[drawing[..., 3] >= _OPAQUE][:, :3].astype(np.int32)
    if not len(opaque):
        return 0.0
    apart = np.abs(opaque - np.array(background, np.int32)).sum(-1)
    return float((apart > 110).mean())
