"""A folder of somebody's pictures as the source of a fine-tuning: captions, shards, latents.

RUN/data/      the folder as shards, with the captions that are trained
RUN/latents/   every picture encoded once
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from nextstep.data.captions import MISSING_CAPTION, captions_of
from nextstep.data.documents import SampleError, derived_seed
from nextstep.data.latents import CachedSource, LatentCache, build_cache, tokenizer_hash
from nextstep.data.prepare.build import BuildReport, build_set
from nextstep.data.prepare.columns import Item
from nextstep.data.prepare.folder import UNREADABLE, PictureFolder, from_folder
from nextstep.data.prepare.importers import from_shards
from nextstep.data.shard_writer import RawSample
from nextstep.data.shards import Entry, ShardSet
from nextstep.data.sources import ShardSource, SourceOptions
from nextstep.data.stored import decode, upright_size
from nextstep.errors import NextStepError
from nextstep.image.sizes import filling_grids, kept_share

if TYPE_CHECKING:
    from nextstep.engine.pretrained import Parts

SET_NAME = "pictures"
NAME, CAPTION = "{name}", "{caption}"
BUCKET_SIDE = 256
"""Aspect buckets exist for multiples of this; other models see one shape alone."""

TOO_LONG = "caption too long"

CUT_SHARE = 0.05
"""Pictures that lose more of themselves are counted."""

_NUMBER_AT_END = re.compile(r"[\s_-]*\(?\d+\)?$")


@dataclass(frozen=True)
class FinetuneSamples:
    """The pictures of a fine-tuning, ready to be trained on.

    Attributes:
        shards: what is stored.
        source: documents with cached latents.
        longest: positions of the longest document.
    """

    shards: ShardSet
    source: CachedSource
    longest: int


def file_words(stem: str) -> str:
    """What a file name says: "red_apple-02" is "red apple"."""
    return " ".join(_NUMBER_AT_END.sub("", stem).replace("_", " ").replace("-", " ").split())


def captioned(
    folder: Path, caption: str | None = None, edits: bool = False, encoding: str | None = None
) -> Iterator[Item]:
    """The samples of a folder, as `data.prepare.folder.from_folder` or `from_shards` reads them.

    Args:
        folder: pictures with captions in metadata.jsonl or metadata.csv, or with NAME.txt,
            NAME.caption or NAME.json beside NAME.png; of edits NAME.txt with NAME-0.png (the
            source) and NAME-1.png; or tar shards.
        caption: what is trained as caption. "{caption}" stands for the one that the picture has,
            "{name}" for the words of the file name. Default the picture's own; in a folder in
            which no picture has any, the words of the file name.
        edits: samples are edits.
        encoding: of texts without a byte order mark; by default UTF-8.

    Raises:
        NextStepError: when the folder is missing or holds nothing of the kind.
    """
    kind = "image_to_image" if edits else "image_text"
    if edits and caption is not None:
        raise NextStepError("edits bring their instructions along; leave --caption out")
    if caption is not None and not caption.strip():
        raise NextStepError("the caption is empty; write one, or leave --caption out")
    found = None if folder.suffix.lower() == ".tar" else PictureFolder.scan(folder)
    if found is None or found.is_shards:
        items = from_shards(folder, kind, encoding)
        return items if caption is None else (_worded(item, caption) for item in items)
    if edits:
        return from_folder(folder, kind, encoding=encoding)
    if not found.pictures and not found.tables:
        reasons = "; ".join(str(problem) for problem in found.problems[:3])
        raise NextStepError(f"{folder} holds no pictures{f' ({reasons})' if reasons else ''}")
    if caption is None:
        caption = CAPTION if found.has_captions else NAME
    if CAPTION in caption:
        if not found.has_captions:
            raise NextStepError(
                f"no picture in {folder} has a text for {CAPTION}; write NAME.txt beside NAME.png, "
                f"or use {NAME} for the words of the file name"
            )
        return (_worded(item, caption) for item in from_folder(folder, kind, encoding=encoding))
    return _named_items(found, caption)


def _worded(item: Item, caption: str) -> Item:
    if isinstance(item, SampleError):
        return item
    words = file_words(Path(item.origin).stem)
    text = str(item.record.get("caption", ""))
    record = {**item.record, "caption": caption.replace(NAME, words).replace(CAPTION, text)}
    return replace(item, record=record)


def _named_items(found: PictureFolder, caption: str) -> Iterator[Item]:
    """Every picture, whatever texts lie beside it."""
    yield from found.problems
    for path in found.pictures:
        words, origin = file_words(path.stem), path.as_posix()
        if NAME in caption and not words:
            yield SampleError(origin, MISSING_CAPTION, "the file name has no words")
            continue
        try:
            data = (found.folder / path).read_bytes()
        except OSError as error:
            yield SampleError(origin, UNREADABLE, str(error.strerror))
            continue
        source = "file names" if NAME in caption else "--caption"
        yield RawSample({"caption": caption.replace(NAME, words)}, (data,), None, origin, source)


def data_digest(folder: Path) -> str:
    """16 hex digits of what samples are made from: they change when a picture or text does."""
    if folder.is_file():
        found = folder.stat()
        return f"{derived_seed(folder.name, found.st_size, found.st_mtime_ns):016x}"
    return PictureFolder.scan(folder).digest()


def that_fit(items: Iterator[Item], parts: Parts, options: SourceOptions) -> Iterator[Item]:
    """Samples without those that are longer than the model reads, which are named instead."""
    limit = parts.model.config.max_position_embeddings
    for item in items:
        length = 0
        if isinstance(item, RawSample):
            # What is wrong with a sample otherwise is told by whoever writes it.
            with contextlib.suppress(SampleError):
                kind = "image_to_image" if len(item.pictures) > 1 else "image_text"
                source = ShardSource(_One(item), kind, parts.text_tokenizer, options)
                document = source.document(0, 0)
                length = len(document) if document else 0
        if isinstance(item, RawSample) and length > limit:
            detail = f"{length} tokens with its picture; this model reads at most {limit}"
            yield SampleError(item.origin, TOO_LONG, detail)
        else:
            yield item


@dataclass
class _One:
    """One sample as a set, to see how long it is."""

    item: RawSample
    name: str = "one"

    def __len__(self) -> int:
        return 1

    def entry(self, index: int) -> Entry:
        """What a set would know of it."""
        item = self.item
        sizes = tuple(upright_size(data, item.origin) for data in item.pictures)
        return Entry(item.origin, captions_of(item.record), sizes, {})

    def pictures(self, index: int) -> list[Image.Image]:
        """Its pictures, decoded."""
        return [decode(data, self.item.origin) for data in self.item.pictures]


def build_samples(items: Iterator[Item], run: Path, edits: bool) -> BuildReport:
    """Write the shards of a run.

    Raises:
        NextStepError: when no sample can be used.
    """
    return build_set(items, run / "data", SET_NAME, "image_to_image" if edits else "image_text")


def shapes(parts: Parts, fit: str | None = None, edits: bool = False) -> SourceOptions:
    """What pictures are brought to: the model's own shape, or its area in many aspects.

    Args:
        parts: of the model.
        fit: "crop" cuts every picture to the model's own shape, "aspect" keeps nearly all of it.
            By default edits keep their shape, as `nextstep edit` does, and other pictures where
            the model was trained on many shapes.
        edits: samples are edits.
    """
    defaults, pixels = parts.defaults, parts.image_tokenizer.config.token_pixels
    height, width = defaults.height, defaults.width
    has_buckets = height == width and height % BUCKET_SIDE == 0
    if fit == "crop" or (fit is None and not has_buckets and not edits):
        return SourceOptions(grids=((height // pixels, width // pixels),), token_pixels=pixels)
    if has_buckets:
        return SourceOptions(areas=(height,), token_pixels=pixels)
    area = height * width // pixels**2
    grids = filling_grids(area, parts.model.config.image_position_side or area)
    return SourceOptions(grids=tuple(grids), token_pixels=pixels)


def count_cut(shards: ShardSet, options: SourceOptions) -> int:
    """Samples with a picture that loses more than `CUT_SHARE` of itself."""
    cut = 0
    for index in range(len(shards)):
        sizes = shards.entry(index).sizes
        cut += any(
            kept_share(height, width, options.grid(height, width)) < 1 - CUT_SHARE
            for width, height in sizes
        )
    return cut


def open_samples(run: Path, parts: Parts, drop_text: float, own: SourceOptions) -> FinetuneSamples:
    """The samples of a run with their latents, which are encoded when they are not there yet.

    Args:
        run: with its shards.
        parts: whose tokenizers count.
        drop_text: share of uses without the caption, for guidance.
        own: what pictures are brought to.

    Raises:
        NextStepError: when no picture can be encoded.
    """
    shards = ShardSet(run / "data", SET_NAME)
    plain = ShardSource(shards, shards.kind, parts.text_tokenizer, own)
    options = replace(own, drop_condition_prob=drop_text)
    source = ShardSource(shards, shards.kind, parts.text_tokenizer, options)
    build_cache(source, parts.image_tokenizer, run / "latents")
    cache = LatentCache(run / "latents", tokenizer_hash(parts.image_tokenizer))
    lengths = [len(d) for i in range(len(plain)) if (d := plain.document(i, 0)) is not None]
    return FinetuneSamples(shards, CachedSource(source, cache), max(lengths))
