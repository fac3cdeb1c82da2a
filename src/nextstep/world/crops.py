"""Busy crops for training the image tokenizer: drawings at any scale over colours and photos.

Legend: B crops of `size` pixels a side; n drawings of s pixels a side, RGBA.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nextstep.world.vocabulary import COLOURS

SHARE_ALIKE_NAMES = (
    "bwerner", "myrabella", "dmottl", "mfield", "sfiera", "striker", "harro", "iridium", "spfld",
)  # fmt: skip
"""Photographers of endless-sky-data whose pictures are share-alike: left out of training."""


def load_photos(folder: Path) -> list[Image.Image]:
    """The public-domain photographs of an unpacked endless-sky-data package, RGB."""
    files = sorted(folder.rglob("land/*.jpg"))
    kept = [f for f in files if not any(name in f.stem for name in SHARE_ALIKE_NAMES)]
    return [Image.open(file).convert("RGB") for file in kept]


class CropMaker:
    """Random square crops as a pure function of (seed, step).

    Args:
        icons: uint8 [n, s, s, 4], RGBA drawings.
        photos: RGB pictures larger than the crop; may be empty.
        size: side of a crop in pixels.
        batch: crops a batch.
    """

    def __init__(
        self, icons: np.ndarray, photos: list[Image.Image], size: int, batch: int, seed: int = 0
    ) -> None:
        self.icons, self.photos, self.size, self.batch, self.seed = icons, photos, size, batch, seed

    def __call__(self, step: int) -> Tensor:
        """Pixels [B, 3, size, size] in [-1, 1]."""
        rng = random.Random(self.seed * 1_000_003 + step)
        crops = np.stack([np.asarray(self._crop(rng)) for _ in range(self.batch)])
        return torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 127.5 - 1

    def crop(self, number: int, seed: int) -> np.ndarray:
        """One crop, uint8 [size, size, 3], that depends on `seed` alone."""
        return np.asarray(self._crop(random.Random(seed)))

    def _crop(self, rng: random.Random) -> Image.Image:
        if self.photos and rng.random() < 0.25:
            return self._photo(rng)
        canvas = self._background(rng)
        for _ in range(rng.choice((1, 1, 2, 3))):
            side = round(self.size * rng.uniform(0.4, 1.7))
            icon = Image.fromarray(self.icons[rng.randrange(len(self.icons))], "RGBA")
            icon = icon.resize((side, side), Image.Resampling.BICUBIC)
            if rng.random() < 0.5:
                icon = icon.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            reach = side // 3
            x, y = (rng.randint(-2 * reach, max(1, self.size - reach)) for _ in range(2))
            canvas.paste(icon, (x, y), icon)
        return canvas

    def _photo(self, rng: random.Random) -> Image.Image:
        photo = rng.choice(self.photos)
        side = rng.randint(self.size, min(photo.size))
        x, y = rng.randint(0, photo.width - side), rng.randint(0, photo.height - side)
        shape = (self.size, self.size)
        return photo.resize(shape, Image.Resampling.BICUBIC, box=(x, y, x + side, y + side))

    def _background(self, rng: random.Random) -> Image.Image:
        kind = rng.random()
        if self.photos and kind < 0.1:
            return self._photo(rng)
        if kind < 0.7:
            return Image.new("RGB", (self.size,) * 2, rng.choice(list(COLOURS.values())))
        first, second = (np.array([rng.randrange(256) for _ in range(3)]) for _ in range(2))
        if kind < 0.85:
            return Image.new("RGB", (self.size,) * 2, tuple(int(c) for c in first))
        ramp = np.linspace(0, 1, self.size)[:, None]
        column = (first + (second - first) * ramp).astype(np.uint8)
        flat = np.broadcast_to(column[:, None], (self.size, self.size, 3))
        return Image.fromarray(
            np.ascontiguousarray(flat if rng.random() < 0.5 else flat.swapaxes(0, 1))
        )
