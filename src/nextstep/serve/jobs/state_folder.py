"""The folder that a service keeps its jobs in: marked as ours, and only our own files in it.

A folder is ours when it holds the marker that the first start wrote there. The service never
removes a file whose name it did not make up itself; a file of ours that no record names is moved
to `quarantine/`, because a lost or damaged database says nothing about what people still want.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import sqlite3
import stat
import time
from pathlib import Path
from typing import IO, Protocol

from nextstep.errors import NextStepError
from nextstep.utils.files import FULL_DISK, LOCK, lock_folder, write_whole

log = logging.getLogger("nextstep.serve")

MARKER = "nextstep-serve.json"
FORMAT = "nextstep-serve-state"
VERSION = 1
BASE = "jobs.sqlite3"
PICTURES = "pictures"
QUARANTINE = "quarantine"
RESERVE = 2**20
"""Bytes that must be free before a job is accepted."""
FULL_WORDS = "the service's disk is full, so nothing can be kept; ask again later"
FAILED_WORDS = "the service's disk cannot be used now; ask again later"
_PROBE = f"{'0' * 32}-0.state"
BASE_FILES = frozenset({BASE, f"{BASE}-wal", f"{BASE}-shm", f"{BASE}-journal"})
_OWN_NAME = re.compile(
    r"[0-9a-f]{32}-(?:(?:source-)?\d{1,5}\.png|mask\.png|start\.state|(?:parked-)?\d{1,5}\.state)"
)
_SCRATCH = re.compile(rf"\.{_OWN_NAME.pattern}\.\d+\.part")


class StorageError(Exception):
    """Jobs cannot be kept now; its text is for clients and names no path.

    Args:
        full: whether the disk has no room left.
    """

    def __init__(self, full: bool) -> None:
        super().__init__(FULL_WORDS if full else FAILED_WORDS)
        self.full = full

    @classmethod
    def of(cls, error: OSError | sqlite3.Error) -> StorageError:
        """What an error of the disk or the database comes to."""
        if isinstance(error, OSError):
            return cls(error.errno in FULL_DISK)
        return cls(getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL)


class StoredFileError(Exception):
    """A kept file cannot be had; its text is for clients and names no path."""


class MissingFileError(StoredFileError):
    """It is not there."""

    def __init__(self) -> None:
        super().__init__("a picture of the job is gone from the service's disk")


class DamagedFileError(StoredFileError):
    """It is not what was written."""

    def __init__(self) -> None:
        super().__init__("a picture of the job is damaged on the service's disk")


def is_own_name(name: str) -> bool:
    """Whether the service makes up such names for the files of jobs."""
    return _OWN_NAME.fullmatch(name) is not None


def claim(folder: Path) -> IO[str]:
    """Make a folder ours, or make sure that it is, and keep other services from it.

    Returns:
        The lock; closing it gives the folder free.

    Raises:
        NextStepError: when it holds files and no marker of ours, a newer version's marker, or
            another service uses it.
        OSError: when it cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / MARKER
    if marker.exists():
        _check_marker(marker)
        return lock_folder(folder, "service")
    if any(folder.iterdir()) and not _is_unmarked_state(folder):
        raise NextStepError(
            f"the folder {folder} holds files and was not made by `nextstep serve`; "
            "give --folder a new or an empty folder"
        )
    told = {"format": FORMAT, "version": VERSION}
    write_whole(marker, (json.dumps(told) + "\n").encode())
    return lock_folder(folder, "service")


def _check_marker(marker: Path) -> None:
    try:
        told = json.loads(marker.read_text(encoding="utf-8"))
        version = told["version"] if told["format"] == FORMAT else None
    except (ValueError, KeyError, TypeError, RecursionError):
        version = None
    if not isinstance(version, int):
        raise NextStepError(f"{marker} is damaged, so its folder is not touched")
    if version > VERSION:
        raise NextStepError(
            f"the folder {marker.parent} was made by a newer version of nextstep; "
            "use that version, or give --folder another folder"
        )


def _is_unmarked_state(folder: Path) -> bool:
    """Whether a folder is a service's of the time before markers: its files and nothing else."""
    entries = {path.name for path in folder.iterdir()}
    if BASE not in entries or not entries <= BASE_FILES | {PICTURES, LOCK}:
        return False
    pictures = folder / PICTURES
    if pictures.exists() and not all(
        is_own_name(path.name) or _SCRATCH.fullmatch(path.name) for path in pictures.iterdir()
    ):
        return False
    try:
        base = sqlite3.connect(f"file:{(folder / BASE).absolute()}?mode=ro", uri=True)
        try:
            columns = {row[1] for row in base.execute("PRAGMA table_info(jobs)")}
        finally:
            base.close()
    except sqlite3.Error:
        return False
    return {"id", "owner", "state", "request", "parts"} <= columns


def quarantine(folder: Path) -> Path:
    """A folder for what is doubtful, made below the service's own."""
    place = folder / QUARANTINE / time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    place.mkdir(parents=True, exist_ok=True)
    return place


class FolderFiles:
    """Files of jobs, in a folder; other files in it are neither read nor touched.

    Args:
        folder: that `claim` made ours; the files lie in `pictures/` below it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / PICTURES
        self.folder.mkdir(exist_ok=True)

    def write(self, name: str, data: bytes) -> None:
        """Whole or not at all."""
        try:
            write_whole(self._path(name), data)
        except OSError as error:
            raise StorageError.of(error) from error

    def read(self, name: str) -> bytes:
        """Raises MissingFileError when it is gone or no plain file."""
        # A link could lead out of the folder, and a pipe would never end.
        try:
            handle = os.open(self._path(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(handle, "rb") as file:
                if not stat.S_ISREG(os.fstat(handle).st_mode):
                    raise MissingFileError
                return file.read()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP):
                raise MissingFileError from None
            raise StorageError.of(error) from error

    def remove(self, name: str) -> None:
        """Nothing happens when it is gone."""
        try:
            self._path(name).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError.of(error) from error

    def check_room(self) -> None:
        """Raises StorageError when the disk is as good as full."""
        try:
            room = os.statvfs(self.folder)
        except OSError as error:
            raise StorageError.of(error) from error
        if room.f_bavail * room.f_frsize < RESERVE:
            raise StorageError(full=True)

    def probe(self) -> None:
        """Raises StorageError when nothing can be written."""
        self.check_room()
        self.write(_PROBE, bytes(RESERVE // 16))
        self.remove(_PROBE)

    def names(self) -> list[str]:
        """Names of ours among all that lie there."""
        return [path.name for path in self.folder.iterdir() if is_own_name(path.name)]

    def sweep(self, known: set[str], whole_jobs: set[str]) -> None:
        """Tidy up after a process that died: what no record names goes to quarantine.

        Args:
            known: names that records hold.
            whole_jobs: ids of jobs all of whose files stay.
        """
        for path in self.folder.iterdir():
            if _SCRATCH.fullmatch(path.name):
                path.unlink(missing_ok=True)  # half-written, and its process is gone
        doubtful = sorted(name for name in set(self.names()) - known if name[:32] not in whole_jobs)
        if not doubtful:
            return
        place = quarantine(self.folder.parent)
        for name in doubtful:
            if not (place / name).exists():
                (self.folder / name).rename(place / name)
        log.warning(
            "files without a record were moved to quarantine",
            extra={"files": len(doubtful), "quarantine": str(place)},
        )

    def _path(self, name: str) -> Path:
        if not is_own_name(name):
            raise MissingFileError
        return self.folder / name


class Files(Protocol):
    """Pictures by names that the service made itself; its methods may raise `StorageError`."""

    def write(self, name: str, data: bytes) -> None:
        """Keep a picture."""

    def read(self, name: str) -> bytes:
        """Its bytes; raises MissingFileError when it is not there."""

    def remove(self, name: str) -> None:
        """Forget it."""

    def names(self) -> list[str]:
        """Of all that are kept."""

    def sweep(self, known: set[str], whole_jobs: set[str]) -> None:
        """Put aside what no record names.

        Args:
            known: names that records hold.
            whole_jobs: ids of jobs all of whose files stay.
        """

    def check_room(self) -> None:
        """Whether more could be kept."""

    def probe(self) -> None:
        """Whether something can be written now."""


class MemoryFiles:
    """In memory; gone with the process."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}

    def write(self, name: str, data: bytes) -> None:
        """Keep."""
        self._files[name] = data

    def read(self, name: str) -> bytes:
        """Raises MissingFileError when it is not there."""
        try:
            return self._files[name]
        except KeyError:
            raise MissingFileError from None

    def remove(self, name: str) -> None:
        """Nothing happens when it is gone."""
        self._files.pop(name, None)

    def names(self) -> list[str]:
        """Of all files."""
        return list(self._files)

    def sweep(self, known: set[str], whole_jobs: set[str]) -> None:
        """Nothing outlives the process, so nothing is left over."""

    def check_room(self) -> None:
        """There is always room."""

    def probe(self) -> None:
        """Always."""


def cannot_keep(folder: Path | None, error: Exception) -> Exception:
    """What is said at the start: a full disk is a failure, all else a folder to be changed."""
    caused = error.__cause__ if isinstance(error, StorageError) else error
    full = error if isinstance(error, StorageError) else None
    if full is None and isinstance(error, OSError | sqlite3.Error):
        full = StorageError.of(error)
    if full is not None and full.full:
        return OSError(errno.ENOSPC, "the disk is full, so no jobs can be kept", str(folder))
    said = caused.strerror if isinstance(caused, OSError) and caused.strerror else caused or error
    return NextStepError(f"the folder {folder} cannot keep jobs: {said}")
