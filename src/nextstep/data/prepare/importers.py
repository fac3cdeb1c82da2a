"""Data sets of others as raw samples: folders, JSON Lines, Parquet, Hugging Face `datasets`.

Every importer is an iterator that gives a `RawSample`, or the `SampleError` of one that cannot be
used, so that one bad file does not end the rest. Pictures keep their encoding.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Seq
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextstep.data.captions import CORRUPT_CAPTION, MISSING_CAPTION, MISSING_PICTURE
from nextstep.data.documents import SampleError
from nextstep.data.prepare.columns import Columns, ReadFile, choose_columns, row_sample
from nextstep.data.set_file import check_kind
from nextstep.data.shard_writer import RawSample
from nextstep.errors import NextStepError

if TYPE_CHECKING:
    import datasets
    import pyarrow

Item = RawSample | SampleError

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Files that are taken for pictures."""
_FILE = "the picture file"


def from_folder(folder: str | Path, kind: str) -> Iterator[Item]:
    """Files side by side, in any depth, in the order of their names.

    NAME.jpg with NAME.txt or NAME.json is a captioned picture. An edit or an interleaved sample is
    NAME.txt or NAME.json with NAME-0.jpg, NAME-1.png ..., or a JSON whose `images` lists paths
    beside it. A text set takes each .txt as one text. A JSON file holds a caption, a list of them,
    or an object with `caption` (and `caption_all`, numbers, `metadata`).

    Raises:
        NextStepError: when the folder is missing or holds nothing for this kind.
    """
    folder, kind = Path(folder), check_kind(kind)
    if not folder.is_dir():
        raise NextStepError(f"there is no folder {folder}")
    files = sorted(
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )
    pictures = [path for path in files if path.suffix.lower() in ENDINGS]
    notes = {path.with_suffix(""): path for path in files if path.suffix.lower() == ".txt"}
    notes |= {path.with_suffix(""): path for path in files if path.suffix.lower() == ".json"}
    if kind == "image_text":
        wanted = {path: (notes.get(path.with_suffix("")), [path]) for path in pictures}
    else:
        wanted = _by_note(notes, pictures, kind)
    if not wanted:
        missing = "pictures" if kind == "image_text" else "texts (.txt or .json)"
        raise NextStepError(f"{folder} holds no {missing}")
    return (_from_note(folder, origin, *told, kind) for origin, told in wanted.items())


def from_jsonl(
    path: str | Path,
    kind: str,
    pictures: Seq[str] = (),
    caption: str | None = None,
) -> Iterator[Item]:
    """One JSON object a line; picture paths are relative to the file.

    The columns are chosen by the first line that is an object.

    Raises:
        NextStepError: when there is no such file, or (at the first sample) no such columns.
    """
    path, kind = Path(path), check_kind(kind)
    if not path.is_file():
        raise NextStepError(f"there is no file {path}")
    return _jsonl_items(path, kind, pictures, caption)


def from_parquet(
    source: str | Path,
    kind: str,
    pictures: Seq[str] = (),
    caption: str | None = None,
) -> Iterator[Item]:
    """A Parquet file, or all of a folder in the order of their names.

    Pictures are columns of bytes, of objects with `bytes` and `path`, of lists of these, or of
    paths relative to the file.

    Raises:
        NextStepError: when there is no such file or it is damaged; no such columns.
    """
    source, kind = Path(source), check_kind(kind)
    files = [source] if source.is_file() else sorted(source.rglob("*.parquet"))
    if not files:
        raise NextStepError(f"there is no Parquet file {source}")
    columns = [_parquet_columns(file, kind, pictures, caption) for file in files]
    return (
        item
        for file, chosen in zip(files, columns, strict=True)
        for item in _parquet_items(file, chosen, kind)
    )


def from_datasets(
    source: str | Path | datasets.Dataset | datasets.IterableDataset,
    kind: str,
    pictures: Seq[str] = (),
    caption: str | None = None,
    split: str = "train",
    config: str | None = None,
    streaming: bool = True,
) -> Iterator[Item]:
    """A Hugging Face data set: an object, a folder of `save_to_disk`, a folder of files, a hub id.

    Args:
        source: as above; nothing that it brings along is run.
        kind: one of `documents.KINDS`.
        pictures: columns, in order; guessed from features and names by default.
        caption: column; guessed from the names by default.
        split: of a set with several.
        config: of a hub set with several.
        streaming: read while it is fetched instead of fetching it first.

    Raises:
        NextStepError: when it cannot be had, or which columns to take cannot be told.
    """
    kind = check_kind(kind)
    if find_spec("datasets") is None:
        raise NextStepError(
            "reading Hugging Face data sets needs the datasets package: pip install datasets"
        )
    if isinstance(source, str | Path):
        name = f"{Path(source).name}/{split}"
        data = _load(str(source), split, config, streaming)
    else:
        name, data = "dataset", source
    typed = []
    for column, feature in (data.features or {}).items():
        if (raw := _undecoded(feature)) is not None:
            typed.append(column)
            data = data.cast_column(column, raw)
    names = data.column_names
    if names is None:
        names = list(next(iter(data), {}))
    columns = choose_columns(names, kind, pictures, caption, typed)
    rows = ((f"{name}:{number}", row) for number, row in enumerate(data))
    read: ReadFile = _read_anywhere if isinstance(source, str | Path) else _beside(Path())
    return (_item(row, columns, kind, origin, read) for origin, row in rows)


def _item(row: Mapping[str, Any], columns: Columns, kind: str, origin: str, read: ReadFile) -> Item:
    try:
        return row_sample(row, columns, kind, origin, read)
    except SampleError as error:
        return error


def _beside(folder: Path) -> ReadFile:
    """Reads regular files by path, relative ones from a folder."""

    def read(name: str) -> bytes:
        path = folder / name
        if not path.is_file():  # a pipe or a device would be waited for without end
            raise FileNotFoundError(f"there is no file {path}")
        return path.read_bytes()

    return read


def _read_anywhere(name: str) -> bytes:
    if "://" not in name:
        return _beside(Path())(name)
    import fsspec

    with fsspec.open(name, "rb") as file:
        data: bytes = file.read()
    return data


def _by_note(
    notes: Mapping[Path, Path], pictures: Seq[Path], kind: str
) -> dict[Path, tuple[Path | None, list[Path]]]:
    """For kinds led by their texts: text file -> (itself, its numbered pictures)."""
    numbered: dict[Path, list[tuple[int, Path]]] = {}
    for path in pictures:
        name, dash, number = path.stem.rpartition("-")
        if name and dash and number.isascii() and number.isdigit():
            numbered.setdefault(path.with_name(name), []).append((int(number), path))
    wanted: dict[Path, tuple[Path | None, list[Path]]] = {}
    for stem, note in sorted(notes.items()):
        own = numbered.pop(stem, []) if kind != "text" else []
        wanted[note] = (note, [path for _, path in sorted(own)])
    if kind != "text" and not any(note.suffix.lower() == ".json" for note in notes.values()):
        # Pictures that no text claims are told as broken, so that a misspelt name is found; a JSON
        # file may claim them by any name.
        wanted |= {path: (None, [path]) for stem in numbered for _, path in sorted(numbered[stem])}
    return wanted


def _from_note(
    folder: Path, origin: Path, note: Path | None, pictures: list[Path], kind: str
) -> Item:
    """A sample of files: its caption file and its pictures."""
    name = origin.as_posix()
    if note is None:
        return SampleError(name, MISSING_CAPTION, "no .txt or .json of that name")
    try:
        row = _note_row(folder / note, name, kind)
        row |= (
            {_FILE: [str(path.relative_to(note.parent)) for path in pictures]} if pictures else {}
        )
        named = (_FILE,) if pictures else ("images",)
        columns = choose_columns(
            row.keys() | set(named), kind, () if kind == "text" else named,
        )  # fmt: skip
    except SampleError as error:
        return error
    except NextStepError:
        return SampleError(name, MISSING_CAPTION, f"none in {note.name}")
    if kind == "interleaved" and not row.get(named[0]):
        return SampleError(name, MISSING_PICTURE, f"no {origin.stem}-0 beside it, no 'images'")
    return _item(row, columns, kind, name, _beside((folder / note).parent))


def _note_row(path: Path, name: str, kind: str) -> dict[str, Any]:
    """What a caption file says, as a row."""
    field = "text" if kind == "text" else "caption"
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".txt":
            return {field: text.strip()}
        told = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise SampleError(name, CORRUPT_CAPTION, f"{path.name}: {error}") from None
    return dict(told) if isinstance(told, dict) else {field: told}


def _jsonl_items(path: Path, kind: str, pictures: Seq[str], caption: str | None) -> Iterator[Item]:
    columns: Columns | None = None
    read = _beside(path.parent)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            origin = f"{path.name}:{number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield SampleError(origin, CORRUPT_CAPTION, f"not JSON: {error}")
                continue
            if not isinstance(row, dict):
                yield SampleError(origin, CORRUPT_CAPTION, "not a JSON object")
                continue
            columns = columns or choose_columns(row.keys(), kind, pictures, caption)
            yield _item(row, columns, kind, origin, read)


def _parquet_columns(file: Path, kind: str, pictures: Seq[str], caption: str | None) -> Columns:
    try:
        import pyarrow.parquet
    except ImportError:
        raise NextStepError("reading Parquet needs pyarrow: pip install pyarrow") from None
    try:
        schema = pyarrow.parquet.read_schema(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise NextStepError(f"{file} is not a Parquet file: {error}") from None
    typed = [field.name for field in schema if _holds_bytes(field.type)]
    return choose_columns(schema.names, kind, pictures, caption, typed)


def _parquet_items(file: Path, columns: Columns, kind: str) -> Iterator[Item]:
    import pyarrow.parquet

    read = _beside(file.parent)
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=64):
                for row in batch.to_pylist():
                    yield _item(row, columns, kind, f"{file.name}:{number}", read)
                    number += 1
    except (OSError, pyarrow.ArrowException) as error:
        raise NextStepError(f"{file} is damaged after row {number}: {error}") from None


def _holds_bytes(kind: pyarrow.DataType) -> bool:
    import pyarrow

    types = pyarrow.types
    if types.is_list(kind) or types.is_large_list(kind):
        return _holds_bytes(kind.value_type)
    if types.is_struct(kind):
        return any(field.name == "bytes" for field in kind.fields)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _load(
    source: str, split: str, config: str | None, streaming: bool
) -> datasets.Dataset | datasets.IterableDataset:
    import datasets

    saved = any((Path(source) / name).is_file() for name in ("state.json", "dataset_dict.json"))
    try:
        if not saved:
            return datasets.load_dataset(source, config, split=split, streaming=streaming)
        data = datasets.load_from_disk(source)
    except Exception as error:  # many kinds, from missing names to the network
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NextStepError(f"the data set '{source}' cannot be read: {reason}") from None
    if isinstance(data, datasets.Dataset):
        return data
    if split not in data:
        raise NextStepError(f"'{source}' has no split '{split}'; it has {', '.join(data)}")
    return data[split]


def _undecoded(feature: Any) -> Any:
    """A picture feature, or a list of them, that hands out the stored bytes; None for others."""
    import datasets

    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(feature, datasets.List | datasets.LargeList):
        inner = _undecoded(feature.feature)
        return None if inner is None else type(feature)(inner)
    return None
