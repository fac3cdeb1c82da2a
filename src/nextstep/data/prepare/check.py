"""A look at every sample of a set: what is broken, what is there twice, how large pictures are."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from nextstep.data import set_file
from nextstep.data.captions import texts_of
from nextstep.data.documents import SampleError
from nextstep.data.ordered import ordered_map
from nextstep.data.shard_index import CORRUPT_INDEX, build_index, read_index
from nextstep.data.shards import ShardSet
from nextstep.data.stored import decode
from nextstep.image.sizes import ASPECT_BUCKETS, nearest_bucket

SIDES = (0, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
"""Lower bounds, in pixels, of the bins for the side of a square of a picture's area."""
LENGTHS = (0, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Lower bounds, in characters, of the bins for the length of a caption."""


@dataclass(frozen=True)
class Histogram:
    """How many things fall into each bin."""

    title: str
    bins: tuple[str, ...]
    counts: tuple[int, ...]


@dataclass
class CheckReport:
    """What `check_set` found.

    Attributes:
        folder, name, kind: of the set.
        shards: how many.
        size: bytes of the shards that are there.
        samples: how many, broken ones included.
        pictures: in samples that are not broken.
        broken: samples that cannot be used.
        shard_problems: shard path -> what is wrong with the file.
        duplicates: groups of keys whose captions and pictures are the same byte for byte.
        shared_pictures: groups of keys that hold the same picture byte for byte.
        histograms: sides, aspects and caption lengths of samples that are not broken.
    """

    folder: Path
    name: str
    kind: str
    shards: int
    size: int = 0
    samples: int = 0
    pictures: int = 0
    broken: list[SampleError] = field(default_factory=list)
    shard_problems: dict[str, str] = field(default_factory=dict)
    duplicates: list[list[str]] = field(default_factory=list)
    shared_pictures: list[list[str]] = field(default_factory=list)
    histograms: list[Histogram] = field(default_factory=list)

    @property
    def good(self) -> int:
        """Samples that can be used."""
        return self.samples - len(self.broken)

    @property
    def sound(self) -> bool:
        """Whether every sample can be used and every shard is as it was written."""
        return not self.broken and not self.shard_problems

    @property
    def reasons(self) -> dict[str, int]:
        """Broken samples by reason, the most frequent first."""
        return dict(Counter(error.reason for error in self.broken).most_common())

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "folder": str(self.folder), "name": self.name, "kind": self.kind,
            "sound": self.sound, "shards": self.shards, "bytes": self.size,
            "samples": self.samples, "good": self.good, "pictures": self.pictures,
            "broken_by_reason": self.reasons,
            "broken": [[error.key, error.reason, error.detail] for error in self.broken],
            "shard_problems": self.shard_problems, "duplicates": self.duplicates,
            "shared_pictures": self.shared_pictures,
            "histograms": {
                chart.title: dict(zip(chart.bins, chart.counts, strict=True))
                for chart in self.histograms
            },
        }  # fmt: skip


class _Look(NamedTuple):
    """One whole sample: digests of its contents, and what goes into histograms."""

    key: str
    content: bytes
    pictures: tuple[bytes, ...]
    sizes: tuple[tuple[int, int], ...]
    length: int


def check_set(
    shards: ShardSet,
    decode_pictures: bool = True,
    threads: int = 1,
    on_sample: Callable[[], None] | None = None,
) -> CheckReport:
    """Look at every shard and every sample of a set; nothing is changed.

    Args:
        shards: the set.
        decode_pictures: decode every picture; otherwise only headers are looked at.
        threads: that decode.
        on_sample: told after each sample.

    Returns:
        What was found; a broken sample or shard is never an error here.
    """
    report = CheckReport(shards.folder, shards.name, shards.kind, len(shards.shards))
    contents, pictures = _Groups(), _Groups()
    sizes: Counter[tuple[int, int]] = Counter()
    lengths: Counter[int] = Counter()
    look = partial(_look, shards, decode_pictures)
    for number, shard in enumerate(shards.shards):
        path = shards.path(number)
        report.size += path.stat().st_size if path.is_file() else 0
        if problem := shard_problem(path, shard):
            report.shard_problems[shard.path] = problem
        for seen in ordered_map(look, shards.samples_of(number), threads):
            report.samples += 1
            if on_sample is not None:
                on_sample()
            if isinstance(seen, SampleError):
                report.broken.append(seen)
                continue
            contents.add(seen.content, seen.key)
            for digest in set(seen.pictures):
                pictures.add(digest, seen.key)
            report.pictures += len(seen.pictures)
            sizes.update(seen.sizes)
            lengths[seen.length] += 1
    known = {shard.path for shard in shards.shards}
    for name in set_file.shards_below(shards.folder):
        if name not in known:
            report.shard_problems[name] = f"not listed in {set_file.FILE}"
    report.duplicates, report.shared_pictures = contents.repeated(), pictures.repeated()
    report.histograms = _histograms(sizes, lengths)
    return report


def shard_problem(path: Path, told: set_file.ShardFile) -> str:
    """What is wrong with a shard as a file: "" when nothing is.

    Its size and checksum are compared with those it was written with, its index with one made anew.
    """
    if not path.is_file():
        return "missing"
    size = path.stat().st_size
    if told.size is not None and size < told.size:
        return f"truncated: {size} of {told.size} bytes"
    problems = []
    if told.size is not None and size > told.size:
        problems.append(f"{size} bytes instead of {told.size}")
    elif told.checksum is not None and set_file.checksum(path) != told.checksum:
        problems.append("its checksum differs from the one it was written with")
    built = build_index(path)
    if built.truncated:
        problems.append("truncated: no end mark")
    if read_index(path) not in (None, built):
        problems.append("its index does not fit; remove the .index.json and it is made anew")
    return "; ".join(problems)


class _Groups:
    """Keys by what they have in common."""

    def __init__(self) -> None:
        self._first: dict[bytes, str] = {}
        self._more: dict[bytes, list[str]] = {}

    def add(self, digest: bytes, key: str) -> None:
        """Note one more key."""
        if digest in self._first:
            self._more.setdefault(digest, [self._first[digest]]).append(key)
        else:
            self._first[digest] = key

    def repeated(self) -> list[list[str]]:
        """The groups of more than one."""
        return list(self._more.values())


def _look(shards: ShardSet, decode_pictures: bool, index: int) -> _Look | SampleError:
    try:
        entry, files = shards.entry(index), shards.picture_files(index)
        if decode_pictures:
            for data, size in zip(files, entry.sizes, strict=True):
                if (found := decode(data, entry.key).size) != size:
                    detail = f"a picture of {found}, not {size}"
                    raise SampleError(entry.key, CORRUPT_INDEX, detail)
    except SampleError as error:
        return error
    digests = tuple(_digest(data) for data in files)
    captions = json.dumps(entry.captions, sort_keys=True).encode()
    texts = [text for value in entry.captions.values() for text in texts_of(value)]
    content = _digest(captions, *digests)
    return _Look(entry.key, content, digests, entry.sizes, len(texts[0]))


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.digest()


def _histograms(sizes: Counter[tuple[int, int]], lengths: Counter[int]) -> list[Histogram]:
    sides: Counter[int] = Counter()
    aspects: Counter[tuple[int, int]] = Counter()
    for (width, height), count in sizes.items():
        sides[int((width * height) ** 0.5)] += count
        aspects[nearest_bucket(height, width)] += count
    names = tuple(f"{rows}x{columns}" for rows, columns in ASPECT_BUCKETS)
    charts = [_binned("characters of the caption", LENGTHS, lengths)]
    if sizes:
        shapes = tuple(aspects[bucket] for bucket in ASPECT_BUCKETS)
        charts = [
            _binned("side of the picture in pixels (root of its area)", SIDES, sides),
            Histogram("aspect: nearest bucket, height x width", names, shapes),
            *charts,
        ]
    return charts


def _binned(title: str, bounds: tuple[int, ...], values: Counter[int]) -> Histogram:
    counts = [0] * len(bounds)
    for value, count in values.items():
        counts[bisect_right(bounds, value) - 1] += count
    return Histogram(title, tuple(_names(bounds)), tuple(counts))


def _names(bounds: tuple[int, ...]) -> Iterator[str]:
    for low, high in pairwise(bounds):
        yield f"{low}-{high - 1}"
    yield f"{bounds[-1]}+"
