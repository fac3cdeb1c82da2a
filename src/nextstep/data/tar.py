"""The little of the tar format that shards need: member positions, and plain ustar headers."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import IO, NamedTuple

from nextstep.data.stored import SUFFIXES

BLOCK = 512
END = bytes(2 * BLOCK)
"""What closes an archive."""

_WITHOUT_DATA = (
    tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)  # fmt: skip
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
_NAME = re.compile(r"([^.-]+)(?:-([0-9]+))?\.([^.]+)")


class Member(NamedTuple):
    """A file in an archive: where its bytes lie."""

    name: str
    offset: int
    size: int


class Part(NamedTuple):
    """A member that belongs to a sample; `number` is None for the JSON record."""

    key: str
    number: int | None
    member: Member


def scan(file: IO[bytes]) -> tuple[list[Member], bool]:
    """Members of an archive by its headers, and whether it breaks off before its end mark.

    Links, folders and extended headers are passed over; a member may reach beyond the end of a
    file that was cut off.
    """
    members: list[Member] = []
    place = 0
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
        if info.type in _FILES:
            members.append(Member(info.name, place, info.size))
        if info.type not in _WITHOUT_DATA:
            place += padded(info.size)


def samples(members: Iterable[Member]) -> Iterator[tuple[str, list[Part]]]:
    """Neighbouring members of one key: KEY.json and KEY-0.jpg, KEY-1.png ... or one KEY.jpg.

    Members that are neither, and names with more than one dot, are passed over.
    """
    parts = (part for member in members if (part := _part(member)) is not None)
    for key, group in groupby(parts, key=lambda part: part.key):
        yield key, list(group)


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


def _part(member: Member) -> Part | None:
    match = _NAME.fullmatch(member.name.removeprefix("./"))
    if match is None:
        return None
    key, number, suffix = match.group(1), match.group(2), match.group(3).lower()
    if suffix == "json" and number is None:
        return Part(key, None, member)
    if suffix in SUFFIXES:
        return Part(key, int(number or 0), member)
    return None
