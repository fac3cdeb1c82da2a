"""Texts of people: their encodings, and the rows of JSON Lines and CSV files."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nextstep.data.captions import CORRUPT_CAPTION
from nextstep.data.documents import SampleError
from nextstep.errors import NextStepError

MARKS = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"), (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip
"""Byte order marks; those of UTF-32 begin like those of UTF-16."""
DELIMITERS = ",;\t"
"""What spreadsheets put between the columns of a CSV file."""


def check_encoding(name: str | None) -> str | None:
    """The name of an encoding of texts, if Python knows it.

    Raises:
        NextStepError: otherwise.
    """
    if name is not None:
        try:
            "".encode(name)
        except (LookupError, ValueError):
            raise NextStepError(
                f"unknown encoding '{name}'; common ones are utf-8, cp1252, latin-1, gbk, shift-jis"
            ) from None
    return name


def decode_text(data: bytes, encoding: str | None = None) -> str:
    """A text: by its byte order mark, else by the encoding, else as UTF-8.

    Raises:
        ValueError: when it is in another encoding.
    """
    marked = next(((mark, name) for mark, name in MARKS if data.startswith(mark)), None)
    name = marked[1] if marked else encoding or "utf-8"
    try:
        text = data.removeprefix(marked[0] if marked else b"").decode(name)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"not {name} text at byte {error.start}; name its encoding with --encoding"
        ) from None
    if "\0" in text:
        raise ValueError(f"zero bytes, which is no {name} text; name its encoding with --encoding")
    return text


def table_rows(
    path: Path, name: str, encoding: str | None = None
) -> Iterator[tuple[str, dict[str, Any] | SampleError]]:
    """(origin, row) of a JSON Lines or CSV file, by its ending; a bad line ends nothing.

    Args:
        path: of the file.
        name: that origins begin with: "NAME:3" is its third line.
        encoding: of the text, where no byte order mark tells it.

    Raises:
        NextStepError: when the file cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise NextStepError(f"{path} cannot be read: {error.strerror}") from None
    rows = _csv_rows if path.suffix.lower() == ".csv" else _json_rows
    return rows(data, name, encoding)


def _json_rows(
    data: bytes, name: str, encoding: str | None
) -> Iterator[tuple[str, dict[str, Any] | SampleError]]:
    for number, line in enumerate(_lines(data, encoding), 1):
        if not line.strip():
            continue
        origin = f"{name}:{number}"
        try:
            row = json.loads(line if isinstance(line, str) else decode_text(line, encoding))
        except (ValueError, RecursionError) as error:
            detail = str(error) if "--encoding" in str(error) else f"not JSON: {error}"
            yield origin, SampleError(origin, CORRUPT_CAPTION, detail)
            continue
        if isinstance(row, dict):
            yield origin, row
        else:
            yield origin, SampleError(origin, CORRUPT_CAPTION, "not a JSON object")


def _lines(data: bytes, encoding: str | None) -> Sequence[str | bytes]:
    """Lines, each still as bytes where one in another encoding can be told from the rest."""
    wide = any(data.startswith(mark) for mark, _ in MARKS[1:])
    if wide or (encoding or "").lower().replace("_", "-").startswith(("utf-16", "utf-32", "utf16")):
        try:
            return decode_text(data, encoding).split("\n")
        except ValueError:
            return [data]
    return data.split(b"\n")


def _csv_rows(
    data: bytes, name: str, encoding: str | None
) -> Iterator[tuple[str, dict[str, Any] | SampleError]]:
    try:
        text = decode_text(data, encoding)
    except ValueError as error:
        yield name, SampleError(name, CORRUPT_CAPTION, str(error))
        return
    lines = text.splitlines(keepends=True)
    if not lines:
        return
    delimiter = max(DELIMITERS, key=lines[0].count)
    reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
    origin = f"{name}:1"
    try:
        for row in reader:
            origin = f"{name}:{reader.line_num}"
            yield origin, {key: value for key, value in row.items() if key is not None}
    except csv.Error as error:
        yield origin, SampleError(origin, CORRUPT_CAPTION, f"not CSV after this line: {error}")


def with_numbers(row: Mapping[str, Any], texts: tuple[str, ...]) -> dict[str, Any]:
    """A row of a CSV file with its numbers as such, for filters; columns of `texts` stay texts."""
    return {name: value if name in texts else _number(value) for name, value in row.items()}


def _number(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value
