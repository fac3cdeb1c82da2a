"""Scenes: what stands where on which background, and their pictures.

A `Scene` is all there is to know about a picture, in shares of its side, so that the same scene can
be drawn at any size. `render` is a pure function of it.

Legend: size: pixels of a picture's side, RGB (drawings RGBA), uint8; masks are bool [size, size].
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from nextstep.errors import NextStepError
from nextstep.world.colours import as_grey
from nextstep.world.drawings import emoji_set, sprite
from nextstep.world.signs import board
from nextstep.world.vocabulary import COLOURS

__all__ = [
    "FILL",
    "Background",
    "Scene",
    "SceneItem",
    "Sign",
    "compose",
    "drawing",
    "emoji_set",
    "render",
    "single",
]  # fmt: skip

FILL = 0.82
"""Longest side of a single drawing as a share of the picture's side."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Background:
    """A plain colour, or one that fades into another from top to bottom.

    Attributes:
        colour: a name of `vocabulary.COLOURS`.
        to: the colour at the bottom, None for a plain background.
    """

    colour: str = "white"
    to: str | None = None

    @property
    def colours(self) -> tuple[str, ...]:
        """Its one or two colour names."""
        return (self.colour,) if self.to is None else (self.colour, self.to)

    @property
    def words(self) -> str:
        """What stands before "background", e.g. "blue" or "blue to pink"."""
        return " to ".join(self.colours)


@dataclass(frozen=True)
class SceneItem:
    """One drawing in a scene.

    Attributes:
        name: label of the object.
        style: drawing style.
        x: centre, as a share of the width from the left.
        y: centre, as a share of the height from the top.
        size: longest side as a share of the picture's side.
        tone: skin tone, None for the drawing's own.
        tint: colour it is painted in, None for its own colours.
        flip: whether it is turned round.
    """

    name: str
    style: str
    x: float = 0.5
    y: float = 0.5
    size: float = FILL
    tone: str | None = None
    tint: str | None = None
    flip: bool = False

    def sprite(self, size: int) -> Image.Image:
        """Its drawing for a picture of `size` pixels, RGBA."""
        side = max(1, round(self.size * size))
        return sprite(self.name, self.style, side, self.tone, self.tint, self.flip)

    def box(self, size: int) -> Box:
        """Left, top, right, bottom in pixels of a picture of `size` pixels; may leave it."""
        width, height = self.sprite(size).size
        left = math.floor(self.x * size - width / 2)
        top = math.floor(self.y * size - height / 2)
        return left, top, left + width, top + height


@dataclass(frozen=True)
class Sign:
    """A board with a short word on it.

    Attributes:
        text: 1 to 8 letters, drawn as they are.
        x: centre, as a share of the width.
        y: centre, as a share of the height.
        width: greatest width as a share of the picture's side; short words take less.
        height: height as a share of the picture's side.
        pitch: width of every letter's place as a share of the picture's side; None sets letters
            close.
    """

    text: str
    x: float = 0.5
    y: float = 0.5
    width: float = 0.92
    height: float = 0.3
    pitch: float | None = None

    def picture(self, size: int) -> Image.Image:
        """The board for a picture of `size` pixels, RGBA."""
        pitch = self.pitch and round(self.pitch * size)
        return board(self.text, round(self.width * size), round(self.height * size), pitch)

    def box(self, size: int) -> Box:
        """Left, top, right, bottom in pixels of a picture of `size` pixels."""
        width, height = self.picture(size).size
        left = math.floor(self.x * size - width / 2)
        top = math.floor(self.y * size - height / 2)
        return left, top, left + width, top + height


@dataclass(frozen=True)
class Scene:
    """A whole picture.

    Attributes:
        background: what is behind everything.
        items: drawings from back to front.
        sign: a board with a word, in front of the items.
        more_signs: further boards, above that one.
        grey: whether the picture has lost its colours.
        hole: left, top, right, bottom of a missing part, in shares of the side.
    """

    background: Background = Background()
    items: tuple[SceneItem, ...] = ()
    sign: Sign | None = None
    more_signs: tuple[Sign, ...] = ()
    grey: bool = False
    hole: tuple[float, float, float, float] | None = None

    @property
    def signs(self) -> tuple[Sign, ...]:
        """All of its boards, from top to bottom."""
        return (*self.more_signs, self.sign) if self.sign else self.more_signs

    def with_item(self, place: int, item: SceneItem) -> Scene:
        """The scene with one item changed."""
        return replace(self, items=(*self.items[:place], item, *self.items[place + 1 :]))

    def without_item(self, place: int) -> Scene:
        """The scene with one item less."""
        return replace(self, items=(*self.items[:place], *self.items[place + 1 :]))

    def adding(self, item: SceneItem) -> Scene:
        """The scene with one item more, in front."""
        return replace(self, items=(*self.items, item))


def grid_sign(text: str, row: int) -> Sign:
    """A sign on the grid of 8x8 image tokens, each letter two tokens wide and high.

    Args:
        text: 1 to 4 letters.
        row: first of the two rows of tokens that it takes.
    """
    return Sign(text, y=(row + 1) / 8, width=1.0, height=0.25, pitch=0.25)


def check_side(side: int, name: str = "pixels") -> None:
    """Whether a picture of that side can be cut into image tokens.

    Raises:
        NextStepError: unless it is a positive multiple of 16.
    """
    if side < 16 or side % 16:
        raise NextStepError(f"{name} must be a positive multiple of 16, not {side}")


def render(scene: Scene, size: int = 128) -> np.ndarray:
    """The picture of a scene, uint8 [size, size, 3]."""
    canvas = _background(scene.background, size).copy()
    for item in scene.items:
        picture = item.sprite(size)
        canvas.paste(picture, item.box(size)[:2], picture)
    for sign in scene.signs:
        picture = sign.picture(size)
        canvas.paste(picture, sign.box(size)[:2], picture)
    pixels = np.array(canvas)
    if scene.grey:
        pixels = as_grey(pixels)
    if scene.hole is not None:
        left, top, right, bottom = (round(edge * size) for edge in scene.hole)
        pixels[top:bottom, left:right] = _checks(size)[top:bottom, left:right]
    return pixels


@functools.lru_cache(maxsize=512)
def _background(background: Background, size: int) -> Image.Image:
    first = COLOURS[background.colour]
    if background.to is None:
        return Image.new("RGB", (size, size), first)
    share = np.linspace(0, 1, size)[:, None]
    column = np.array(first) + (np.array(COLOURS[background.to]) - np.array(first)) * share
    rows = np.broadcast_to(np.rint(column)[:, None], (size, size, 3))
    return Image.fromarray(rows.astype(np.uint8))


@functools.cache
def _checks(size: int) -> np.ndarray:
    """Black and white checks: nothing in a scene looks like them, so a hole is always seen."""
    places = np.arange(size) * 32 // size
    checks = (places[:, None] + places) % 2 * 255
    return np.repeat(checks[..., None], 3, axis=-1).astype(np.uint8)


def drawing(name: str, style: str, side: int) -> Image.Image:
    """The drawing of a named object, RGBA, longest side `side` pixels."""
    return sprite(name, style, side)


def compose(icon: Image.Image, colour: tuple[int, int, int], size: int) -> Image.Image:
    """One RGBA drawing centred on a plain square background, RGB `size` x `size`."""
    canvas = Image.new("RGB", (size, size), colour)
    canvas.paste(icon, ((size - icon.width) // 2, (size - icon.height) // 2), icon)
    return canvas


def single(name: str, style: str, colour: str, size: int = 128) -> Image.Image:
    """The picture of "NAME, STYLE style, COLOUR background"."""
    return Image.fromarray(render(Scene(Background(colour), (SceneItem(name, style),)), size))


def changed_region(before: Scene, after: Scene, size: int = 128) -> np.ndarray:
    """Where two scenes' pictures differ, bool [size, size]."""
    return np.any(render(before, size) != render(after, size), axis=-1)
