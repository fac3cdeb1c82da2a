"""Sets of tar shards: random access to samples by index, safe for many threads and processes."""

from __future__ import annotations

from bisect import bisect_right
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from PIL import Image

from nextstep.data import set_file
from nextstep.data.captions import CORRUPT_CAPTION, captions_of, check_captions, parse_record
from nextstep.data.documents import SampleError, derived_seed
from nextstep.data.set_file import ShardFile, check_kind
from nextstep.data.shard_index import (
    TRUNCATED,
    SampleRecord,
    ShardIndex,
    Span,
    build_index,
    index_path,
    member_places,
    read_index,
    write_index,
)
from nextstep.data.shard_writer import RawSample, ShardWriter
from nextstep.data.stored import decode
from nextstep.data.text_files import check_encoding, decode_text
from nextstep.errors import NextStepError

__all__ = ["Entry", "RawSample", "ShardSet", "ShardWriter", "build_index"]

MISSING_SHARD = "missing shard"


@dataclass(frozen=True)
class Entry:
    """What is known of a sample before any picture is decoded.

    Attributes:
        key: "SET/SHARD/KEY".
        captions: texts by field: a string, or a list or object of alternatives.
        sizes: (width, height) of each picture, upright.
        numbers: numeric fields, for filters.
    """

    key: str
    captions: dict[str, Any]
    sizes: tuple[tuple[int, int], ...]
    numbers: dict[str, float]


class ShardSet:
    """Reads a folder of shards, ours or released ones.

    Samples that a truncated or missing shard has lost keep their places in the order and raise
    SampleError, so that the order of all others does not change. Files are opened for each read:
    nothing is shared between threads, and the object can be sent to other processes.

    Args:
        folder: with `set.json`, with the released `meta.json`, or with shards alone; or a shard.
        name: of the set; by default as it was written, else the folder's name.
        kind: one of `documents.KINDS`; needed where neither `set.json` nor the first sample
            tells it.
        encoding: of captions as texts, where no byte order mark tells it; by default UTF-8.

    Raises:
        NextStepError: when there are no shards or no samples, or the kind is not known.
    """

    def __init__(
        self,
        folder: str | Path,
        name: str | None = None,
        kind: str | None = None,
        encoding: str | None = None,
    ) -> None:
        folder, self.encoding = Path(folder), check_encoding(encoding)
        told = set_file.read_set(folder)
        self.folder = folder.parent if folder.is_file() else folder
        self.name = name or told.name
        self.shards: tuple[ShardFile, ...] = told.shards
        self._indexes: dict[int, ShardIndex] = {}
        self._available: dict[int, int] = {}
        lengths = [
            shard.samples if told.ours and shard.samples is not None
            else max(shard.samples or 0, len(self.shard_index(number)))
            for number, shard in enumerate(told.shards)
        ]  # fmt: skip
        self._starts = list(accumulate(lengths, initial=0))
        if not len(self):
            raise NextStepError(
                f"{folder} holds no samples that can be told: they are KEY.json with KEY-0.jpg, "
                "KEY-1.png ..., or KEY.jpg with KEY.txt or KEY.caption"
            )
        self.kind = check_kind(kind or told.kind or self._guess_kind())

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def digest(self) -> str:
        """16 hex digits of the shards as they were written: names, sizes and checksums."""
        noted = [
            (shard.path, shard.size or self._size(number), shard.checksum)
            for number, shard in enumerate(self.shards)
        ]
        return f"{derived_seed(repr(noted)):016x}"

    def _size(self, shard: int) -> int:
        path = self.path(shard)
        return path.stat().st_size if path.is_file() else -1

    def entry(self, index: int) -> Entry:
        """What is known of a sample; its JSON is read, its pictures are not.

        Raises:
            SampleError: when it is known to be broken: lost, without caption or picture, with
                tags that do not fit its pictures, or with a picture whose header is bad.
        """
        record, shard, key = self._record(index)
        captions = captions_of(self._json(record, shard, key))
        check_captions(self.kind, captions, len(record.pictures), key)
        return Entry(key, captions, record.sizes, record.numbers or {})

    def pictures(self, index: int) -> list[Image.Image]:
        """A sample's pictures in the order of their numbers: RGB, upright, alpha on white.

        Raises:
            SampleError: when one is corrupt, cut off, missing, or too large to be decoded.
        """
        record, shard, key = self._record(index)
        return [decode(self._read(shard, span, key), key) for span in record.pictures]

    def picture_files(self, index: int) -> list[bytes]:
        """A sample's pictures as they are stored.

        Raises:
            SampleError: when one is cut off or missing.
        """
        record, shard, key = self._record(index)
        return [self._read(shard, span, key) for span in record.pictures]

    def record(self, index: int) -> dict[str, Any]:
        """All JSON fields of a sample.

        Raises:
            SampleError: when they cannot be read.
        """
        return self._json(*self._record(index))

    def key(self, index: int) -> str:
        """The full key, "SET/SHARD/KEY"; KEY is "#number" for a sample whose key is lost."""
        try:
            return self._record(index)[2]
        except SampleError as error:
            return error.key

    def samples_of(self, shard: int) -> range:
        """Indices of a shard's samples."""
        return range(self._starts[shard], self._starts[shard + 1])

    def path(self, shard: int) -> Path:
        """Where a shard lies."""
        return self.folder / self.shards[shard].path

    def shard_index(self, shard: int) -> ShardIndex:
        """The index of a shard: the one beside it, or made anew when that does not fit.

        Raises:
            OSError: when the shard is there but cannot be read.
        """
        if shard not in self._indexes:
            index, available = _open_index(self.path(shard))
            # In this order: another thread may look as soon as the index is there.
            self._available[shard] = available
            self._indexes[shard] = index
        return self._indexes[shard]

    def _record(self, index: int) -> tuple[SampleRecord, int, str]:
        """The index's record of a whole sample, its shard and its full key."""
        shard, number = self._place(index)
        lines, available = self.shard_index(shard), self._available[shard]
        key = f"{self.name}/{self.shards[shard].name}/#{number}"
        if number < len(lines):
            try:
                record = lines.sample(number)
            except SampleError as error:
                raise SampleError(key, error.reason, error.detail) from None
            key = f"{self.name}/{self.shards[shard].name}/{record.key}"
        if available < 0:
            raise SampleError(key, MISSING_SHARD, f"there is no {self.path(shard)}")
        if number >= len(lines):
            raise SampleError(key, TRUNCATED, "the shard ends before this sample")
        if record.end > available:
            raise SampleError(key, TRUNCATED, f"the shard ends at byte {available}")
        if record.problem:
            raise SampleError(key, *record.problem)
        return record, shard, key

    def _json(self, record: SampleRecord, shard: int, key: str) -> dict[str, Any]:
        told: dict[str, Any] = {}
        if record.record is not None:
            told = parse_record(self._read(shard, record.record, key), key)
        field = "text" if self.kind == "text" else "caption"
        if record.text is not None and not told.get(field):
            try:
                text = decode_text(self._read(shard, record.text, key), self.encoding)
            except ValueError as error:
                raise SampleError(key, CORRUPT_CAPTION, str(error)) from None
            told[field] = text.strip()
        return told

    def _read(self, shard: int, span: Span, key: str) -> bytes:
        try:
            with self.path(shard).open("rb", buffering=0) as file:
                file.seek(span.offset)
                data = file.read(span.size)
        except FileNotFoundError:
            raise SampleError(key, MISSING_SHARD, f"there is no {self.path(shard)}") from None
        except (OSError, ValueError) as error:
            raise SampleError(key, "unreadable shard", str(error)) from None
        if len(data) < span.size:
            raise SampleError(key, TRUNCATED, "the shard became shorter")
        return data

    def _place(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has samples 0 to {len(self) - 1}, not {index}")
        shard = bisect_right(self._starts, index) - 1
        return shard, index - self._starts[shard]

    def _guess_kind(self) -> str:
        """Plain text and plain captions show themselves; tags may mean two kinds."""
        for index in range(min(len(self), 100)):
            try:
                pictures = len(self.picture_files(index))
            except SampleError:
                continue
            if pictures == 0:
                return "text"
            if pictures == 1:
                return "image_text"
            break
        raise NextStepError(
            f"{self.folder} does not say which kind of data it holds; name it: image_to_image "
            "for edits, interleaved for text and pictures in any order"
        )


def _open_index(shard: Path) -> tuple[ShardIndex, int]:
    """A shard's index, and how many bytes of the shard are there; -1 when it is missing."""
    stored = read_index(shard)
    if not shard.is_file():
        return stored or ShardIndex(0, True, ()), -1
    size = shard.stat().st_size
    if stored is not None and (
        (stored.size == size and _is_of(stored, shard)) or _was_cut(shard, stored, size)
    ):
        return stored, size
    index = build_index(shard)
    # A folder that cannot be written is indexed again the next time.
    with suppress(OSError):
        write_index(shard, index)
    return index, size


def _was_cut(shard: Path, stored: ShardIndex, size: int) -> bool:
    """Whether a shard is the beginning of the one that the index was made from."""
    if size >= stored.size:
        return False
    try:
        keys = stored.keys()
    except SampleError:
        return False
    left = [key for key, _ in member_places(shard)]
    return left == keys[: len(left)]


def _is_of(index: ShardIndex, shard: Path) -> bool:
    """Whether an index was made from what a shard of its size holds now.

    A shard that is older than its index is taken as it was; of a newer one, and of an index as it
    was written once, the places of all samples are compared.
    """
    if index.newest and shard.stat().st_mtime_ns <= index_path(shard).stat().st_mtime_ns:
        return True
    if not index.newest and any(b'"problem"' in line for line in index.lines):
        return False
    try:
        records = [index.sample(number) for number in range(len(index))]
    except SampleError:
        return False
    return [(record.key, record.end) for record in records] == member_places(shard)
