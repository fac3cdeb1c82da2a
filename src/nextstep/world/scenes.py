"""Putting drawings on backgrounds."""

from __future__ import annotations

import functools

from PIL import Image

from nextstep.world.sources import EmojiSet, emoji_names
from nextstep.world.vocabulary import COLOURS

FILL = 0.82
"""Longest side of a single drawing as a share of the picture's side."""


@functools.cache
def emoji_set(style: str) -> EmojiSet:
    """The set of one style, read once."""
    return EmojiSet(style)


@functools.lru_cache(maxsize=4096)
def drawing(name: str, style: str, side: int) -> Image.Image:
    """The drawing of a named object, RGBA, longest side `side` pixels."""
    return emoji_set(style).draw(emoji_names()[name], side)


def compose(icon: Image.Image, colour: tuple[int, int, int], size: int) -> Image.Image:
    """One RGBA drawing centred on a plain square background, RGB `size` x `size`."""
    canvas = Image.new("RGB", (size, size), colour)
    canvas.paste(icon, ((size - icon.width) // 2, (size - icon.height) // 2), icon)
    return canvas


def single(name: str, style: str, colour: str, size: int = 128) -> Image.Image:
    """The picture of "NAME, STYLE style, COLOUR background"."""
    return compose(drawing(name, style, round(size * FILL)), COLOURS[colour], size)
