"""A folder of somebody's pictures as the source of a fine-tuning: captions, shards, latents.

RUN/data/      the folder as shards, with the captions that are trained
RUN/latents/   every picture encoded once
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nextstep.data.captions import MISSING_CAPTION
from nextstep.data.documents import SampleError
from nextstep.data.latents import CachedSource, LatentCache, build_cache, tokenizer_hash
from nextstep.data.prepare.build import BuildReport, build_set
from nextstep.data.prepare.importers import ENDINGS, Item, from_folder
from nextstep.data.shard_writer import RawSample
from nextstep.data.shards import ShardSet
from nextstep.data.sources import ShardSource, SourceOptions
from nextstep.errors import NextStepError

if TYPE_CHECKING:
    from nextstep.engine.settings import ModelDefaults
    from nextstep.model.pretrained import Parts

SET_NAME = "pictures"
NAME, CAPTION = "{name}", "{caption}"
BUCKET_SIDE = 256
"""Aspect buckets exist for multiples of this; other models see one shape alone."""

_NUMBER_AT_END = re.compile(r"[\s_-]*\(?\d+\)?$")


@dataclass(frozen=True)
class Samples:
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


def captioned(folder: Path, caption: str | None = None, edits: bool = False) -> Iterator[Item]:
    """The samples of a folder.

    Args:
        folder: pictures, with NAME.txt or NAME.json beside NAME.png for their captions; of edits
            NAME.txt with NAME-0.png (the source) and NAME-1.png.
        caption: what is trained as caption. "{caption}" stands for the text beside the picture,
            "{name}" for the words of the file name. Default the text beside it; in a folder
            without any text, the words of the file name.
        edits: samples are edits.

    Raises:
        NextStepError: when the folder is missing or holds nothing of the kind.
    """
    if edits:
        if caption is not None:
            raise NextStepError("edits bring their instructions along; leave --caption out")
        return from_folder(folder, "image_to_image")
    if not folder.is_dir():
        raise NextStepError(f"there is no folder {folder}")
    has_texts = any(f.suffix.lower() in (".txt", ".json") for f in folder.rglob("*"))
    if caption is None:
        caption = CAPTION if has_texts else NAME
    if not caption.strip():
        raise NextStepError("the caption is empty; write one, or leave --caption out")
    if CAPTION in caption:
        if not has_texts:
            raise NextStepError(
                f"{folder} holds no texts for {CAPTION}; write NAME.txt beside NAME.png, or use "
                f"{NAME} for the words of the file name"
            )
        return (_worded(item, caption) for item in from_folder(folder, "image_text"))
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in ENDINGS and f.is_file())
    if not files:
        raise NextStepError(f"{folder} holds no pictures")
    return (_named(file, file.relative_to(folder).as_posix(), caption) for file in files)


def _worded(item: Item, caption: str) -> Item:
    if isinstance(item, SampleError):
        return item
    words = file_words(Path(item.origin).stem)
    text = str(item.record.get("caption", ""))
    record = {**item.record, "caption": caption.replace(NAME, words).replace(CAPTION, text)}
    return replace(item, record=record)


def _named(file: Path, origin: str, caption: str) -> Item:
    words = file_words(file.stem)
    if NAME in caption and not words:
        return SampleError(origin, MISSING_CAPTION, "the file name has no words")
    try:
        record = {"caption": caption.replace(NAME, words)}
        return RawSample(record, (file.read_bytes(),), origin=origin)
    except OSError as error:
        return SampleError(origin, "unreadable file", str(error.strerror))


def build_samples(items: Iterator[Item], run: Path, edits: bool) -> BuildReport:
    """Write the shards of a run.

    Raises:
        NextStepError: when no sample can be used.
    """
    return build_set(items, run / "data", SET_NAME, "image_to_image" if edits else "image_text")


def shapes(defaults: ModelDefaults, token_pixels: int) -> SourceOptions:
    """The buckets of pictures: the model's own area in all aspects, where there are any."""
    height, width = defaults.height, defaults.width
    if height == width and height % BUCKET_SIDE == 0:
        return SourceOptions(areas=(height,), token_pixels=token_pixels)
    grid = height // token_pixels, width // token_pixels
    return SourceOptions(grids=(grid,), token_pixels=token_pixels)


def open_samples(run: Path, parts: Parts, drop_text: float) -> Samples:
    """The samples of a run with their latents, which are encoded when they are not there yet.

    Args:
        run: with its shards.
        parts: whose tokenizers and picture size count.
        drop_text: share of uses without the caption, for guidance.

    Raises:
        NextStepError: when no picture can be encoded, or one sample alone is too long.
    """
    shards = ShardSet(run / "data", SET_NAME)
    own = shapes(parts.defaults, parts.image_tokenizer.config.token_pixels)
    plain = ShardSource(shards, shards.kind, parts.text_tokenizer, own)
    options = replace(own, drop_condition_prob=drop_text)
    source = ShardSource(shards, shards.kind, parts.text_tokenizer, options)
    build_cache(source, parts.image_tokenizer, run / "latents")
    cache = LatentCache(run / "latents", tokenizer_hash(parts.image_tokenizer))
    lengths = [len(d) for i in range(len(plain)) if (d := plain.document(i, 0)) is not None]
    longest, limit = max(lengths), parts.model.config.max_position_embeddings
    if longest > limit:
        raise NextStepError(
            f"a caption with its picture takes {longest} tokens; this model reads at most {limit}, "
            "so shorten the captions"
        )
    return Samples(shards, CachedSource(source, cache), longest)
