"""Crops of emoji drawings as a live source of the tokenizer stage."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nextstep.errors import NextStepError
from nextstep.world.crops import CropMaker, load_photos
from nextstep.world.sources import all_drawings, cache_dir
from nextstep.world.vocabulary import TOKENIZER_STYLES

if TYPE_CHECKING:
    from nextstep.stages.crops import MakeCrop

SIDE = 104
"""Longest side of a stored drawing in pixels."""


def drawn_crops(size: int, photos: str = "", styles: tuple[str, ...] | list[str] = ()) -> MakeCrop:
    """Crops of drawings at any scale over colours, gradients and, if given, photographs.

    The drawings are rendered once, into the cache folder; that takes a minute or two.

    Args:
        size: side of a crop in pixels.
        photos: folder of an unpacked endless-sky-data package; without it there are none.
        styles: drawing styles; default `TOKENIZER_STYLES`.

    Raises:
        NextStepError: when the folder holds no photographs.
    """
    found = load_photos(Path(photos)) if photos else []
    if photos and not found:
        raise NextStepError(f"{photos} holds no photographs in land/*.jpg")
    icons = np.load(drawings_file(tuple(styles or TOKENIZER_STYLES)), mmap_mode="r")
    return CropMaker(icons, found, size, batch=1).crop


def drawings_file(styles: tuple[str, ...], side: int = SIDE) -> Path:
    """An npy file, uint8 [n, side, side, 4], with every drawing of some styles; made when missing.

    Raises:
        NextStepError: when a style is unknown.
    """
    unknown = [style for style in styles if style not in TOKENIZER_STYLES]
    if unknown:
        raise NextStepError(
            f"unknown drawing style '{unknown[0]}'; choose from {', '.join(TOKENIZER_STYLES)}"
        )
    path = cache_dir() / f"drawings-{'-'.join(styles)}-{side}.npy"
    if path.exists():
        return path
    drawn = [_centred(icon, side) for style in styles for _, icon in all_drawings(style, side)]
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}.npy")  # ranks may render at once
    np.save(scratch, np.stack(drawn))
    scratch.replace(path)
    return path


def _centred(icon: object, side: int) -> np.ndarray:
    """A drawing in the middle of a transparent square."""
    drawn = np.asarray(icon)
    square = np.zeros((side, side, 4), np.uint8)
    top, left = (side - drawn.shape[0]) // 2, (side - drawn.shape[1]) // 2
    square[top : top + drawn.shape[0], left : left + drawn.shape[1]] = drawn
    return square
