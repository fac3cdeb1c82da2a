"""Rows of tables and records of files as raw samples: which columns, and what becomes of them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from nextstep.data.captions import MISSING_CAPTION, MISSING_PICTURE, texts_of, with_tags
from nextstep.data.documents import SampleError
from nextstep.data.shard_writer import RawSample
from nextstep.data.stored import CORRUPT_PICTURE
from nextstep.errors import NextStepError
from nextstep.image.encode import encode
from nextstep.image.pictures import flatten

Item = RawSample | SampleError
ReadFile = Callable[[str], bytes]
"""Gives the bytes of a picture file that a row names; OSError or ValueError when it cannot."""

CAPTION_NAMES = {
    "text": ("text", "content", "document", "story", "caption"),
    "image_text": ("caption", "captions", "text", "prompt", "description", "title", "alt_text"),
    "image_to_image": (
        "instruction", "edit_instruction", "edit_prompt", "edit", "caption", "prompt", "text",
    ),
    "interleaved": ("caption", "text", "story", "content"),
}  # fmt: skip
PICTURE_NAMES = (
    "image", "images", "picture", "pictures", "img", "imgs", "photo", "jpg", "jpeg", "png", "webp",
    "file_name", "filename", "image_file", "image_path", "image_paths", "path", "file",
)  # fmt: skip
SOURCE_NAMES = (
    "source", "source_image", "source_img", "input_image", "input", "original_image", "original",
    "before", "image",
)  # fmt: skip
TARGET_NAMES = (
    "target", "target_image", "target_img", "output_image", "output", "edited_image", "edited",
    "after",
)  # fmt: skip
_NUMBERED = re.compile(r"(?:image|img|picture)_?([0-9]+)")


@dataclass(frozen=True)
class Columns:
    """Where a sample lies in a row: its picture columns in order, and its caption column."""

    pictures: tuple[str, ...]
    caption: str


def choose_columns(
    names: Collection[str],
    kind: str,
    pictures: Seq[str] = (),
    caption: str | None = None,
    typed: Seq[str] = (),
) -> Columns:
    """The columns that were named, else those that are usually called so.

    Args:
        names: of all columns.
        kind: one of `documents.KINDS`.
        pictures: named by the user, in order.
        caption: named by the user.
        typed: columns known to hold pictures, whatever they are called.

    Raises:
        NextStepError: when a named column is not there, or none can be guessed.
    """
    listed = ", ".join(names) or "none"
    for name in (*pictures, *([caption] if caption else [])):
        if name not in names:
            raise NextStepError(f"there is no column '{name}'; the columns are {listed}")
    found = tuple(pictures) or _guess_pictures(names, kind, typed)
    if not found and kind != "text":
        raise NextStepError(
            f"which columns hold the pictures cannot be told from their names ({listed}); "
            "name them in order with --image-column"
        )
    chosen = caption or _guess_caption(names, kind)
    if chosen is None:
        raise NextStepError(
            f"which column holds the caption cannot be told from the names ({listed}); "
            "name it with --caption-column"
        )
    return Columns(() if kind == "text" else found, chosen)


def row_sample(
    row: Mapping[str, Any], columns: Columns, kind: str, origin: str, read: ReadFile
) -> RawSample:
    """A row as a sample. Columns of numbers and texts are kept; others are left out.

    Args:
        row: the columns' values. A picture is encoded bytes, a path, an object of `bytes` and
            `path`, a PIL picture, or a list of these.
        columns: which to take.
        kind: one of `documents.KINDS`; an edit's instruction without tags gets the released ones.
        origin: names the row; kept as `metadata.origin`.
        read: opens picture files.

    Raises:
        SampleError: when the caption is missing, or a picture cannot be read.
    """
    pictures = [data for name in columns.pictures for data in _encoded(row.get(name), origin, read)]
    if kind in ("image_text", "image_to_image") and not pictures:
        raise SampleError(origin, MISSING_PICTURE, f"nothing in {', '.join(columns.pictures)}")
    record = _caption_fields(row.get(columns.caption), kind, len(pictures))
    if not any(text.strip() for value in record.values() for text in texts_of(value)):
        raise SampleError(origin, MISSING_CAPTION, f"nothing in {columns.caption}")
    for name, value in row.items():
        used = name in record or name in (columns.caption, *columns.pictures, "metadata")
        if not used and (plain := _plain(value)) is not None:
            record[name] = plain
    told = row.get("metadata")
    kept = _plain(told) if isinstance(told, dict) else None
    record["metadata"] = {**(kept or {}), "origin": origin}
    return RawSample(record, tuple(pictures), None, origin)


def row_item(
    row: Mapping[str, Any], columns: Columns, kind: str, origin: str, read: ReadFile
) -> Item:
    """`row_sample`, or why there is none."""
    try:
        return row_sample(row, columns, kind, origin, read)
    except SampleError as error:
        return error


def read_beside(folder: Path) -> ReadFile:
    """Reads regular files by path, relative ones from a folder, also as Windows writes them."""

    def read(name: str) -> bytes:
        """Contents of a file that a row names."""
        path = folder / name
        if not path.is_file():  # a pipe or a device would be waited for without end
            path = folder / name.replace("\\", "/")
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {folder / name}")
        return path.read_bytes()

    return read


def _guess_pictures(names: Collection[str], kind: str, typed: Seq[str]) -> tuple[str, ...]:
    """Picture columns by type, or by name; of an edit, sources before the target."""
    numbered = sorted(
        (int(match.group(1)), name) for name in names if (match := _NUMBERED.fullmatch(name))
    )
    if kind == "image_to_image":
        pair = (_first(SOURCE_NAMES, names), _first(TARGET_NAMES, names))
        if pair[0] and pair[1]:
            return (pair[0], pair[1])
    if kind != "image_text" and len(numbered) > 1:
        return tuple(name for _, name in numbered)
    if len(typed) == 1:
        return tuple(typed)
    one = _first(PICTURE_NAMES, typed or names)
    return (one,) if one else ()


def _guess_caption(names: Collection[str], kind: str) -> str | None:
    return _first((*CAPTION_NAMES[kind], "caption_all"), names)


def _first(wanted: Seq[str], names: Collection[str]) -> str | None:
    """The first wanted name that is there, in whatever case."""
    lowered = {name.lower(): name for name in names}
    return next((lowered[name] for name in wanted if name in lowered), None)


def _caption_fields(value: Any, kind: str, pictures: int) -> dict[str, Any]:
    """`caption` and, for a list or object of alternatives, `caption_all`."""
    if kind == "text":
        return {"text": value}
    if kind == "image_to_image":
        value = _tagged(value, pictures)
    texts = [text for text in texts_of(value) if text.strip()]
    if isinstance(value, list | dict) and texts:
        return {"caption": texts[0], "caption_all": _plain(value)}
    return {"caption": value.strip() if isinstance(value, str) else ""}


def _tagged(value: Any, pictures: int) -> Any:
    if isinstance(value, str):
        return with_tags(value.strip(), pictures) if value.strip() else ""
    if isinstance(value, list):
        return [_tagged(item, pictures) for item in value]
    if isinstance(value, dict):
        return {name: _tagged(item, pictures) for name, item in value.items()}
    return value


def _encoded(value: Any, origin: str, read: ReadFile) -> list[bytes]:
    """The files of the pictures in a cell, as they are encoded there."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [data for item in value for data in _encoded(item, origin, read)]
    if isinstance(value, bytes | bytearray | memoryview):
        return [bytes(value)]
    if isinstance(value, str):
        try:
            return [read(value)]
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise SampleError(origin, MISSING_PICTURE, f"{value}: {reason}") from None
    if isinstance(value, Image.Image):
        try:
            return [encode(flatten(value))]
        except (OSError, ValueError) as error:
            raise SampleError(origin, CORRUPT_PICTURE, str(error)) from None
    raise SampleError(origin, CORRUPT_PICTURE, f"a {type(value).__name__} is no picture")


def _plain(value: Any) -> Any:
    """What JSON can hold of a value; None when that is nothing."""
    if isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, list):
        return [item for item in map(_plain, value) if item is not None] or None
    if isinstance(value, dict):
        kept = {str(name): _plain(item) for name, item in value.items()}
        return {name: item for name, item in kept.items() if item is not None} or None
    return None
