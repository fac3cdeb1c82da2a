"""A folder of pictures as people keep it: every picture with the caption that belongs to it.

The one reader of captions for `data build` and `finetune`. Captions come from tables
(metadata.jsonl, metadata.csv) in any folder, from NAME.json, NAME.txt or NAME.caption beside
NAME.jpg, or from shards; each sample says from where. What is left out says why, and ends nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from nextstep.data import set_file
from nextstep.data.captions import CORRUPT_CAPTION, MISSING_CAPTION, MISSING_PICTURE
from nextstep.data.documents import SampleError
from nextstep.data.prepare.columns import (
    CAPTION_NAMES,
    Columns,
    Item,
    ReadFile,
    choose_columns,
    read_beside,
    row_item,
)
from nextstep.data.set_file import check_kind
from nextstep.data.shard_writer import RawSample
from nextstep.data.text_files import check_encoding, decode_text, table_rows, with_numbers
from nextstep.errors import NextStepError
from nextstep.image import formats

TABLES = ("metadata.jsonl", "metadata.csv")
NOTES = (".json", ".txt", ".caption")
"""Endings of captions beside a picture, the first that is there counts."""
UNREAD = "unread format"
UNCLAIMED = "text without a picture"
UNREADABLE = "unreadable file"
HASHED_WHOLE = 2**20
"""Bytes up to which a file counts by its contents; larger ones by their size and time."""
_FILE = "the picture file"


@dataclass(frozen=True)
class PictureFolder:
    """What lies in a folder, all paths relative to it and in order.

    Attributes:
        folder: the folder.
        pictures: files that are read as pictures.
        notes: name without ending -> ending -> file of a caption.
        tables: of captions.
        shards: tar files.
        problems: files that are pictures in formats that are not read, or cannot be looked at.
    """

    folder: Path
    pictures: tuple[Path, ...]
    notes: Mapping[str, Mapping[str, Path]]
    tables: tuple[Path, ...]
    shards: tuple[Path, ...]
    problems: tuple[SampleError, ...]

    @classmethod
    def scan(cls, folder: Path) -> PictureFolder:
        """Look through a folder and the folders in it; linked ones are followed, hidden ones not.

        Raises:
            NextStepError: when there is no such folder.
        """
        if not folder.is_dir():
            raise NextStepError(f"there is no folder {folder}")
        pictures, tables, shards = list[Path](), list[Path](), list[Path]()
        notes: dict[str, dict[str, Path]] = {}
        files, problems = _walk(folder)
        for path in files:
            ending = path.suffix.lower()
            if formats.is_picture(ending):
                pictures.append(path)
            elif path.name.lower() in TABLES:
                tables.append(path)
            elif ending in NOTES:
                notes.setdefault(_same(path.with_suffix("")), {})[ending] = path
            elif ending == ".tar":
                shards.append(path)
            elif reason := formats.unread_by_ending(ending):
                problems.append(SampleError(path.as_posix(), UNREAD, reason))
        return cls(folder, tuple(pictures), notes, tuple(tables), tuple(shards), tuple(problems))

    @property
    def has_captions(self) -> bool:
        """Whether any picture has one: texts that belong to no picture do not count."""
        return bool(self.tables) or any(self.notes_of(picture) for picture in self.pictures)

    @property
    def is_shards(self) -> bool:
        """Whether it is a set of shards: it says so, or holds no pictures beside them."""
        ours = (self.folder / set_file.FILE).is_file()
        return ours or bool(self.shards and not self.pictures)

    def notes_of(self, picture: Path) -> Mapping[str, Path]:
        """Captions of a picture by ending: of NAME.jpg those of NAME, else those of NAME.jpg."""
        own = self.notes.get(_same(picture.with_suffix("")), {})
        return own or self.notes.get(_same(picture), {})

    def digest(self) -> str:
        """16 hex digits that change when a picture or a caption does."""
        digest = hashlib.blake2b(digest_size=8)
        noted = (path for own in self.notes.values() for path in own.values())
        for path in sorted([*self.pictures, *self.tables, *self.shards, *noted]):
            found = (self.folder / path).stat()
            digest.update(
                f"{path.as_posix()}\0{found.st_size}\0".encode("utf-8", "surrogateescape")
            )
            if found.st_size <= HASHED_WHOLE:
                digest.update((self.folder / path).read_bytes())
            else:
                digest.update(str(found.st_mtime_ns).encode())
        return digest.hexdigest()


def from_folder(
    folder: str | Path,
    kind: str,
    pictures: Seq[str] = (),
    caption: str | None = None,
    encoding: str | None = None,
) -> Iterator[Item]:
    """The samples of a folder, in the order of their names; those of tables first.

    NAME.jpg with NAME.txt, NAME.caption or NAME.json is a captioned picture. An edit or an
    interleaved sample is NAME.txt or NAME.json with NAME-0.jpg, NAME-1.png ..., or a JSON whose
    `images` lists paths beside it. A text set takes each .txt as one text. A JSON file holds a
    caption, a list of them, or an object with `caption` (and `caption_all`, numbers, `metadata`).
    Tables are read as `importers.from_table` reads them; they lead what lies beside the pictures.

    Args:
        folder: to read.
        kind: one of `documents.KINDS`.
        pictures, caption: columns of tables; guessed by default.
        encoding: of texts without a byte order mark; by default UTF-8.

    Raises:
        NextStepError: when the folder is missing or holds nothing for this kind; (at the first
            sample) when a table has no such columns.
    """
    kind, found = check_kind(kind), PictureFolder.scan(Path(folder))
    check_encoding(encoding)
    if (pictures or caption) and not found.tables:
        raise NextStepError(
            f"a folder of pictures without {' or '.join(TABLES)} has no columns to name"
        )
    reader = _Reader(found, kind, encoding)
    wanted = reader.wanted()
    if not wanted and not found.tables and not found.problems:
        missing = "pictures" if kind == "image_text" else "texts (.txt or .json)"
        raise NextStepError(f"{folder} holds no {missing}")
    return reader.items(wanted, pictures, caption)


class _Reader:
    """Reads one folder for one kind."""

    def __init__(self, found: PictureFolder, kind: str, encoding: str | None) -> None:
        self.found, self.kind, self.encoding = found, kind, encoding
        self.claimed: set[Path] = set()
        self.spelt = {_same(path): path for path in found.pictures}

    def wanted(self) -> list[tuple[Path, Mapping[str, Path], list[Path]]]:
        """(what names the sample, its caption files by ending, its pictures)."""
        found = self.found
        if self.kind == "image_text":
            return [(path, found.notes_of(path), [path]) for path in found.pictures]
        return self._by_note()

    def items(
        self,
        wanted: list[tuple[Path, Mapping[str, Path], list[Path]]],
        pictures: Seq[str],
        caption: str | None,
    ) -> Iterator[Item]:
        """Every sample, or why it is left out."""
        yield from self.found.problems
        for table in self.found.tables:
            yield from self._table_items(table, pictures, caption)
        used: set[Path] = set()
        for origin, notes, own in wanted:
            used |= set(notes.values())
            if not own or not set(own) <= self.claimed:
                yield self._item(origin, notes, own)
        if self.kind == "image_text":
            for own_notes in self.found.notes.values():
                for path in sorted(set(own_notes.values()) - used):
                    yield SampleError(path.as_posix(), UNCLAIMED)

    def _table_items(self, table: Path, pictures: Seq[str], caption: str | None) -> Iterator[Item]:
        path, columns = self.found.folder / table, None
        read = self._reads_from(table.parent)
        for origin, row in table_rows(path, table.as_posix(), self.encoding):
            if isinstance(row, SampleError):
                yield row
                continue
            columns = columns or choose_columns(row.keys(), self.kind, pictures, caption)
            if table.suffix.lower() == ".csv":
                row = with_numbers(row, (columns.caption, *columns.pictures))  # noqa: PLW2901
            item = row_item(row, columns, self.kind, origin, read)
            if isinstance(item, RawSample):
                named = self._named_by(row, columns, table.parent)
                item = replace(item, origin=named or origin, caption_source=table.as_posix())
            yield item

    def _named_by(self, row: Mapping[str, Any], columns: Columns, beside: Path) -> str:
        """The one picture that a row is about, which names it better than its line."""
        value = row.get(columns.pictures[0]) if len(columns.pictures) == 1 else None
        path = self._find(beside, value) if isinstance(value, str) else None
        return path.as_posix() if path and self.kind == "image_text" else ""

    def _reads_from(self, beside: Path) -> ReadFile:
        """Reads a picture that a row names, and notes that it is taken."""
        plain = read_beside(self.found.folder / beside)

        def read(name: str) -> bytes:
            path = self._find(beside, name)
            if path is None:
                return plain(name)
            self.claimed.add(path)
            return (self.found.folder / path).read_bytes()

        return read

    def _find(self, beside: Path, name: str) -> Path | None:
        """A picture of the folder by the name in a table, however its letters are composed."""
        plain = PurePosixPath(os.path.normpath(beside / name.replace("\\", "/")))
        exact = Path(os.path.normpath(beside / name))
        return self.spelt.get(_same(exact)) or self.spelt.get(_same(plain))

    def _by_note(self) -> list[tuple[Path, Mapping[str, Path], list[Path]]]:
        """For kinds led by their texts: every text with its numbered pictures."""
        numbered: dict[str, list[tuple[int, Path]]] = {}
        for path in self.found.pictures if self.kind != "text" else ():
            name, dash, number = path.stem.rpartition("-")
            if name and dash and number.isascii() and number.isdigit():
                numbered.setdefault(_same(path.with_name(name)), []).append((int(number), path))
        wanted: list[tuple[Path, Mapping[str, Path], list[Path]]] = []
        for stem, notes in sorted(self.found.notes.items()):
            own = [path for _, path in sorted(numbered.pop(stem, []))]
            if self.found.tables and not own:
                continue  # a text beside a table is a licence, or a note to a reader
            wanted.append((next(notes[e] for e in NOTES if e in notes), notes, own))
        if not any(".json" in notes for notes in self.found.notes.values()):
            # Pictures that no text claims are told as broken, so that a misspelt name is found; a
            # JSON file may claim them by any name.
            wanted += [(path, {}, [path]) for _, many in sorted(numbered.items())
                       for _, path in sorted(many)]  # fmt: skip
        return wanted

    def _item(self, origin: Path, notes: Mapping[str, Path], pictures: list[Path]) -> Item:
        """A sample of files: its caption files and its pictures."""
        name = origin.as_posix()
        if not notes:
            return SampleError(name, MISSING_CAPTION, "no .txt, .json or .caption of that name")
        try:
            row, note = self._note_row(notes, name)
            row |= {_FILE: [str(path) for path in pictures]} if pictures else {}
            named = (_FILE,) if pictures else ("images",)
            columns = choose_columns(
                row.keys() | set(named), self.kind, () if self.kind == "text" else named
            )
        except SampleError as error:
            return error
        except NextStepError:
            first = next(iter(notes.values()))
            return SampleError(name, MISSING_CAPTION, f"none in {first.name}")
        if self.kind == "interleaved" and not row.get(named[0]):
            return SampleError(name, MISSING_PICTURE, f"no {origin.stem}-0 beside it, no 'images'")
        read = read_beside(self.found.folder / (Path() if pictures else note.parent))
        item = row_item(row, columns, self.kind, name, read)
        if isinstance(item, RawSample):
            item = replace(item, caption_source=f"{note.suffix.lower()} files")
        return item

    def _note_row(self, notes: Mapping[str, Path], name: str) -> tuple[dict[str, Any], Path]:
        """What the caption files of a sample say, as a row, and which one its caption is from."""
        field = "text" if self.kind == "text" else "caption"
        row: dict[str, Any] = {}
        note = None
        for ending in NOTES:
            if ending not in notes or (note is not None and field in row):
                continue
            path = notes[ending]
            text = self._text(path, name)
            if ending != ".json":
                row.setdefault(field, text.strip())
                note = path
                continue
            try:
                told = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise SampleError(name, CORRUPT_CAPTION, f"{path.name}: {error}") from None
            row, note = (dict(told) if isinstance(told, dict) else {field: told}), path
            if any(column in row for column in (*CAPTION_NAMES[self.kind], "caption_all")):
                break
        assert note is not None
        return row, note

    def _text(self, path: Path, name: str) -> str:
        try:
            return decode_text((self.found.folder / path).read_bytes(), self.encoding)
        except OSError as error:
            raise SampleError(name, UNREADABLE, f"{path.name}: {error.strerror}") from None
        except ValueError as error:
            raise SampleError(name, CORRUPT_CAPTION, f"{path.name}: {error}") from None


def _walk(folder: Path) -> tuple[list[Path], list[SampleError]]:
    """Files below a folder in the order of their names, and what cannot be looked at."""
    files, problems = list[Path](), list[SampleError]()
    seen: set[tuple[int, int]] = set()

    def told(error: OSError) -> None:
        name = os.path.relpath(error.filename, folder)
        problems.append(SampleError(name, UNREADABLE, error.strerror or "cannot be looked at"))

    for place, below, names in os.walk(folder, followlinks=True, onerror=told):
        here = Path(place).stat()
        if (here.st_dev, here.st_ino) in seen:  # a link to a folder that was seen, or holds it
            below.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        kept = [name for name in below if not name.startswith(".")]
        # Folders before links to them, so that a link never takes away their names.
        below[:] = sorted(kept, key=lambda name: ((Path(place) / name).is_symlink(), name))
        for name in names:
            path = Path(place) / name
            if name.startswith("."):
                continue
            if path.is_file():
                files.append(path.relative_to(folder))
            elif path.is_symlink():
                problems.append(
                    SampleError(str(path.relative_to(folder)), UNREADABLE, "its link leads nowhere")
                )
    return sorted(files), problems


def _same(path: Path | PurePosixPath) -> str:
    """A path in one composition of its letters: file systems differ in it."""
    return unicodedata.normalize("NFC", path.as_posix())
