"""From any source of samples to a set of shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Seq
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from nextstep.data import set_file
from nextstep.data.documents import SampleError
from nextstep.data.ordered import ordered_map
from nextstep.data.prepare import importers
from nextstep.data.prepare.columns import Item
from nextstep.data.prepare.folder import TABLES, PictureFolder, from_folder
from nextstep.data.shard_writer import RawSample, ShardWriter
from nextstep.data.stored import as_stored, decode, refuse_bomb, upright_size
from nextstep.errors import NextStepError

FORMS = ("folder", "jsonl", "csv", "shards", "parquet", "datasets")


@dataclass(frozen=True)
class BuildReport:
    """What became of a source.

    Attributes:
        folder, name, kind: of the set that was written.
        samples: written.
        shards: written.
        size: bytes of the shards.
        broken: samples that were left out.
        captions: where captions were found -> samples written with one from there.
    """

    folder: Path
    name: str
    kind: str
    samples: int
    shards: int
    size: int
    broken: list[SampleError] = field(default_factory=list)
    captions: dict[str, int] = field(default_factory=dict)

    @property
    def reasons(self) -> dict[str, int]:
        """How many were left out for each reason, the most frequent first."""
        return dict(Counter(error.reason for error in self.broken).most_common())

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "folder": str(self.folder), "name": self.name, "kind": self.kind,
            "samples": self.samples, "shards": self.shards, "bytes": self.size,
            "captions": self.captions, "left_out": self.reasons,
            "broken": [[error.key, error.reason, error.detail] for error in self.broken],
        }  # fmt: skip


def build_set(
    items: Iterable[Item],
    folder: str | Path,
    name: str,
    kind: str,
    samples_per_shard: int = 500,
    decode_pictures: bool = True,
    threads: int = 1,
    limit: int | None = None,
    on_item: Callable[[Item], None] | None = None,
) -> BuildReport:
    """Write samples as a set; broken ones are left out and reported.

    Args:
        items: from an importer.
        folder: must not exist yet; appears when the set is whole.
        name: of the set.
        kind: one of `documents.KINDS`.
        samples_per_shard: at most.
        decode_pictures: decode every picture once, to leave out damaged ones now; otherwise only
            headers are looked at.
        threads: that decode; the result does not depend on them.
        limit: stop after that many samples are written.
        on_item: told of each item.

    Raises:
        NextStepError: when the folder exists or cannot be written, or no sample can be used.
    """
    broken: list[SampleError] = []
    captions: Counter[str] = Counter()
    writer = ShardWriter(folder, name, kind, samples_per_shard)
    checked = ordered_map(partial(_checked, decode_pictures=decode_pictures), items, threads)
    with writer, closing(checked) as stream:
        for item in stream:
            error = item if isinstance(item, SampleError) else _add(writer, item)
            if error is not None:
                broken.append(error)
            elif isinstance(item, RawSample) and item.caption_source:
                captions[item.caption_source] += 1
            if on_item is not None:
                on_item(item)
            if limit is not None and writer.count >= limit:
                break
        if not writer.count:
            why = f"; the first is {broken[0]}" if broken else ""
            raise NextStepError(f"none of {len(broken)} samples can be used{why}")
    size = sum(shard.size or 0 for shard in writer.shards)
    return BuildReport(
        writer.folder, name, kind, writer.count, len(writer.shards), size, broken, dict(captions)
    )


def open_source(
    source: str,
    kind: str,
    form: str | None = None,
    pictures: Seq[str] = (),
    caption: str | None = None,
    split: str = "train",
    config: str | None = None,
    streaming: bool = True,
    encoding: str | None = None,
) -> Iterator[Item]:
    """The importer for a source.

    Args:
        source: a folder or file, or the id of a Hugging Face data set.
        kind: one of `documents.KINDS`.
        form: one of `FORMS`; guessed when None.
        pictures, caption: columns; guessed when not given.
        split, config, streaming: of Hugging Face data sets.
        encoding: of texts in files without a byte order mark; by default UTF-8.

    Raises:
        NextStepError: when the source is not there or its form cannot be told.
    """
    form = form or guess_form(source)
    if form == "folder" or (form in ("jsonl", "csv") and Path(source).is_dir()):
        return from_folder(source, kind, pictures, caption, encoding)
    if form in ("jsonl", "csv"):
        return importers.from_table(source, kind, pictures, caption, encoding)
    if form == "shards":
        return importers.from_shards(source, kind, encoding)
    if form == "parquet":
        return importers.from_parquet(source, kind, pictures, caption)
    if form == "datasets":
        return importers.from_datasets(source, kind, pictures, caption, split, config, streaming)
    raise NextStepError(f"unknown form '{form}'; choose from {', '.join(FORMS)}")


def guess_form(source: str) -> str:
    """Which importer reads a source, by what lies there.

    Raises:
        NextStepError: when nothing is there, or it is of no known form.
    """
    path = Path(source)
    if path.is_dir():
        if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
            return "datasets"
        if (path / set_file.FILE).is_file():
            return "shards"
        if any((path / name).is_file() for name in TABLES):
            return "folder"
        if next(path.rglob("*.parquet"), None):
            return "parquet"
        return "shards" if PictureFolder.scan(path).is_shards else "folder"
    if path.is_file():
        endings = {
            ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tar": "shards",
            ".parquet": "parquet",
        }  # fmt: skip
        if path.suffix.lower() in endings:
            return endings[path.suffix.lower()]
        raise NextStepError(
            f"{path} is of no known form; give a folder, a .jsonl, .csv, .tar or .parquet file"
        )
    raise NextStepError(
        f"there is no file or folder {source}; for a set of the Hugging Face hub say "
        "--form datasets"
    )


def _checked(item: Item, decode_pictures: bool) -> Item:
    """The sample with pictures that a shard can hold, or why it is broken."""
    if isinstance(item, SampleError):
        return item
    try:
        pictures = []
        for data in item.pictures:
            if decode_pictures:
                decode(data, item.origin)
            else:
                refuse_bomb(*upright_size(data, item.origin), item.origin)
            pictures.append(as_stored(data, item.origin))
    except SampleError as error:
        return error
    return replace(item, pictures=tuple(pictures))


def _add(writer: ShardWriter, sample: RawSample) -> SampleError | None:
    try:
        writer.add(sample)
    except SampleError as error:
        return error
    return None
