"""What a folder of shards says about itself: `set.json`, or the released `meta.json`."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nextstep.data.documents import KINDS
from nextstep.errors import NextStepError
from nextstep.utils.files import read_json, write_json

FILE = "set.json"
RELEASED_FILE = "meta.json"
FORMAT = "nextstep-shards"
VERSION = 1
_CHUNK = 2**20


@dataclass(frozen=True)
class ShardFile:
    """One shard of a set.

    Attributes:
        path: relative to the set's folder, with forward slashes.
        samples: how many it was written with; None when nothing says so.
        size: its bytes as written.
        checksum: its Adler-32 as written.
    """

    path: str
    samples: int | None = None
    size: int | None = None
    checksum: int | None = None

    @property
    def name(self) -> str:
        """The middle part of sample keys: the path without its ending."""
        return self.path.removesuffix(".tar")


@dataclass(frozen=True)
class SetFile:
    """A set of shards.

    Attributes:
        name: of the set.
        kind: one of `documents.KINDS`; None when nothing says so.
        shards: in order.
        ours: whether the numbers come from `set.json`.
    """

    name: str
    kind: str | None
    shards: tuple[ShardFile, ...]
    ours: bool = False


def check_kind(kind: str) -> str:
    """The kind, if it is one.

    Raises:
        NextStepError: otherwise.
    """
    if kind not in KINDS:
        raise NextStepError(f"unknown kind of data '{kind}'; choose from {', '.join(KINDS)}")
    return kind


def write_set(folder: Path, name: str, kind: str, shards: Sequence[ShardFile]) -> None:
    """Write `set.json`; every shard must have its numbers."""
    told: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "name": name,
        "kind": kind,
        "total_samples": sum(shard.samples or 0 for shard in shards),
        "total_files": len(shards),
        "total_bytes": sum(shard.size or 0 for shard in shards),
        "shards": {
            shard.path: {
                "num_samples": shard.samples,
                "size": shard.size,
                "checksum": shard.checksum,
            }
            for shard in shards
        },
    }
    write_json(folder / FILE, told)


def read_set(folder: Path) -> SetFile:
    """What is known about a folder of shards, by `set.json`, `meta.json` or the files alone.

    A single shard is a set of its own.

    Raises:
        NextStepError: when the folder is missing, has no shards, or its description is damaged.
    """
    if folder.is_file() and folder.suffix.lower() == ".tar":
        return SetFile(folder.stem, None, (ShardFile(folder.name),))
    if not folder.is_dir():
        raise NextStepError(f"there is no data set folder {folder}")
    if (folder / FILE).is_file():
        told = read_json(folder / FILE)
        if told.get("format") != FORMAT or told.get("version") != VERSION:
            raise NextStepError(
                f"{folder / FILE} is not of format '{FORMAT}' version {VERSION}; "
                "remove it to read the shards without it"
            )
        kind = check_kind(str(told.get("kind")))
        shards = _shards(folder / FILE, told.get("shards"))
        return SetFile(str(told.get("name") or folder.name), kind, shards, ours=True)
    found = shards_below(folder)
    if not found:
        raise NextStepError(f"{folder} holds no shards; make some with nextstep data build")
    listed = {path: ShardFile(path) for path in found}
    if (folder / RELEASED_FILE).is_file():
        told_by = folder / RELEASED_FILE
        listed |= {shard.path: shard for shard in _shards(told_by, read_json(told_by))}
    ordered = tuple(listed[path] for path in sorted(listed, key=_natural))
    return SetFile(folder.resolve().name, None, ordered)


def shards_below(folder: Path) -> list[str]:
    """Paths of all shards in a folder, sorted; hidden folders are passed over.

    A hidden folder may be what a killed writer has left.
    """
    paths = (path.relative_to(folder) for path in folder.rglob("*.tar"))
    shown = (path for path in paths if not any(part.startswith(".") for part in path.parts))
    return sorted((path.as_posix() for path in shown), key=_natural)


def checksum(path: Path) -> int:
    """Adler-32 of a file, as the released tools note it.

    Raises:
        OSError: when it cannot be read.
    """
    value = 1
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            value = zlib.adler32(chunk, value)
    return value


def _shards(file: Path, told: Any) -> tuple[ShardFile, ...]:
    if not isinstance(told, dict) or not all(isinstance(entry, dict) for entry in told.values()):
        raise NextStepError(f"{file} does not list shards; remove it to read them without it")
    for path in told:
        if Path(path).is_absolute() or ".." in Path(path).parts or not path.endswith(".tar"):
            raise NextStepError(f"{file} names the shard '{path}', which is no .tar below it")
    return tuple(
        ShardFile(
            path, _count(entry.get("num_samples")), _count(entry.get("size")),
            _count(entry.get("checksum")),
        )
        for path, entry in told.items()
    )  # fmt: skip


def _count(value: Any) -> int | None:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if whole else None


def _natural(path: str) -> list[tuple[int, str]]:
    """Sorts idx_2 before idx_10."""
    return [(int(part or 0), text) for text, part in re.findall(r"([^0-9]*)([0-9]*)", path)]
