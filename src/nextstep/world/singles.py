"""Single-object pictures as training sequences: text to image, style edits, background edits."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nextstep.data.batch import SequenceBatch, collate
from nextstep.text.sequence import Part, Picture, Text, build_sequence, editing, text_to_image
from nextstep.text.tokenizer import TextTokenizer
from nextstep.world import captions
from nextstep.world.scenes import single
from nextstep.world.vocabulary import COLOURS, OBJECTS, STYLES, background_allowed, is_held_out

COLOUR_NAMES = tuple(COLOURS)
Encode = Callable[[list[np.ndarray]], Tensor]


class LatentStore:
    """Image tokens of every (object, style, colour) picture, encoded once.

    Stored as a memory-mapped fp16 array [objects, styles, colours, N, D].
    """

    def __init__(self, path: Path) -> None:
        self.tokens = np.load(path, mmap_mode="r")
        self.side = int(self.tokens.shape[3] ** 0.5)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of every picture in the store."""
        return self.side, self.side

    def __call__(self, name: str, style: str, colour: str) -> Tensor:
        """Image tokens [N, D], fp32."""
        place = OBJECTS.index(name), STYLES.index(style), COLOUR_NAMES.index(colour)
        return torch.from_numpy(self.tokens[place].astype(np.float32))

    @staticmethod
    def build(path: Path, encode: Encode, size: int, token_shape: tuple[int, int]) -> None:
        """Encode every picture of `size` pixels.

        Args:
            path: the npy file to write.
            encode: list of uint8 [size, size, 3] -> tokens [n, N, D].
            size: side in pixels.
            token_shape: (N, D).
        """
        shape = (len(OBJECTS), len(STYLES), len(COLOURS), *token_shape)
        scratch = path.with_suffix(".part.npy")
        store = np.lib.format.open_memmap(scratch, "w+", np.float16, shape)
        for i, name in enumerate(OBJECTS):
            for j, style in enumerate(STYLES):
                pictures = [np.asarray(single(name, style, c, size)) for c in COLOUR_NAMES]
                store[i, j] = encode(pictures).numpy().astype(np.float16)
        store.flush()
        scratch.replace(path)


@dataclass
class SinglesMaker:
    """Training batches as a pure function of (seed, step).

    Attributes:
        store: image tokens of the pictures.
        tokenizer: text tokenizer.
        pictures: target pictures in a text-to-image batch; edit batches hold half as many.
        edit_share: share of edit batches, half of them of style, half of background.
        drop_text: share of rows without their text; an edit loses its source half as often.
        seed: of the whole stream.
    """

    store: LatentStore
    tokenizer: TextTokenizer
    pictures: int
    edit_share: float = 0.3
    drop_text: float = 0.1
    seed: int = 0
    trained_styles: dict[str, list[str]] = field(init=False)

    def __post_init__(self) -> None:
        self.trained_styles = {
            name: [style for style in STYLES if not is_held_out(name, style)] for name in OBJECTS
        }

    def __call__(self, step: int) -> SequenceBatch:
        """One batch of one kind of task."""
        rng = random.Random(self.seed * 1_000_003 + step)
        edit = rng.random() < self.edit_share
        rows = [self._edit(rng) if edit else self._picture(rng) for _ in range(self._rows(edit))]
        sequences = [build_sequence(parts, self.tokenizer) for parts, _ in rows]
        tokens = [picture for _, pictures in rows for picture in pictures]
        return collate(sequences, tokens, self.tokenizer.ids.pad, multiple=8)

    def _rows(self, edit: bool) -> int:
        return self.pictures // 2 if edit else self.pictures

    def _scene(self, rng: random.Random) -> tuple[str, str, str]:
        name = rng.choice(OBJECTS)
        style = rng.choice(self.trained_styles[name])
        return name, style, self._colour(rng, style)

    @staticmethod
    def _colour(rng: random.Random, style: str) -> str:
        return rng.choice([c for c in COLOUR_NAMES if background_allowed(style, c)])

    def _picture(self, rng: random.Random) -> tuple[list[Part], list[Tensor]]:
        scene = self._scene(rng)
        parts = text_to_image(captions.caption(rng, *scene), self.store.grid)
        if rng.random() < self.drop_text:
            parts = parts[1:]
        return parts, [self.store(*scene)]

    def _edit(self, rng: random.Random) -> tuple[list[Part], list[Tensor]]:
        name, style, colour = self._scene(rng)
        if rng.random() < 0.5:
            styles = [s for s in self.trained_styles[name] if background_allowed(s, colour)]
            new_style, new_colour = rng.choice(styles), colour
            text = captions.style_edit(rng, new_style)
        else:
            new_style, new_colour = style, self._colour(rng, style)
            text = captions.background_edit(rng, new_colour)
        grid = self.store.grid
        parts = editing("<image>" + text, [grid], grid)
        pictures = [self.store(name, style, colour), self.store(name, new_style, new_colour)]
        if rng.random() < self.drop_text:
            parts = [part for part in parts if not isinstance(part, Text)]
            if rng.random() < 0.5:
                parts, pictures = [Picture(grid)], pictures[1:]
        return parts, pictures
