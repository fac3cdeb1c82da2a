"""Files of a benchmark: pictures in every format that scorers read, grids, records, claims."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from nextstep.engine.metadata import as_texts, write_file
from nextstep.errors import NextStepError
from nextstep.image.encode import encode, format_of
from nextstep.image.pictures import open_picture


def read_picture(path: Path) -> Image.Image | None:
    """RGB; None when there is no such file or it is damaged."""
    try:
        picture = open_picture(path)
        picture.load()
    except (OSError, ValueError):
        return None
    return picture


def write_below(folder: Path, name: str, data: bytes) -> None:
    """Write a file of the layout, with its folders."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, data)


def encoded(image: Image.Image, name: str, record: Mapping[str, Any] | None = None) -> bytes:
    """File contents by the ending of a name: PNG, best JPEG, or WebP without loss.

    Args:
        image: the picture.
        name: of the file.
        record: what made it, put inside PNG and JPEG.
    """
    form = format_of(Path(name))
    if form == "WEBP":
        out = io.BytesIO()
        image.save(out, form, lossless=True)
        return out.getvalue()
    return encode(image, form, as_texts(dict(record)) if record else {}, quality=100)


def grid_of(pictures: Sequence[Image.Image], side: int = 2) -> Image.Image:
    """`side` x `side` pictures of one size in reading order; missing cells are black."""
    width, height = pictures[0].size
    grid = Image.new("RGB", (side * width, side * height))
    for number, picture in enumerate(pictures):
        grid.paste(picture, (number % side * width, number // side * height))
    return grid


def cells_of(grid: Image.Image, side: int = 2) -> list[Image.Image]:
    """The pictures of a grid in reading order."""
    width, height = grid.width // side, grid.height // side
    corners = [(x * width, y * height) for y in range(side) for x in range(side)]
    return [grid.crop((x, y, x + width, y + height)) for x, y in corners]


def data_hash(data: Path, patterns: Sequence[str] = ("**/*",)) -> str:
    """SHA-256 of a file, or of a folder's files that match, with their names.

    Raises:
        NextStepError: when there is no such file.
    """
    digest = hashlib.sha256()
    found = {path for pattern in patterns for path in data.glob(pattern) if path.is_file()}
    files = [data] if data.is_file() else sorted(found)
    if not files:
        raise NextStepError(f"there is no file or folder {data}")
    for file in files:
        if data.is_dir():
            digest.update(file.relative_to(data).as_posix().encode() + b"\0")
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file.

    Raises:
        NextStepError: naming the line that is none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise NextStepError(f"{path} cannot be read: {error}") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise NextStepError(f"line {number} of {path} is not a JSON object")
        found.append(value)
    return found


def read_any_json(path: Path) -> Any:
    """Any JSON value.

    Raises:
        NextStepError: when the file is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NextStepError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise NextStepError(f"{path} is not valid JSON: {error}") from None


def wanted(record: Mapping[str, Any], name: str, kind: type, where: str) -> Any:
    """A field of an official record.

    Raises:
        NextStepError: when it is missing or of another type.
    """
    value = record.get(name)
    if not isinstance(value, kind):
        raise NextStepError(f"{where} has no {kind.__name__} '{name}'")
    return value


class Claims:
    """Which items are being made, told to other processes by locks on the bytes of one file.

    A lock ends with the process that holds it, so a killed one leaves nothing behind.

    Args:
        path: of the file; made when it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Claims:
        self._file = self.path.open("ab+")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def take(self, number: int) -> bool:
        """Whether the item is this process's now."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except OSError:
            return False
        return True

    def release(self, number: int) -> None:
        """Let the item go."""
        with contextlib.suppress(OSError):
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, number)
