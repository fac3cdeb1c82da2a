"""Batches of square crops for the tokenizer stage, the same on any number of ranks.

Picture number n of a run is a pure function of (seed, n). Step s takes pictures s*P to (s+1)*P and
deals them out: micro-batch m of all of them belongs to rank m modulo the number of ranks.

Legend: S pixels of a crop's side, RGB, uint8.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from nextstep.data.documents import SampleError, derived_seed
from nextstep.data.steps import MakeCrop, Step
from nextstep.errors import NextStepError
from nextstep.image.formats import is_picture
from nextstep.image.pictures import open_picture
from nextstep.train.stages.tokenizer import PictureBatch


class RandomCrops:
    """Crops of a set of pictures: every picture once an epoch, at a random place and scale.

    A picture that cannot be read is counted by its reason in `broken`, and the next one that can be
    takes its place.

    Args:
        count: how many pictures there are.
        read: index -> RGB picture; may raise `SampleError`, ValueError or OSError.
        size: side of a crop in pixels.
        seed: of the order.

    Raises:
        NextStepError: when there are none; later, when none of them can be read.
    """

    def __init__(
        self, count: int, read: Callable[[int], Image.Image], size: int, seed: int = 0
    ) -> None:
        if count < 1:
            raise NextStepError("there are no pictures to take crops of")
        self.count, self.read, self.size, self.seed = count, read, size, seed
        self.broken: dict[str, set[int]] = {}

    def __call__(self, number: int, seed: int) -> np.ndarray:
        """Picture `number` of the run, cut as `seed` says."""
        epoch, place = divmod(number, self.count)
        order = _shuffled(self.count, derived_seed(self.seed, "crops", epoch))
        for step in range(self.count):
            index = order[(place + step) % self.count]
            try:
                picture = self.read(index)
            except (SampleError, ValueError, OSError) as error:
                reason = error.reason if isinstance(error, SampleError) else "unreadable picture"
                self.broken.setdefault(reason, set()).add(index)
                continue
            return self._cut(picture, random.Random(seed))
        raise NextStepError(f"none of the {self.count} pictures can be read")

    def _cut(self, picture: Image.Image, rng: random.Random) -> np.ndarray:
        """A square of a random scale and place; pictures that are too small are enlarged."""
        largest = min(picture.size)
        side = rng.randint(min(self.size, largest), largest)
        x, y = rng.randint(0, picture.width - side), rng.randint(0, picture.height - side)
        box, shape = (x, y, x + side, y + side), (self.size, self.size)
        crop = picture.resize(shape, Image.Resampling.BICUBIC, box=box)
        if rng.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(crop)


@functools.lru_cache(maxsize=4)
def _shuffled(count: int, seed: int) -> list[int]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


def folder_crops(folder: Path, size: int, seed: int = 0) -> RandomCrops:
    """Random crops of every picture in a folder and the folders inside it.

    Raises:
        NextStepError: when there is none.
    """
    files = sorted(f for f in folder.rglob("*") if is_picture(f.suffix) and f.name[0] != ".")
    if not files:
        raise NextStepError(f"{folder} holds no pictures")
    return RandomCrops(len(files), lambda index: open_picture(files[index]), size, seed)


def mixed_crops(makers: Sequence[tuple[MakeCrop, float]]) -> MakeCrop:
    """One of several makers for every picture, drawn with the given shares.

    Raises:
        NextStepError: when there is none, or a share is not positive.
    """
    if not makers or not all(share > 0 for _, share in makers):
        raise NextStepError("crops need at least one source, each with a positive share")
    given, shares = zip(*makers, strict=True)

    def make(number: int, seed: int) -> np.ndarray:
        chosen: MakeCrop = random.Random(derived_seed(seed, "source")).choices(given, shares)[0]
        return chosen(number, seed)

    return make


class CropBatches:
    """A `BatchSource` of crops.

    Args:
        make: see `MakeCrop`.
        pictures: in a step, over all ranks.
        micro: pictures in one micro-batch.
        seed: of the whole stream.
        rank, world: which part of every step this process gets.

    Raises:
        ValueError: when the micro-batches of a step cannot be dealt out evenly.
    """

    def __init__(
        self,
        make: MakeCrop,
        pictures: int,
        micro: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.make, self.pictures, self.seed = make, pictures, seed
        self.micro = micro or max(1, pictures // world)
        if pictures < 1 or pictures % (self.micro * world):
            raise ValueError(
                f"{pictures} pictures a step cannot be dealt out to {world} rank(s) in "
                f"micro-batches of {self.micro}"
            )
        self.rank, self.world, self.step = rank, world, 0

    def next_step(self) -> Step:
        """The next step of this rank."""
        starts = range(self.step * self.pictures, (self.step + 1) * self.pictures, self.micro)
        mine = list(starts)[self.rank :: self.world]
        batches = [self._batch(start) for start in mine]
        keys = [f"crop/{n}" for start in mine for n in range(start, start + self.micro)]
        self.step += 1
        return Step(batches, keys, 0, self.state_dict())

    def _batch(self, start: int) -> PictureBatch:
        numbers = range(start, start + self.micro)
        seeds = tuple(derived_seed(self.seed, "picture", number) for number in numbers)
        crops = [
            self.make(number, derived_seed(seed, "crop"))
            for number, seed in zip(numbers, seeds, strict=True)
        ]
        pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1
        return PictureBatch(pixels, seeds, self.step)

    def state_dict(self) -> dict[str, Any]:
        """The number of the next step."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved step."""
        self.step = int(state["step"])
