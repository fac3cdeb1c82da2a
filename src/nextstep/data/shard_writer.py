"""Writing a set of tar shards in the released layout.

Everything is written into a hidden folder beside the target, which takes the target's name when
the set is whole. A run that is killed leaves no half set.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from nextstep.data import tar
from nextstep.data.captions import CORRUPT_CAPTION, captions_of, check_captions, parse_record
from nextstep.data.documents import SampleError, derived_seed
from nextstep.data.set_file import ShardFile, check_kind, write_set
from nextstep.data.shard_index import ShardIndex, Span, describe, write_index
from nextstep.data.stored import CORRUPT_PICTURE, stored_suffix
from nextstep.errors import NextStepError
from nextstep.utils.files import FULL_DISK

KEY = re.compile(r"[0-9a-f]{1,64}")
"""Hexadecimal, as released; with a picture number and an ending it stays under 100 bytes."""
LARGEST_MEMBER = 8 * 2**30 - 1


@dataclass(frozen=True)
class RawSample:
    """A sample as it comes from somewhere, before it is written.

    Attributes:
        record: its JSON fields: `caption` or `text`, further captions, numbers, `metadata`.
        pictures: encoded files (JPEG, PNG or WebP), in the order of the tags.
        key: hexadecimal; made from the set's name and the sample's number when None.
        origin: names the sample in reports.
        caption_source: where its caption was found, for reports, e.g. ".txt files".
    """

    record: Mapping[str, Any]
    pictures: tuple[bytes, ...] = ()
    key: str | None = None
    origin: str = ""
    caption_source: str = ""


class ShardWriter:
    """Writes samples one after another; used with `with`, which discards the set on an error.

    The same samples give the same bytes.

    Args:
        folder: must not exist yet.
        name: of the set.
        kind: one of `documents.KINDS`.
        samples_per_shard: at most.

    Raises:
        NextStepError: for an unknown kind, a bad name, or a folder that exists or cannot be made.
    """

    def __init__(
        self, folder: str | Path, name: str, kind: str, samples_per_shard: int = 500
    ) -> None:
        self.folder, self.name, self.kind = Path(folder), name, check_kind(kind)
        if not name or "/" in name:
            raise NextStepError(f"'{name}' cannot name a data set; use a word without slashes")
        if samples_per_shard < 1:
            raise NextStepError(f"a shard holds at least 1 sample, not {samples_per_shard}")
        self.samples_per_shard = samples_per_shard
        self.count = 0
        self.shards: list[ShardFile] = []
        self._shard: _OpenShard | None = None
        if self.folder.exists():
            raise NextStepError(f"{folder} exists already; choose another folder")
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            prefix = f".{self.folder.name}."
            self._scratch = Path(tempfile.mkdtemp(dir=self.folder.parent, prefix=prefix))
            # mkdtemp makes a folder for the owner alone; a data set is for everybody.
            self._scratch.chmod(0o755)
        except OSError as error:
            raise NextStepError(f"{folder} cannot be written: {error.strerror}") from None

    def add(self, sample: RawSample) -> str:
        """Write one sample.

        Returns:
            Its key.

        Raises:
            SampleError: when it is broken; nothing of it is written.
        """
        key = sample.key or f"{derived_seed(self.name, self.count):016x}"
        members = self._members(sample, key)
        if self._shard is None:
            path = self._scratch / f"idx_{0:04d}_{len(self.shards):04d}.tar"
            self._shard = _OpenShard(path)
        elif key in self._shard.keys:
            raise SampleError(sample.origin or key, "duplicate key", key)
        self._shard.put(key, members, sample.origin)
        self.count += 1
        if len(self._shard.keys) == self.samples_per_shard:
            self._finish_shard()
        return key

    def close(self) -> None:
        """Finish the last shard and put the set in its place.

        Raises:
            NextStepError: when nothing was written, or the folder has appeared meanwhile.
            OSError: naming the folder, when the disk is full.
        """
        try:
            if self._shard is not None:
                self._finish_shard()
            if not self.shards:
                raise NextStepError(f"no sample was written, so {self.folder} was not made")
            write_set(self._scratch, self.name, self.kind, self.shards)
            self._scratch.replace(self.folder)
        except BaseException as error:
            self.discard()
            if not isinstance(error, OSError):
                raise
            self._raise_if_full(error)
            raise NextStepError(f"{self.folder} cannot be written: {error.strerror}") from None

    def _raise_if_full(self, error: BaseException | None) -> None:
        """Raise what a full disk raised anew, with the folder that was asked for."""
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            raise OSError(error.errno, error.strerror, str(self.folder)) from None

    def discard(self) -> None:
        """Throw away what was written."""
        if self._shard is not None:
            with contextlib.suppress(OSError):  # what is still to be written may not fit either
                self._shard.file.close()
            self._shard = None
        shutil.rmtree(self._scratch, ignore_errors=True)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()
            self._raise_if_full(error)

    def _members(self, sample: RawSample, key: str) -> list[tuple[str, bytes]]:
        """Names and bytes of a sample's members, all checks made that need no decoding."""
        named = sample.origin or key
        if not KEY.fullmatch(key):
            raise SampleError(named, "bad key", f"'{key}' is not of at most 64 hex digits")
        check_captions(self.kind, captions_of(sample.record), len(sample.pictures), named)
        try:
            record = json.dumps(dict(sample.record), ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise SampleError(named, CORRUPT_CAPTION, str(error)) from None
        parse_record(record, named)
        members = [(f"{key}.json", record)]
        for number, data in enumerate(sample.pictures):
            suffix = stored_suffix(data)
            if suffix is None:
                raise SampleError(named, CORRUPT_PICTURE, "not a JPEG, PNG or WebP file")
            members.append((f"{key}-{number}.{suffix}", data))
        if any(len(data) > LARGEST_MEMBER for _, data in members):
            raise SampleError(named, "too large", "more than 8 GiB in one file")
        return members

    def _finish_shard(self) -> None:
        if self._shard is not None:
            self.shards.append(self._shard.finish())
            self._shard = None


class _OpenShard:
    """The shard that is being written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys: set[str] = set()
        self.file: IO[bytes] = path.open("wb")
        self._lines: list[bytes] = []
        self._place, self._checksum = 0, 1

    def put(self, key: str, members: list[tuple[str, bytes]], origin: str) -> None:
        """Append a sample.

        Raises:
            SampleError: when a picture's header cannot be read, or promises too many pixels.
        """
        spans, place = [], self._place
        for _, data in members:
            spans.append(Span(place + tar.BLOCK, len(data)))
            place += tar.BLOCK + tar.padded(len(data))
        contents = {span: data for span, (_, data) in zip(spans, members, strict=True)}
        told = describe(key, spans[0], list(enumerate(spans[1:])), contents.__getitem__)
        if told.problem:
            raise SampleError(origin or key, *told.problem)
        for name, data in members:
            self._write(tar.header(name, len(data)))
            self._write(data + bytes(tar.padded(len(data)) - len(data)))
        self.keys.add(key)
        self._lines.append(told.to_line())

    def finish(self) -> ShardFile:
        """Close the archive and write its index."""
        self._write(tar.END)
        self.file.close()
        write_index(self.path, ShardIndex(self._place, False, tuple(self._lines)))
        return ShardFile(self.path.name, len(self.keys), self._place, self._checksum)

    def _write(self, data: bytes) -> None:
        self.file.write(data)
        self._checksum = zlib.adler32(data, self._checksum)
        self._place += len(data)
