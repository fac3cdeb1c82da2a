"""The JSON index beside each shard, and the file that describes a set of shards.

An index is derived from its shard alone: NAME.tar.index.json holds one sample a line, so that it
is read in one go and a line is parsed only when its sample is asked for. The released layout
keeps a pickle there, which is never opened.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
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
VERSION = 2
FIRST_VERSION = 1
"""Knew neither captions as texts nor keys with dots; used where the shard has neither."""
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
        text: where its caption as a text lies; None when it has none.
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
    text: Span | None = None

    @property
    def end(self) -> int:
        """Byte after the last one of the sample."""
        spans = [*self.pictures, *(span for span in (self.record, self.text) if span)]
        return max((span.offset + span.size for span in spans), default=0)

    def to_line(self) -> bytes:
        """One line of JSON, without its end."""
        told: dict[str, Any] = {"key": self.key}
        if self.record:
            told["json"] = self.record
        if self.text:
            told["text"] = self.text
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
            record, text = (
                Span(*map(int, told[name])) if name in told else None for name in ("json", "text")
            )
            numbers = {str(name): float(n) for name, n in told.get("numbers", {}).items()}
            problem = told.get("problem")
            if any(value < 0 for cell in [*cells, record or (), text or ()] for value in cell):
                raise ValueError("a place before the beginning")
            return cls(
                str(told["key"]), record,
                tuple(Span(offset, size) for offset, size, _, _ in cells),
                tuple((width, height) for _, _, width, height in cells),
                numbers, (str(problem[0]), str(problem[1])) if problem else None, text,
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
        newest: whether it was written as indexes are written today.
    """

    size: int
    truncated: bool
    lines: tuple[bytes, ...]
    newest: bool = field(default=True, compare=False)

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
    text: Span | None = None,
) -> SampleRecord:
    """What the index says about a sample whose members lie in these places.

    Args:
        key: of the sample.
        record: place of its JSON.
        pictures: number and place of each picture.
        read: gives the bytes of a place; EOFError where the shard was cut off.
        text: place of its caption as a text.
    """
    ordered = sorted(pictures)
    spans = tuple(span for _, span in ordered)
    sizes: list[tuple[int, int]] = []
    numbers: dict[str, float] = {}
    problems: list[tuple[str, str]] = []
    try:
        if record is None and text is None:
            problems.append((MISSING_CAPTION, "no JSON or text beside the pictures"))
        for span in (record, text):
            if span is not None and span.size > LARGEST_RECORD:
                problems.append((CORRUPT_CAPTION, f"{span.size} bytes of captions"))
        if record is not None and record.size <= LARGEST_RECORD:
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
    problem = next(iter(problems), None)
    return SampleRecord(key, record, spans, tuple(sizes), numbers, problem, text)


def build_index(shard: Path) -> ShardIndex:
    """The index of a shard, whoever wrote it; nothing is unpickled.

    Raises:
        OSError: when the shard cannot be read.
    """
    with shard.open("rb") as file:
        members, truncated = tar.scan(file)
        size = file.seek(0, os.SEEK_END)
        lines = []
        for parts in tar.samples(members):
            pictures = [(number, _span(member)) for number, member in parts.pictures]
            told = describe(
                parts.key,
                parts.record and _span(parts.record),
                pictures,
                lambda span: _read(file, span, size),
                parts.text and _span(parts.text),
            )
            lines.append(told.to_line())
    return ShardIndex(size, truncated, tuple(lines))


def member_places(shard: Path) -> list[tuple[str, int]]:
    """(key, byte after its last member) of the samples in a shard, by its tar headers alone."""
    with shard.open("rb") as file:
        found = tar.samples(tar.scan(file)[0])
    return [
        (parts.key, max(member.offset + member.size for member in _members(parts)))
        for parts in found
    ]


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
        known = (head["format"], head["count"], end)
        if known != (FORMAT, len(lines), b"]}"):
            return None
        if head["version"] not in (FIRST_VERSION, VERSION):
            return None
        newest = head["version"] == VERSION
        return ShardIndex(int(head["size"]), bool(head["truncated"]), lines, newest)
    except (ValueError, TypeError, KeyError):
        return None


def _span(member: tar.Member) -> Span:
    return Span(member.offset, member.size)


def _members(parts: tar.SampleMembers) -> list[tar.Member]:
    texts = [member for member in (parts.record, parts.text) if member]
    return [*texts, *(member for _, member in parts.pictures)]


def _read(file: IO[bytes], span: Span, size: int) -> bytes:
    if span.offset + span.size > size:
        raise EOFError
    file.seek(span.offset)
    return file.read(span.size)


def _problem(error: SampleError | EOFError) -> tuple[str, str]:
    if isinstance(error, SampleError):
        return error.reason, error.detail
    return TRUNCATED, "the shard ends inside this sample"
