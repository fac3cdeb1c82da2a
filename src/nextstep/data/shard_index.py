"""The JSON index beside each shard, and the file that describes a set of shards.

An index is derived from its shard alone: NAME.tar.index.json holds one sample a line, so that it
is read in one go and a line is parsed only when its sample is asked for. The released layout
keeps a pickle there, which is never opened.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from nextstep.data import tar
from nextstep.data.captions import (
    CORRUPT_CAPTION,
    MISSING_CAPTION,
    MISSING_PICTURE,
    numbers_of,
    parse_record,
)
from nextstep.data.documents import SampleError
from nextstep.data.stored import refuse_bomb, upright_size

FORMAT = "nextstep-shard-index"
VERSION = 1
TRUNCATED = "truncated shard"
CORRUPT_INDEX = "corrupt index"
LARGEST_RECORD = 64 * 2**20
"""Bytes of a JSON record above which it is taken for damage."""


class Span(NamedTuple):
    """Where bytes lie in a shard."""

    offset: int
    size: int


@dataclass(frozen=True)
class SampleRecord:
    """What the index says about one sample.

    Attributes:
        key: as in the member names.
        record: where its JSON lies; None when it has none.
        pictures: where its pictures lie.
        sizes: (width, height) of each, upright; zeros where the header cannot be read.
        numbers: numeric fields of the record.
        problem: (reason, detail) when it is known to be broken.
    """

    key: str
    record: Span | None
    pictures: tuple[Span, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    numbers: dict[str, float] | None = None
    problem: tuple[str, str] | None = None

    @property
    def end(self) -> int:
        """Byte after the last one of the sample."""
        spans = [*self.pictures, *([self.record] if self.record else [])]
        return max((span.offset + span.size for span in spans), default=0)

    def to_line(self) -> bytes:
        """One line of JSON, without its end."""
        told: dict[str, Any] = {"key": self.key}
        if self.record:
            told["json"] = self.record
        if self.pictures:
            told["pictures"] = [
                [*span, *size] for span, size in zip(self.pictures, self.sizes, strict=True)
            ]
        if self.numbers:
            told["numbers"] = self.numbers
        if self.problem:
            told["problem"] = self.problem
        return json.dumps(told, separators=(",", ":")).encode()

    @classmethod
    def from_line(cls, line: bytes) -> SampleRecord:
        """Read what `to_line` wrote.

        Raises:
            SampleError: "corrupt index" when it is something else.
        """
        try:
            told = json.loads(line)
            cells = [[int(value) for value in cell] for cell in told.get("pictures", ())]
            record = Span(*map(int, told["json"])) if "json" in told else None
            numbers = {str(name): float(n) for name, n in told.get("numbers", {}).items()}
            problem = told.get("problem")
            if any(value < 0 for cell in [*cells, record or ()] for value in cell):
                raise ValueError("a place before the beginning")
            return cls(
                str(told["key"]), record,
                tuple(Span(offset, size) for offset, size, _, _ in cells),
                tuple((width, height) for _, _, width, height in cells),
                numbers, (str(problem[0]), str(problem[1])) if problem else None,
            )  # fmt: skip
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise SampleError("?", CORRUPT_INDEX, str(error)) from None


@dataclass(frozen=True)
class ShardIndex:
    """The index of one shard.

    Attributes:
        size: bytes of the shard it was made from.
        truncated: whether that shard broke off before its end mark.
        lines: one line of JSON a sample.
    """

    size: int
    truncated: bool
    lines: tuple[bytes, ...]

    def __len__(self) -> int:
        return len(self.lines)

    def sample(self, number: int) -> SampleRecord:
        """What is known about a sample.

        Raises:
            SampleError: "corrupt index".
        """
        return SampleRecord.from_line(self.lines[number])

    def keys(self) -> list[str]:
        """Keys of all samples in order.

        Raises:
            SampleError: "corrupt index".
        """
        return [self.sample(number).key for number in range(len(self))]


def describe(
    key: str,
    record: Span | None,
    pictures: Iterable[tuple[int, Span]],
    read: Callable[[Span], bytes],
) -> SampleRecord:
    """What the index says about a sample whose members lie in these places.

    Args:
        key: of the sample.
        record: place of its JSON.
        pictures: number and place of each picture.
        read: gives the bytes of a place; EOFError where the shard was cut off.
    """
    ordered = sorted(pictures)
    spans = tuple(span for _, span in ordered)
    sizes: list[tuple[int, int]] = []
    numbers: dict[str, float] = {}
    problems: list[tuple[str, str]] = []
    try:
        if record is None:
            problems.append((MISSING_CAPTION, "no JSON beside the pictures"))
        elif record.size > LARGEST_RECORD:
            problems.append((CORRUPT_CAPTION, f"{record.size} bytes of JSON"))
        else:
            numbers = numbers_of(parse_record(read(record), key))
    except (SampleError, EOFError) as error:
        problems.append(_problem(error))
    if [number for number, _ in ordered] != list(range(len(ordered))):
        found = ", ".join(str(number) for number, _ in ordered)
        problems.append((MISSING_PICTURE, f"pictures {found}"))
    for span in spans:
        size = (0, 0)
        try:
            size = upright_size(read(span), key)
            refuse_bomb(*size, key)
        except (SampleError, EOFError) as error:
            problems.append(_problem(error))
        sizes.append(size)
    # A sample that the end of the shard cuts through is broken for that reason before any other.
    problems.sort(key=lambda problem: problem[0] != TRUNCATED)
    return SampleRecord(key, record, spans, tuple(sizes), numbers, next(iter(problems), None))


def build_index(shard: Path) -> ShardIndex:
    """The index of a shard, whoever wrote it; nothing is unpickled.

    Raises:
        OSError: when the shard cannot be read.
    """
    with shard.open("rb") as file:
        members, truncated = tar.scan(file)
        size = file.seek(0, os.SEEK_END)
        lines = []
        for key, parts in tar.samples(members):
            places = [(part.number, Span(part.member.offset, part.member.size)) for part in parts]
            record = next((span for number, span in places if number is None), None)
            pictures = [(number, span) for number, span in places if number is not None]
            told = describe(key, record, pictures, lambda span: _read(file, span, size))
            lines.append(told.to_line())
    return ShardIndex(size, truncated, tuple(lines))


def member_keys(shard: Path) -> list[str]:
    """Keys of the samples in a shard, by its tar headers alone."""
    with shard.open("rb") as file:
        return [key for key, _ in tar.samples(tar.scan(file)[0])]


def index_path(shard: Path) -> Path:
    """Where the index of a shard lies."""
    return shard.with_name(shard.name + ".index.json")


def write_index(shard: Path, index: ShardIndex) -> None:
    """Write an index beside its shard, then put it in its place.

    Raises:
        OSError: when it cannot be written.
    """
    head = {
        "format": FORMAT, "version": VERSION, "size": index.size, "truncated": index.truncated,
        "count": len(index), "samples": [],
    }  # fmt: skip
    path = index_path(shard)
    # Several ranks may make the same index at once.
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with scratch.open("wb") as file:
            file.write(json.dumps(head).encode()[:-2] + b"\n")
            file.write(b",\n".join(index.lines) + b"\n]}\n")
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def read_index(shard: Path) -> ShardIndex | None:
    """The index beside a shard; None when there is none that can be used."""
    try:
        data = index_path(shard).read_bytes()
    except OSError:
        return None
    first, _, rest = data.partition(b"\n")
    body, _, end = rest.rstrip(b"\n").rpartition(b"\n")
    try:
        head = json.loads(first + b"]}")
        lines = tuple(line.removesuffix(b",") for line in body.split(b"\n")) if body else ()
        known = (head["format"], head["version"], head["count"], end)
        if known != (FORMAT, VERSION, len(lines), b"]}"):
            return None
        return ShardIndex(int(head["size"]), bool(head["truncated"]), lines)
    except (ValueError, TypeError, KeyError):
        return None


def _read(file: IO[bytes], span: Span, size: int) -> bytes:
    if span.offset + span.size > size:
        raise EOFError
    file.seek(span.offset)
    return file.read(span.size)


def _problem(error: SampleError | EOFError) -> tuple[str, str]:
    if isinstance(error, SampleError):
        return error.reason, error.detail
    return TRUNCATED, "the shard ends inside this sample"
