"""JSON files in and out, with errors that name the file; folders locked, and written whole."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import stat
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from nextstep.errors import ModelFileError, NextStepError

MAX_JSON = 256 * 2**20
"""Bytes of a JSON file at most; the largest there are, vocabularies, have some ten million."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ModelFileError: when the file is missing, not JSON, or holds something else.
    """
    try:
        value = json.loads(read_plain(path).decode("utf-8"))
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}") from None
    except RecursionError:
        raise ModelFileError(f"{path} is nested too deep") from None
    except ModelFileError:
        raise
    except ValueError as error:
        raise ModelFileError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} must hold a JSON object")
    return value


def read_plain(path: Path, most: int = MAX_JSON) -> bytes:
    """The bytes of a plain file of bounded size: pipes and devices could be without end.

    Raises:
        ModelFileError: when it is something else or larger.
        OSError: when it is not there or cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise ModelFileError(f"{path} is no plain file")
        data = file.read(most + 1)
    if len(data) > most:
        raise ModelFileError(f"{path} is larger than {most:,} bytes")
    return data


def check_plain(path: Path) -> None:
    """Make sure that opening a file by its name cannot wait for ever.

    Raises:
        ModelFileError: when it is there and is a pipe, a device or the like.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # what is wrong with the name is said by whoever opens it
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ModelFileError(f"{path} is no plain file")


def write_json(path: Path, value: object) -> None:
    """Write JSON beside `path`, then put it in its place."""
    write_whole(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_whole(path: Path, data: bytes) -> None:
    """Write beside `path`, then rename, so that no half-written file is ever seen.

    Raises:
        OSError: naming `path`, when it cannot be written.
    """
    with writing(path) as scratch:
        scratch.write_bytes(data)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; the file takes its place when the block ends, or is gone.

    Raises:
        OSError: naming `path`, when the system does not let it be written.
    """
    # The process id keeps two writers of one file apart.
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield scratch
        scratch.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        _raise_naming(path, error)
        raise


def append_line(path: Path, line: str, mode: int = 0o666) -> None:
    """Add a line at the end of a text file; a line before it without an end gets one.

    Args:
        path: made when it is not there, readable as `mode` says from its first byte on.
        line: without its end.
        mode: of a new file.

    Raises:
        OSError: naming `path`, when it cannot be written.
    """
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, mode)
    with os.fdopen(handle, "r+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        ended = not size or os.pread(handle, 1, size - 1) == b"\n"
        data = (b"" if ended else b"\n") + line.encode() + b"\n"
        try:
            while data:
                data = data[os.write(handle, data) :]
        except OSError as error:
            os.ftruncate(handle, size)  # no half line
            _raise_naming(path, error)


def _raise_naming(path: Path, error: BaseException) -> None:
    """Raise a system's error anew with the path that it was about; return for other errors."""
    number = error.errno if isinstance(error, OSError) else None
    # safetensors tells the system's errors as text.
    if number is None and (found := _SYSTEM_ERROR.search(str(error))):
        number = int(found[1])
    if number is not None:
        raise OSError(number, os.strerror(number), str(path)) from None


LOCK = "lock"
"""Name of the file that `lock_folder` locks."""
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
"""What the system answers when there is no room; a failure, and nobody's bad input."""
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""What file systems without locks answer."""


def lock_folder(folder: Path, user: str) -> IO[str]:
    """Keep a folder for this process until the handle is closed or the process ends.

    Args:
        folder: that exists.
        user: what uses it, for the error: "service", "training".

    Returns:
        The open lock file; closing it gives the folder free.

    Raises:
        NextStepError: when another process has it.
        OSError: when no file can be made there.
    """
    # Children must not hold it on: Python's files are closed on exec.
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    file = os.fdopen(handle, "r+", encoding="utf-8", errors="replace")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = file.read(20).strip()
        file.close()
        named = f" (process {holder})" if holder.isdigit() else ""
        raise NextStepError(
            f"another {user}{named} is using the folder {folder}; end it, or use another folder"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            file.close()
            raise
        warnings.warn(
            f"the file system of {folder} has no locks, so nothing keeps a second {user} from it",
            stacklevel=2,
        )
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def refuse_existing(folder: Path) -> None:
    """Make sure nothing would be overwritten.

    Raises:
        NextStepError: when the folder exists.
    """
    if folder.exists():
        raise NextStepError(f"{folder} exists already; choose another folder")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A scratch folder to write into; it takes its place when the block ends, or is gone.

    Raises:
        NextStepError: when the folder exists, or cannot be written.
        OSError: when the disk is full.
    """
    refuse_existing(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        if error.errno in FULL_DISK:
            _raise_naming(folder, error)
        raise NextStepError(f"{folder} cannot be written: {error.strerror}") from None
    try:
        yield scratch
        # mkdtemp and safetensors write for the owner alone; what is made here is for everybody.
        scratch.chmod(0o755)
        for file in scratch.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)
        scratch.replace(folder)
    except BaseException as error:
        shutil.rmtree(scratch, ignore_errors=True)
        if not isinstance(error, OSError) or error.errno in FULL_DISK:
            _raise_naming(folder, error)
        raise
