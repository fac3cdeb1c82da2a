"""A set of samples in memory, in place of shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from nextstep.data.documents import Document, SampleError, derived_seed
from nextstep.text.sequence import Sequence


@dataclass
class MadeUpEntry:
    key: str
    captions: Mapping[str, Any]
    sizes: tuple[tuple[int, int], ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)


class MadeUpSet:
    """Entries by list; pictures are noise of their number, the same whenever they are asked for."""

    def __init__(self, name: str, entries: list[MadeUpEntry]) -> None:
        self.name, self.entries = name, entries
        self.decoded: list[int] = []
        self.broken: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def entry(self, index: int) -> MadeUpEntry:
        return self.entries[index]

    def pictures(self, index: int) -> list[Image.Image]:
        self.decoded.append(index)
        if index in self.broken:
            raise SampleError(self.entries[index].key, self.broken[index])
        rng = np.random.default_rng(index)
        return [
            Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8))
            for w, h in self.entries[index].sizes
        ]


def captioned(
    count: int, name: str = "pairs", size: tuple[int, int] = (32, 32), **captions: Any
) -> MadeUpSet:
    """`count` pictures with a caption each."""
    return MadeUpSet(
        name,
        [
            MadeUpEntry(f"{name}/s/{i:04d}", {"caption": f"sample {i}", **captions}, (size,))
            for i in range(count)
        ],
    )


class NumberSource:
    """A source of bare lengths: sample i has `length(i)` ids, and a picture that tells its name."""

    def __init__(
        self,
        name: str,
        count: int,
        length: Callable[[int], int] = lambda i: 5,
        broken: Callable[[int], str | None] = lambda i: None,
        filtered: Callable[[int], bool] = lambda i: False,
        broken_pictures: Callable[[int], str | None] = lambda i: None,
        with_picture: bool = True,
    ) -> None:
        self.name, self.kind, self.count = name, "text", count
        self.length, self.broken, self.filtered = length, broken, filtered
        self.broken_pictures, self.with_picture = broken_pictures, with_picture

    def __len__(self) -> int:
        return self.count

    def document(self, index: int, seed: int) -> Document | None:
        key = f"{self.name}/{index}"
        if reason := self.broken(index):
            raise SampleError(key, reason)
        if self.filtered(index):
            return None
        ids = [derived_seed(seed, place) % 997 for place in range(self.length(index))]
        images = (0,) if self.with_picture else ()
        return Document(key, Sequence(ids, ids), images, seed, index)

    def pictures(self, document: Document) -> list[np.ndarray]:
        if reason := self.broken_pictures(document.payload):
            raise SampleError(document.key, reason)
        return [np.full((1, 1, 3), document.payload % 256, np.uint8)]
