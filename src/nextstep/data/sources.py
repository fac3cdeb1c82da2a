"""Sources over shards: an index and a seed become a document, and later its pictures.

Legend: H W pixels, RGB; n pictures of a sample.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from nextstep.data import augment
from nextstep.data.augment import Piece, Shares
from nextstep.data.captions import MISSING_CAPTION, MISSING_PICTURE, WRONG_TAGS
from nextstep.data.documents import KINDS, Document, SampleError, derived_seed
from nextstep.data.filters import Filters
from nextstep.errors import NextStepError
from nextstep.image import sizes as buckets
from nextstep.image.pictures import resize_and_crop
from nextstep.text.sequence import (
    IMAGE_TAG,
    Grid,
    Part,
    Picture,
    Sequence,
    Text,
    build_sequence,
    split_tags,
)
from nextstep.text.tokenizer import TextTokenizer

NEAR_SHAPE = 0.1
"""Pictures of one edit whose height/width differs by less than this are brought to one shape."""
CENTRE = (0.5, 0.5)


class IndexEntry(Protocol):
    """What the index of a set of shards tells about a sample."""

    @property
    def key(self) -> str:
        """Its name, "SET/SHARD/KEY"."""

    @property
    def captions(self) -> Mapping[str, Any]:
        """Texts by their key: a string, or a list or object of strings."""

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of every picture."""

    @property
    def numbers(self) -> Mapping[str, float]:
        """Numbers to filter by."""


class Samples(Protocol):
    """A set of shards, as far as a source needs it."""

    name: str

    def __len__(self) -> int:
        """How many samples."""

    def entry(self, index: int) -> IndexEntry:
        """What is known without decoding a picture; `SampleError` when it is broken."""

    def pictures(self, index: int) -> Seq[Image.Image]:
        """The pictures, upright RGB; `SampleError` when one is broken."""


@dataclass(frozen=True)
class SourceOptions:
    """How samples become documents.

    Attributes:
        captions: caption key -> how often it is chosen; without any, the kind's own key.
        templates: texts with the place {caption} that wrap a caption of a picture.
        upper_first: how often the first letter is put in upper case.
        drop_text_prob: how often a caption comes after its picture: this trains captioning, and is
            how the released models learn pictures without text.
        drop_condition_prob: how often the caption is left out.
        shares: of the augmentations of edits and interleaved samples.
        filters: what leaves a sample out.
        areas: sides of the areas whose aspect buckets pictures are brought to, ascending; the
            largest that the picture fills is taken.
        grids: buckets to choose from by aspect, in place of `areas`.
        crop: where a picture that covers its bucket is cut; one place for all of a sample.
        max_length: positions that an interleaved sample or a plain text is cut to.
        token_pixels: side of an image token.
    """

    captions: Mapping[str, float] = field(default_factory=dict)
    templates: tuple[str, ...] = ()
    upper_first: float = 0.0
    drop_text_prob: float = 0.0
    drop_condition_prob: float = 0.0
    shares: Shares = field(default_factory=Shares)
    filters: Filters = field(default_factory=Filters)
    areas: tuple[int, ...] = (256,)
    grids: tuple[Grid, ...] = ()
    crop: Literal["centre", "random"] = "centre"
    max_length: int | None = None
    token_pixels: int = 16

    def __post_init__(self) -> None:
        for name in ("upper_first", "drop_text_prob", "drop_condition_prob"):
            augment.check_share(name, getattr(self, name))
        if any(weight < 0 for weight in self.captions.values()):
            raise NextStepError("weights of caption keys must not be negative")
        if self.captions and not any(self.captions.values()):
            raise NextStepError("one caption key needs a weight above 0")
        augment.check_templates(self.templates)
        if self.crop not in ("centre", "random"):
            raise NextStepError(f"crop is centre or random, not {self.crop!r}")
        if self.max_length is not None and self.max_length < 1:
            raise NextStepError(f"max_length must be at least 1, not {self.max_length}")
        if not self.grids and not self.areas:
            raise NextStepError("a source of pictures needs areas or grids")
        for side in () if self.grids else self.areas:
            buckets.scaled_buckets(side)
        if any(rows < 1 or columns < 1 for rows, columns in self.grids):
            raise NextStepError(f"grids must be rows and columns from 1 up, not {self.grids}")

    def grid(self, height: int, width: int) -> Grid:
        """The bucket of a picture."""
        if self.grids:
            return buckets.nearest_bucket(height, width, self.grids)
        return buckets.multi_area_bucket(height, width, self.token_pixels, self.areas)


@dataclass(frozen=True)
class Fit:
    """What one picture of a sample is brought to.

    Attributes:
        shape: (height, width) it is resized to first, or None.
        grid: image tokens that it then covers.
    """

    shape: tuple[int, int] | None
    grid: Grid


@dataclass(frozen=True)
class Stills:
    """All pictures of a sample in their own order, each at its bucket, cut at the centre.

    Attributes:
        key: of the sample.
        grids: image tokens of each.
        pictures: uint8 [H, W, 3] each.
    """

    key: str
    grids: list[Grid]
    pictures: list[np.ndarray]


@dataclass(frozen=True)
class _Use:
    index: int
    fits: tuple[Fit, ...]
    place: tuple[float, float]


class ShardSource:
    """A set of shards as a source.

    Args:
        samples: the set.
        kind: one of `documents.KINDS`.
        tokenizer: of the text.
        options: how samples become documents.
        name: in mixes and reports; the set's own name without one.

    Raises:
        NextStepError: for an unknown kind.
    """

    def __init__(
        self,
        samples: Samples,
        kind: str,
        tokenizer: TextTokenizer,
        options: SourceOptions | None = None,
        name: str | None = None,
    ) -> None:
        if kind not in KINDS:
            raise NextStepError(f"a source is one of {', '.join(KINDS)}, not {kind!r}")
        self.samples, self.kind, self.tokenizer = samples, kind, tokenizer
        self.options = options if options is not None else SourceOptions()
        self.name = name or samples.name
        own = {"text": 1.0, "caption": 1.0} if kind == "text" else {"caption": 1.0}
        self._captions = dict(self.options.captions) or own

    def __len__(self) -> int:
        return len(self.samples)

    def document(self, index: int, seed: int) -> Document | None:
        """Sample `index` with its choices made; None when a filter leaves it out.

        Raises:
            SampleError: when it is broken, has no caption, or tags that do not fit its pictures.
        """
        entry = self.samples.entry(index)
        key = entry.key
        if not self.options.filters.keep(entry.sizes, entry.numbers):
            return None
        rng = random.Random(derived_seed(seed, "choices"))
        caption = augment.choose_caption(entry.captions, self._captions, rng)
        if caption is None:
            raise SampleError(key, MISSING_CAPTION, f"none of {', '.join(self._captions)}")
        if self.options.filters.drops(caption, rng):
            return None
        if self.kind == "text":
            return Document(key, self._text(caption, rng), seed=seed)
        fits = self.fits(entry.sizes)
        try:
            pieces = self._pieces(caption, len(fits), rng)
        except ValueError as error:
            raise SampleError(key, WRONG_TAGS, str(error)) from None
        if not any(isinstance(piece, int) for piece in pieces):
            raise SampleError(key, MISSING_PICTURE)
        sequence, pieces = self._laid_out(pieces, fits, rng)
        images = tuple(piece for piece in pieces if isinstance(piece, int))
        place = CENTRE
        if self.options.crop == "random":
            place = rng.random(), rng.random()
        return Document(key, sequence, images, seed, _Use(index, fits, place))

    def pictures(self, document: Document) -> list[np.ndarray]:
        """The document's pictures in reading order, uint8 [H, W, 3] of each span's grid.

        Raises:
            SampleError: when one cannot be decoded or is missing.
        """
        use = document.payload
        if not document.images:
            return []
        found = self._found(use.index, len(use.fits), document.key)
        return [self._fitted(found[n], use.fits[n], use.place) for n in document.images]

    @property
    def token_pixels(self) -> int:
        """Side of an image token in pixels."""
        return self.options.token_pixels

    @property
    def is_still(self) -> bool:
        """Whether pictures are cut at the same place at every use."""
        return self.options.crop == "centre"

    def shown(self) -> dict[str, Any]:
        """What the pictures depend on: how they are cut, and which set they are from."""
        options = self.options
        digest = getattr(self.samples, "digest", None)
        return {
            **({"shards": digest} if digest else {}),
            "areas": [] if options.grids else list(options.areas),
            "grids": [list(grid) for grid in options.grids],
            "token_pixels": options.token_pixels,
        }

    def stills(self, index: int) -> Stills | None:
        """What a sample shows whatever is chosen for it; None when a filter leaves it out.

        Raises:
            SampleError: when it is broken.
        """
        entry = self.samples.entry(index)
        if not self.options.filters.keep(entry.sizes, entry.numbers):
            return None
        fits = self.fits(entry.sizes)
        found = self._found(index, len(fits), entry.key)
        pictures = [self._fitted(p, f, CENTRE) for p, f in zip(found, fits, strict=True)]
        return Stills(entry.key, [fit.grid for fit in fits], pictures)

    def fits(self, sizes: Seq[tuple[int, int]]) -> tuple[Fit, ...]:
        """What each picture of a sample with these (width, height) is brought to."""
        shapes: list[tuple[int, int] | None] = [None] * len(sizes)
        if self.kind == "image_to_image" and sizes:
            common = min(h for _, h in sizes), min(w for w, _ in sizes)
            aspect = common[0] / common[1]
            shapes = [common if abs(h / w - aspect) < NEAR_SHAPE else None for w, h in sizes]
        return tuple(
            Fit(shape, self.options.grid(*(shape or (height, width))))
            for shape, (width, height) in zip(shapes, sizes, strict=True)
        )

    def _text(self, text: str, rng: random.Random) -> Sequence:
        """The whole text, or of one longer than `max_length` a piece drawn by chance."""
        ids = [*self.tokenizer.encode(text), self.tokenizer.ids.eos]
        room = self.options.max_length or len(ids)
        pieces = [ids[first : first + room] for first in range(0, len(ids), room)]
        piece = augment.pick(rng, pieces, [float(len(piece)) for piece in pieces])
        return Sequence(piece, list(piece))

    def _pieces(self, caption: str, count: int, rng: random.Random) -> list[Piece]:
        options = self.options
        if self.kind == "image_text":
            if count > 1:
                raise ValueError(f"{count} pictures where one belongs to a caption")
            return self._captioned(caption, rng) if count else []
        if self.kind == "image_to_image":
            pieces = augment.edit_pieces(caption, count) if count else []
            return augment.augment_edit(pieces, options.shares, rng)
        pieces = split_tags(caption, count)
        if augment.happens(rng, options.shares.images_only):
            pieces = [piece for piece in pieces if isinstance(piece, int)]
        return pieces

    def _captioned(self, caption: str, rng: random.Random) -> list[Piece]:
        """Caption and picture in one of their orders, or the picture alone."""
        options = self.options
        # A tag would say where the picture stands, which is decided here.
        caption = IMAGE_TAG.sub("", caption).strip() if IMAGE_TAG.search(caption) else caption
        caption = augment.in_template(caption, options.templates, rng)
        if augment.happens(rng, options.upper_first):
            caption = augment.upper_first(caption)
        after = augment.happens(rng, options.drop_text_prob)
        alone = augment.happens(rng, options.drop_condition_prob)
        if alone:
            return [0]
        return [0, caption] if after else [caption, 0]

    def _laid_out(
        self, pieces: list[Piece], fits: Seq[Fit], rng: random.Random
    ) -> tuple[Sequence, list[Piece]]:
        """The sequence, and the pieces in it: of an interleaved sample those that fit."""
        parts, room = self._parts(pieces, fits), self.options.max_length
        sequence = build_sequence(parts, self.tokenizer)
        if self.kind == "interleaved" and room is not None and len(sequence) > room:
            costs = [len(build_sequence([part], self.tokenizer, end=False)) for part in parts]
            pictures = [isinstance(piece, int) for piece in pieces]
            first, end = augment.fitting_window(costs, pictures, room - 1, rng)
            pieces, parts = pieces[first:end], parts[first:end]
            sequence = build_sequence(parts, self.tokenizer)
        return sequence, pieces

    def _parts(self, pieces: Seq[Piece], fits: Seq[Fit]) -> list[Part]:
        """As parts of a sequence; of an edit only the last picture is trained."""
        edit = self.kind == "image_to_image"
        last = max((n for n, piece in enumerate(pieces) if isinstance(piece, int)), default=-1)
        return [
            Text(piece)
            if isinstance(piece, str)
            else Picture(fits[piece].grid, trained=not edit or place == last)
            for place, piece in enumerate(pieces)
        ]

    def _found(self, index: int, count: int, key: str) -> Seq[Image.Image]:
        found = self.samples.pictures(index)
        if len(found) != count:
            raise SampleError(key, MISSING_PICTURE, f"{len(found)} of {count}")
        return found

    def _fitted(self, picture: Image.Image, fit: Fit, place: tuple[float, float]) -> np.ndarray:
        if fit.shape is not None and (picture.height, picture.width) != fit.shape:
            picture = picture.resize(fit.shape[::-1], Image.Resampling.LANCZOS)
        rows, columns = (tokens * self.options.token_pixels for tokens in fit.grid)
        return np.asarray(resize_and_crop(picture, rows, columns, place))
