"""The little of the tar format that shards need: member positions, and plain ustar headers."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import IO, NamedTuple

from nextstep.image import formats

BLOCK = 512
END = bytes(2 * BLOCK)
"""What closes an archive."""

_WITHOUT_DATA = (
    tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)  # fmt: skip
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
_LARGEST_NAME = 2**16
_NUMBERED = re.compile(r"(.+)-([0-9]+)")
_PATH = re.compile(rb"[0-9]+ path=([^\n]+)\n")
TEXTS = (".json", ".txt", ".caption")
"""Endings of a sample's record and of its caption."""


class Member(NamedTuple):
    """A file in an archive: where its bytes lie."""

    name: str
    offset: int
    size: int


class SampleMembers(NamedTuple):
    """The members of one sample.

    Attributes:
        key: its name.
        record: the JSON record.
        text: the caption as a text.
        pictures: (number, member) of each picture.
    """

    key: str
    record: Member | None
    text: Member | None
    pictures: list[tuple[int, Member]]


def scan(file: IO[bytes]) -> tuple[list[Member], bool]:
    """Members of an archive by its headers, and whether it breaks off before its end mark.

    Links and folders are passed over; a member may reach beyond the end of a
    file that was cut off.
    """
    members: list[Member] = []
    place, long_name = 0, ""
    while True:
        file.seek(place)
        header = file.read(BLOCK)
        if header == bytes(BLOCK):
            return members, False
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError:  # too short, empty or damaged
            return members, True
        if info.size < 0:
            return members, True
        place += BLOCK
        if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
            long_name = _long_name(file.read(min(info.size, _LARGEST_NAME)), info.type)
        elif info.type in _FILES:
            members.append(Member(long_name or info.name, place, info.size))
            long_name = ""
        if info.type not in _WITHOUT_DATA:
            place += padded(info.size)


def samples(members: Iterable[Member]) -> list[SampleMembers]:
    """Members by sample, in the order of their first ones.

    A sample is KEY.json and KEY-0.jpg, KEY-1.png ..., as released; or KEY.jpg with KEY.json,
    KEY.txt or KEY.caption, as other tools write it. Keys may hold dots, hyphens and folders.
    Other members are passed over.
    """
    parted = [(member, *_stem_and_ending(member.name)) for member in members]
    known = {stem for _, stem, ending in parted if ending in TEXTS}
    found: dict[str, SampleMembers] = {}
    for member, stem, ending in parted:
        key, number = stem, 0
        if ending not in TEXTS:
            if not formats.is_picture(ending):
                continue
            match = None if stem in known else _NUMBERED.fullmatch(stem)
            if match:
                key, number = match.group(1), int(match.group(2))
        parts = found.setdefault(key, SampleMembers(key, None, None, []))
        if ending == ".json":
            parts = parts._replace(record=parts.record or member)
        elif ending in TEXTS:
            parts = parts._replace(text=parts.text or member)
        else:
            parts.pictures.append((number, member))
        found[key] = parts
    return list(found.values())


def header(name: str, size: int) -> bytes:
    """A ustar header that is the same whoever writes it, whenever.

    Raises:
        ValueError: when the name or the size does not fit into ustar.
    """
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


def padded(size: int) -> int:
    """Bytes that `size` bytes of data take in an archive."""
    return -(-size // BLOCK) * BLOCK


def _stem_and_ending(name: str) -> tuple[str, str]:
    """A member's name without its last ending, and that ending; neither for hidden files."""
    path = PurePosixPath(name)
    if path.name.startswith(".") or not path.suffix:
        return "", ""
    return str(path.with_suffix("")), path.suffix.lower()


def _long_name(data: bytes, kind: bytes) -> str:
    """The name that an extended header gives the next member; "" when it gives none."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return data.rstrip(b"\0").decode("utf-8", "surrogateescape")
    match = _PATH.search(data)
    return match.group(1).decode("utf-8", "surrogateescape") if match else ""
