"""Crops of emoji drawings as a live source of the tokenizer stage.

Legend: n drawings of `side` pixels, RGBA.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nextstep.data.documents import derived_seed
from nextstep.errors import NextStepError
from nextstep.world.crops import CropMaker, load_photos
from nextstep.world.scenes import render
from nextstep.world.sources import all_drawings, cache_dir
from nextstep.world.tasks import TASKS, choose_tasks, example
from nextstep.world.vocabulary import TOKENIZER_STYLES

if TYPE_CHECKING:
    from nextstep.data.steps import MakeCrop

SIDE = 104
"""Longest side of a stored drawing in pixels."""
SCENE_SIDES = (96, 112, 128, 144, 160)
"""Sides in pixels that scenes are drawn at before they are cut."""


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


def scene_crops(
    size: int, sides: tuple[int, ...] | list[int] = SCENE_SIDES, edition: str = "full"
) -> MakeCrop:
    """Crops of whole scenes of the world: several objects, signs with words, any task's pictures.

    Held-out pairs are not among them, as in all training.

    Args:
        size: side of a crop in pixels.
        sides: sides in pixels that scenes are drawn at; those below `size` are left out.
        edition: of the world, see `editions`.

    Raises:
        NextStepError: when no side is left, or there is no such edition.
    """
    large = [side for side in sides if side >= size]
    if not large:
        raise NextStepError(f"sides: one at least must reach the {size} pixels of a crop")
    known = choose_tasks(None, edition)
    tasks = [name for name, task in TASKS.items() if task.kind != "text" and name in known]

    def crop(number: int, seed: int) -> np.ndarray:
        rng = random.Random(derived_seed("scene crop", seed))
        made = example(rng.choice(tasks), derived_seed("scene", seed), edition=edition)
        scene, side = rng.choice(made.scenes), rng.choice(large)
        x, y = rng.randint(0, side - size), rng.randint(0, side - size)
        return render(scene, side)[y : y + size, x : x + size]

    return crop


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
