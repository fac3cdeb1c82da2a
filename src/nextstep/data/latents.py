"""The latent cache: every picture of a source encoded once, its image tokens mapped from disk.

    CACHE/cache.json       what was encoded, and by which tokenizer
    CACHE/part-00000.bin   image tokens of the first samples, fp16, one picture after another
    CACHE/part-00000.json  their keys and grids, in the same order

A part appears by renaming, its JSON last, so a cache that was broken off goes on where it stopped.

Legend: D values per token; a picture has rows*columns tokens in raster order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from nextstep.data.documents import Document, SampleError, Source, derived_seed
from nextstep.data.ordered import ordered_map
from nextstep.data.sources import Stills
from nextstep.errors import NextStepError
from nextstep.text.sequence import Grid
from nextstep.utils.files import read_json, write_json, write_whole, writing

if TYPE_CHECKING:
    from nextstep.vae.tokenizer import ImageTokenizer

FORMAT = "nextstep-latents"
VERSION = 1
NOT_CACHED = "not in the latent cache"
SINCE_LATER = "shards"
"""What caches were not keyed by at first; those are taken as they are."""
OPEN_PARTS = 128  # mapped at once; each holds a file descriptor


def tokenizer_hash(tokenizer: ImageTokenizer) -> str:
    """16 hex digits of all that latents depend on: the encoder's weights and the normalisation.

    A decoder that was refined alone leaves them, and every cache, as they are.
    """
    config = tokenizer.config
    digest = hashlib.sha256(
        repr((config.patch, config.token_norm, config.scaling_factor, config.shift_factor)).encode()
    )
    for name, value in sorted(tokenizer.autoencoder.encoder.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class StillSource(Source, Protocol):
    """A source whose pictures can be encoded ahead: shards, or a live one that repeats itself."""

    @property
    def token_pixels(self) -> int:
        """Side of an image token in pixels."""

    @property
    def is_still(self) -> bool:
        """Whether a sample shows the same pictures at every use."""

    def stills(self, index: int) -> Stills | None:
        """What a sample shows whatever is chosen for it; None when a filter leaves it out."""

    def shown(self) -> dict[str, Any]:
        """What the pictures depend on, beside files; plain JSON."""


@dataclass(frozen=True)
class CacheReport:
    """What a finished cache holds.

    Attributes:
        samples: of the source.
        pictures: encoded.
        tokens: image tokens of all pictures.
        broken: reason -> samples.
    """

    samples: int
    pictures: int
    tokens: int
    broken: dict[str, int]


def build_cache(
    source: StillSource,
    tokenizer: ImageTokenizer,
    folder: str | Path,
    *,
    batch: int = 16,
    samples_per_part: int = 1024,
    workers: int = 2,
    on_part: Callable[[int, int], None] | None = None,
    share: tuple[int, int] = (0, 1),
) -> CacheReport:
    """Encode every picture of a source, or go on with a cache that was broken off.

    Args:
        source: its pictures are brought to their buckets and cut at the centre.
        tokenizer: on the device and in the precision to encode with.
        folder: of the cache; made when it is missing.
        batch: pictures encoded together.
        samples_per_part: samples written together; a part's tokens are held in memory.
        workers: threads that decode pictures.
        on_part: called after each part with (parts done, parts in all).
        share: (rank, ranks) of the processes that build one cache together; each makes its own
            parts, and the report is of those.

    Raises:
        NextStepError: when the folder holds the cache of another tokenizer or other data.
    """
    folder, side = Path(folder), tokenizer.config.token_pixels
    if side != source.token_pixels:
        raise NextStepError(
            f"source {source.name} reckons with image tokens of {source.token_pixels} "
            f"pixels a side and the tokenizer makes them of {side}; set token_pixels to {side}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    head = _head(source, tokenizer_hash(tokenizer), tokenizer.config.token_size, samples_per_part)
    if (folder / "cache.json").exists():
        _refuse_other(folder, read_json(folder / "cache.json"), head)
    rank, ranks = share
    if rank == 0:
        write_json(folder / "cache.json", head)
    parts = -(-len(source) // samples_per_part)
    pictures = tokens = 0
    broken: dict[str, int] = {}
    for number in range(rank, parts, ranks):
        if not _json_path(folder, number).exists():
            first = number * samples_per_part
            indices = range(first, min(first + samples_per_part, len(source)))
            _write_part(folder, number, _encoded(source, tokenizer, indices, batch, workers))
        told = read_json(_json_path(folder, number))
        grids = [grid for sample in told["grids"] for grid in sample]
        pictures += len(grids)
        tokens += sum(rows * columns for rows, columns in grids)
        for reason in told["broken"].values():
            broken[reason] = broken.get(reason, 0) + 1
        if on_part:
            on_part(number + 1, parts)
    return CacheReport(len(source), pictures, tokens, broken)


class LatentCache:
    """Reads a finished cache.

    Args:
        folder: written by `build_cache`.
        tokenizer: `tokenizer_hash` of the tokenizer whose latents are wanted.

    Raises:
        NextStepError: when it is unfinished, damaged, or another tokenizer's.
    """

    def __init__(self, folder: str | Path, tokenizer: str) -> None:
        self.folder = Path(folder)
        if not (self.folder / "cache.json").exists():
            raise NextStepError(f"{self.folder} holds no latent cache; build it first")
        self.head = read_json(self.folder / "cache.json")
        wanted = {"format": FORMAT, "version": VERSION, "tokenizer": tokenizer}
        _refuse_other(self.folder, self.head, wanted)
        self.token_size = int(self.head["token_size"])
        self.samples_per_part = int(self.head["samples_per_part"])
        parts = -(-int(self.head["samples"]) // self.samples_per_part)
        done = sum(_json_path(self.folder, number).exists() for number in range(parts))
        if done < parts:
            raise NextStepError(
                f"the latent cache {self.folder} has {done} of {parts} parts; build it to its end"
            )
        self._parts: dict[int, _Part] = {}
        self._mapped = lru_cache(OPEN_PARTS)(self._map)

    def tokens(self, index: int, key: str, picture: int, grid: Grid) -> Tensor:
        """Image tokens of one picture, fp16 [rows*columns, D].

        Args:
            index: of the sample in its source.
            key: of the sample.
            picture: its number in the sample.
            grid: that it should have.

        Raises:
            SampleError: when the cache has another sample or grid there, or the sample was broken.
        """
        number, row = divmod(index, self.samples_per_part)
        part = self._part(number)
        if reason := part.broken.get(row):
            raise SampleError(key, reason, "when the latent cache was built")
        if row >= len(part.keys) or part.keys[row] != _key_hash(key):
            raise SampleError(key, NOT_CACHED)
        place = int(part.starts[row]) + picture
        if place >= part.starts[row + 1] or tuple(part.grids[place]) != grid:
            raise SampleError(key, NOT_CACHED, f"picture {picture} at {grid[0]}x{grid[1]}")
        first, end = part.offsets[place], part.offsets[place + 1]
        # A copy: tensors over a read-only map are not allowed, and the map may be closed.
        return torch.from_numpy(np.array(self._mapped(number)[first:end]))

    def _part(self, number: int) -> _Part:
        if number not in self._parts:
            told = read_json(_json_path(self.folder, number))
            part = _Part.from_json(told)
            path = _bin_path(self.folder, number)
            wanted = int(part.offsets[-1]) * self.token_size * 2
            if not path.exists() or path.stat().st_size != wanted:
                raise NextStepError(
                    f"{path} does not have the {wanted} bytes its index names; delete "
                    f"{_json_path(self.folder, number).name} and build the cache again"
                )
            self._parts[number] = part
        return self._parts[number]

    def _map(self, number: int) -> np.ndarray:
        shape = (int(self._part(number).offsets[-1]), self.token_size)
        return np.memmap(_bin_path(self.folder, number), np.float16, "r", shape=shape)


class CachedSource:
    """A source whose pictures are image tokens from a cache, fp16 [rows*columns, D] each.

    Args:
        source: the one that was encoded.
        cache: of its pictures.

    Raises:
        NextStepError: when the cache is of other samples or buckets, or pictures are not the same
            at every use.
    """

    def __init__(self, source: StillSource, cache: LatentCache) -> None:
        if not source.is_still:
            raise NextStepError(
                f"source {source.name} shows other pictures at every use, which no latent cache "
                "holds; set crop to centre or fresh to false, or leave the cache out"
            )
        _refuse_other(cache.folder, cache.head, _described(source))
        self.source, self.cache = source, cache
        self.name, self.kind = source.name, source.kind

    def __len__(self) -> int:
        return len(self.source)

    def document(self, index: int, seed: int) -> Document | None:
        """As the source gives it.

        Raises:
            SampleError: when it is broken.
        """
        document = self.source.document(index, seed)
        return None if document is None else replace(document, payload=index % len(self.source))

    def pictures(self, document: Document) -> list[Tensor]:
        """Image tokens of the document's pictures in reading order, fp16 [rows*columns, D].

        Raises:
            SampleError: when the cache does not have them.
        """
        return [
            self.cache.tokens(document.payload, document.key, picture, span.grid)
            for picture, span in zip(document.images, document.sequence.images, strict=True)
        ]


@dataclass(frozen=True)
class _Part:
    """One part's index, as arrays: a cache of millions of pictures fits into memory."""

    keys: np.ndarray  # [samples] hashes; 0 where a filter left the sample out
    starts: np.ndarray  # [samples + 1] first picture of each sample
    grids: np.ndarray  # [pictures, 2]
    offsets: np.ndarray  # [pictures + 1] first token of each picture
    broken: dict[int, str]

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> _Part:
        """From the plain values of an index; `KeyError` where one is missing."""
        counts = [len(sample) for sample in told["grids"]]
        grids = np.array(
            [grid for sample in told["grids"] for grid in sample], np.int64
        ).reshape(-1, 2)  # fmt: skip
        return cls(
            np.array([0 if key is None else _key_hash(key) for key in told["keys"]], np.int64),
            np.cumsum([0, *counts]),
            grids,
            np.concatenate([[0], np.cumsum(grids.prod(axis=1))]),
            {int(row): str(reason) for row, reason in told["broken"].items()},
        )


@dataclass
class _Encoded:
    """A sample on its way into a part; `tokens` fills up as batches are encoded."""

    key: str | None
    grids: list[Grid]
    tokens: list[np.ndarray]
    broken: str | None = None


def _encoded(
    source: StillSource, tokenizer: ImageTokenizer, indices: Seq[int], batch: int, workers: int
) -> list[_Encoded]:
    """The samples of one part; pictures of one grid are encoded together."""
    samples: list[_Encoded] = []
    waiting: dict[Grid, list[tuple[_Encoded, int, np.ndarray]]] = {}

    def look(index: int) -> Stills | SampleError | None:
        try:
            return source.stills(index)
        except SampleError as error:
            return error

    for found in ordered_map(look, indices, workers):
        if not isinstance(found, Stills):
            reason = found.reason if isinstance(found, SampleError) else None
            samples.append(_Encoded(None, [], [], reason))
            continue
        blank = [np.empty(0, np.float16)] * len(found.grids)
        samples.append(_Encoded(found.key, found.grids, blank))
        for place, (grid, picture) in enumerate(zip(found.grids, found.pictures, strict=True)):
            group = waiting.setdefault(grid, [])
            group.append((samples[-1], place, picture))
            if len(group) == batch:
                _encode(tokenizer, waiting.pop(grid))
    for group in waiting.values():
        _encode(tokenizer, group)
    for sample in samples:
        if not all(np.isfinite(tokens).all() for tokens in sample.tokens):
            sample.grids, sample.tokens, sample.broken = [], [], "latents out of range"
    return samples


def _encode(tokenizer: ImageTokenizer, group: list[tuple[_Encoded, int, np.ndarray]]) -> None:
    from nextstep.image.pictures import to_pixels

    tokens = tokenizer.encode_tokens(to_pixels([picture for _, _, picture in group]))
    with np.errstate(over="ignore"):  # values out of range are found and named afterwards
        halves = tokens.float().cpu().numpy().astype(np.float16)
    for (sample, place, _), found in zip(group, halves, strict=True):
        sample.tokens[place] = found


def _write_part(folder: Path, number: int, samples: list[_Encoded]) -> None:
    with writing(_bin_path(folder, number)) as scratch, scratch.open("wb") as file:
        for sample in samples:
            for tokens in sample.tokens:
                file.write(tokens.tobytes())
    told = {
        "keys": [sample.key for sample in samples],
        "grids": [sample.grids for sample in samples],
        "broken": {row: s.broken for row, s in enumerate(samples) if s.broken},
    }
    write_whole(_json_path(folder, number), json.dumps(told, ensure_ascii=False).encode())


def _head(source: StillSource, tokenizer: str, token_size: int, per_part: int) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "tokenizer": tokenizer,
        "token_size": token_size,
        "samples_per_part": per_part,
        **_described(source),
    }


def _described(source: StillSource) -> dict[str, Any]:
    return {"kind": source.kind, "samples": len(source), **source.shown()}


def _refuse_other(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, value in wanted.items():
        if name == SINCE_LATER and name not in found:
            continue
        if found.get(name) != value:
            raise NextStepError(
                f"the latent cache {folder} was made with {name} = {found.get(name)}, and now it "
                f"is {value}; build another in a folder of its own"
            )


def _key_hash(key: str) -> int:
    return derived_seed(key) | 1  # never 0, which marks a sample that was left out


def _bin_path(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.bin"


def _json_path(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.json"
