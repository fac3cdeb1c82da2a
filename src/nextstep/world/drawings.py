"""Drawings ready to be put into scenes: from the atlas that ships, else from the full sets.

The atlas holds every object of the scenes in every training style, cut to its outline, RGBA,
longest side `ATLAS_SIDE`. One lossless WebP sheet a style, all with the same cells, and a JSON
index.

Legend: drawings are [height, width, 4], RGBA, uint8.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from nextstep.world.colours import main_colour, painted, stands_out
from nextstep.world.lexicon import world_objects
from nextstep.world.vocabulary import COLOURS, STYLES, TONES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nextstep.world.sources import EmojiSet

ATLAS_SIDE = 105
"""Longest side of a stored drawing in pixels: that of a single drawing in a 128 px picture."""

ATLAS_COLUMNS = 18
ATLAS_FOLDER = Path(__file__).parent / "atlas"


@dataclass(frozen=True)
class Atlas:
    """The stored drawings.

    Attributes:
        folder: where the sheets are.
        cells: drawing name (a label, or "LABEL|TONE") -> cell number.
        sizes: style -> (width, height) of every cell's drawing, None where the style has none.
    """

    folder: Path
    cells: dict[str, int]
    sizes: dict[str, list[tuple[int, int] | None]]

    @classmethod
    def open(cls, folder: Path = ATLAS_FOLDER) -> Atlas:
        """Read the index.

        Raises:
            FileNotFoundError: when the folder has none.
        """
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        sizes = {
            style: [None if size is None else (size[0], size[1]) for size in listed]
            for style, listed in index["sizes"].items()
        }
        return cls(folder, {name: i for i, name in enumerate(index["names"])}, sizes)

    def has(self, name: str, style: str, tone: str | None = None) -> bool:
        """Whether this drawing is stored."""
        cell = self.cells.get(cell_name(name, tone))
        return cell is not None and style in self.sizes and self.sizes[style][cell] is not None

    def drawing(self, name: str, style: str, tone: str | None = None) -> Image.Image:
        """The stored drawing, RGBA.

        Raises:
            KeyError: when it is not there.
        """
        if not self.has(name, style, tone):
            raise KeyError(f"the atlas has no {cell_name(name, tone)} in style {style}")
        cell = self.cells[cell_name(name, tone)]
        width, height = self.sizes[style][cell] or (0, 0)
        left, top = cell % ATLAS_COLUMNS * ATLAS_SIDE, cell // ATLAS_COLUMNS * ATLAS_SIDE
        return _sheet(self.folder / f"{style}.webp").crop((left, top, left + width, top + height))


@functools.cache
def _sheet(path: Path) -> Image.Image:
    return Image.open(path).convert("RGBA")


@functools.cache
def atlas() -> Atlas:
    """The atlas that ships with the package."""
    return Atlas.open()


def cell_name(name: str, tone: str | None) -> str:
    """How a drawing is called in the index."""
    return f"{name}|{tone}" if tone else name


def atlas_names() -> list[str]:
    """What the atlas holds, in cell order; tones stand right after their object."""
    names = []
    for obj in world_objects().values():
        names += [cell_name(obj.label, tone) for tone in (None, *(TONES if obj.toned else ()))]
    return names


def build_atlas(
    folder: Path,
    names: Sequence[str] | None = None,
    styles: Sequence[str] = STYLES,
    say: Callable[[str], None] = print,
) -> None:
    """Render the atlas from the full sets.

    Args:
        folder: where sheets and index go; it changes only when all of them are made.
        names: what to store, as in the index; None for everything that scenes use.
        styles: one sheet each.
        say: told the size of each file.

    Raises:
        KeyError: when a set lacks an object.
    """
    names = atlas_names() if names is None else names
    sizes: dict[str, list[tuple[int, int] | None]] = {}
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / f"{style}.webp.part" for style in styles] + [folder / "index.json.part"]
    for style, path in zip(styles, written, strict=False):
        sheet, sizes[style] = _sheet_of(names, style)
        sheet.save(path, "WEBP", lossless=True, quality=100, method=6)
        say(f"{style}.webp {path.stat().st_size / 1e6:.2f} MB")
    index = json.dumps({"names": list(names), "sizes": sizes}, separators=(",", ":"))
    written[-1].write_text(index + "\n", encoding="utf-8")
    for path in written:
        path.replace(path.with_suffix(""))


def _sheet_of(names: Sequence[str], style: str) -> tuple[Image.Image, list[tuple[int, int] | None]]:
    """One style's drawings in their cells, and their sizes."""
    rows = -(-len(names) // ATLAS_COLUMNS)
    sheet = Image.new("RGBA", (ATLAS_COLUMNS * ATLAS_SIDE, rows * ATLAS_SIDE))
    sizes: list[tuple[int, int] | None] = []
    for cell, name in enumerate(names):
        label, _, tone = name.partition("|")
        if tone and style == "mono":
            sizes.append(None)
            continue
        picture = from_sets(label, style, tone or None)
        sizes.append(picture.size)
        place = cell % ATLAS_COLUMNS * ATLAS_SIDE, cell // ATLAS_COLUMNS * ATLAS_SIDE
        sheet.paste(picture, place)
    return sheet, sizes


@functools.cache
def emoji_set(style: str) -> EmojiSet:
    """The full set of one style, read once."""
    from nextstep.world.sources import EmojiSet

    return EmojiSet(style)


def from_sets(name: str, style: str, tone: str | None = None) -> Image.Image:
    """A drawing of the full sets at the atlas's scale, RGBA.

    Raises:
        KeyError: when the style does not draw it.
        RuntimeError: when the sets cannot be fetched.
    """
    from nextstep.world.sources import emoji_names, toned_codes

    if tone is None:
        if name not in emoji_names():
            raise KeyError(f"no emoji is called '{name}'")
        return emoji_set(style).draw(emoji_names()[name], ATLAS_SIDE)
    return emoji_set(style).draw(toned_codes()[name][TONES.index(tone)], ATLAS_SIDE)


@functools.lru_cache(maxsize=1024)
def full_drawing(
    name: str, style: str, tone: str | None = None, tint: str | None = None
) -> Image.Image:
    """A drawing at the atlas's scale, painted if asked; from the atlas where it can be."""
    if atlas().has(name, style, tone):
        picture = atlas().drawing(name, style, tone)
    else:
        picture = from_sets(name, style, tone)
    if tint is not None:
        picture = Image.fromarray(painted(np.asarray(picture), tint))
    return picture


@functools.lru_cache(maxsize=8192)
def sprite(
    name: str,
    style: str,
    side: int,
    tone: str | None = None,
    tint: str | None = None,
    flip: bool = False,
) -> Image.Image:
    """A drawing scaled so that its longest side has `side` pixels, RGBA. Not to be changed."""
    if flip:
        return sprite(name, style, side, tone, tint).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture = full_drawing(name, style, tone, tint)
    if side == ATLAS_SIDE == max(picture.size):
        return picture
    scale = side / max(picture.size)
    shape = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    premultiplied = picture.convert("RGBa").resize(shape, Image.Resampling.LANCZOS)
    return premultiplied.convert("RGBA")


@functools.lru_cache(maxsize=4096)
def _thumbnail(name: str, style: str, tone: str | None = None) -> np.ndarray:
    """A drawing at a third of its scale, enough to measure colours on; RGBA."""
    return np.asarray(sprite(name, style, ATLAS_SIDE // 3, tone))


@functools.lru_cache(maxsize=16384)
def colour_of(
    name: str, style: str, tone: str | None = None, tint: str | None = None, share: float = 0.6
) -> str | None:
    """The one colour word for a drawing, None where no colour has this share of it."""
    return tint or main_colour(_thumbnail(name, style, tone), share)


@functools.lru_cache(maxsize=65536)
def visible_on(name: str, style: str, tint: str | None, colour: str) -> bool:
    """Whether a drawing can be told from a background of this colour."""
    if tint == colour or (style == "mono" and tint is None and colour == "black"):
        return False
    picture = _thumbnail(name, style)
    if tint is not None:
        picture = painted(picture, tint)
    return stands_out(picture, COLOURS[colour]) >= 0.6


@functools.lru_cache(maxsize=4096)
def faces_a_side(name: str, style: str) -> bool:
    """Whether a drawing looks clearly different when it is turned round."""
    premultiplied = np.asarray(sprite(name, style, 32).convert("RGBa"), np.int32)
    on_white = premultiplied[..., :3] + 255 - premultiplied[..., 3:]
    return float(np.abs(on_white - on_white[:, ::-1]).mean()) > 40
