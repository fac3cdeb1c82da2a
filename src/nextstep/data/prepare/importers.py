"""Data sets of others as raw samples: tables, shards, Parquet, Hugging Face `datasets`.

Every importer is an iterator that gives a `RawSample`, or the `SampleError` of one that cannot be
used, so that one bad file does not end the rest. Pictures keep their encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextstep.data.documents import SampleError
from nextstep.data.prepare.columns import (
    Columns,
    Item,
    ReadFile,
    choose_columns,
    read_beside,
    row_item,
)
from nextstep.data.set_file import check_kind
from nextstep.data.shard_writer import RawSample
from nextstep.data.shards import ShardSet
from nextstep.data.text_files import check_encoding, table_rows, with_numbers
from nextstep.errors import NextStepError

if TYPE_CHECKING:
    import datasets
    import pyarrow


def from_table(
    path: str | Path,
    kind: str,
    pictures: Seq[str] = (),
    caption: str | None = None,
    encoding: str | None = None,
) -> Iterator[Item]:
    """JSON Lines (one object a line) or CSV with a header; picture paths are relative to the file.

    The columns are chosen by the first line that is an object.

    Raises:
        NextStepError: when there is no such file, or (at the first sample) no such columns.
    """
    path, kind = Path(path), check_kind(kind)
    check_encoding(encoding)
    if not path.is_file():
        raise NextStepError(f"there is no file {path}")
    return _table_items(path, kind, pictures, caption, encoding)


def from_shards(source: str | Path, kind: str, encoding: str | None = None) -> Iterator[Item]:
    """Tar shards, ours or of other tools: a folder of them, or one.

    Raises:
        NextStepError: when there are none, or they hold no samples.
    """
    shards = ShardSet(source, kind=check_kind(kind), encoding=encoding)
    return (_stored_item(shards, index) for index in range(len(shards)))


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
    read: ReadFile = _read_anywhere if isinstance(source, str | Path) else read_beside(Path())
    return (row_item(row, columns, kind, origin, read) for origin, row in rows)


def _read_anywhere(name: str) -> bytes:
    if "://" not in name:
        return read_beside(Path())(name)
    import fsspec

    with fsspec.open(name, "rb") as file:
        data: bytes = file.read()
    return data


def _table_items(
    path: Path, kind: str, pictures: Seq[str], caption: str | None, encoding: str | None
) -> Iterator[Item]:
    columns: Columns | None = None
    read = read_beside(path.parent)
    for origin, row in table_rows(path, path.name, encoding):
        if isinstance(row, SampleError):
            yield row
            continue
        columns = columns or choose_columns(row.keys(), kind, pictures, caption)
        if path.suffix.lower() == ".csv":
            row = with_numbers(row, (columns.caption, *columns.pictures))  # noqa: PLW2901
        item = row_item(row, columns, kind, origin, read)
        yield replace(item, caption_source=path.name) if isinstance(item, RawSample) else item


def _stored_item(shards: ShardSet, index: int) -> Item:
    """A sample of a shard; its pictures stay as they are encoded."""
    try:
        entry = shards.entry(index)
        record, pictures = shards.record(index), tuple(shards.picture_files(index))
    except SampleError as error:
        return error
    return RawSample(record, pictures, None, entry.key, f"shards of {shards.name}")


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

    read = read_beside(file.parent)
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=64):
                for row in batch.to_pylist():
                    yield row_item(row, columns, kind, f"{file.name}:{number}", read)
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
