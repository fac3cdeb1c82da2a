"""Documents with their pictures, packed into rows of one length; or padded, one to a row.

Legend: B rows, S positions, M image tokens of all rows in reading order, T trained ones of them,
P positions whose next id is asked, K noise levels per trained token, D values per image token,
N image tokens of one picture.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nextstep.data.documents import Document, derived_seed
from nextstep.text.sequence import IGNORE, ImageSpan, Sequence
from nextstep.vae.latents import raster_coordinates

Picture = Tensor | np.ndarray
"""Image tokens [N, D], or uint8 pixels [H, W, 3] to be encoded later."""


@dataclass(frozen=True)
class ContextNoise:
    """Noise on the image tokens that the backbone reads; targets stay clean.

    Heavy noise on all tokens of a picture leaves the text as the only source of what it shows, so
    that the model learns to read names instead of taking them from neighbouring tokens.

    Attributes:
        token_std: each token draws its standard deviation from U[0, token_std].
        picture_prob: share of pictures of which all tokens get `picture_std` instead.
        picture_std: standard deviation in such a picture; tokens themselves have 1.
    """

    token_std: float = 0.0
    picture_prob: float = 0.0
    picture_std: float = 8.0

    def __bool__(self) -> bool:
        return bool(self.token_std or self.picture_prob)


@dataclass(frozen=True)
class PictureGroup:
    """Pictures of one size that are still to be encoded.

    Attributes:
        pixels: uint8 [n, H, W, 3].
        rows: [n, N] where their tokens belong in `image_tokens`.
    """

    pixels: Tensor
    rows: Tensor


@dataclass(frozen=True)
class SequenceBatch:
    """What one training step reads.

    Attributes:
        ids: [B, S], padded on the right.
        labels: [B, S], IGNORE where nothing is asked.
        image_tokens: [M, D]; zero where `pictures` are still to be encoded.
        coordinates: [M, 2] row and column of every image token in its picture.
        condition_places: [T] flat indices b*S + s of the states that predict the trained tokens.
        target_rows: [T] indices of those tokens in `image_tokens`.
        positions: [B, S] place of each id in its document; 0 in padding.
        documents: [B, S] number of the document in its row, -1 in padding.
        image_places: [M] flat indices of the placeholders.
        text_places: [P] flat indices of the states that predict a text id.
        text_targets: [P] those ids.
        u: [K, T] standard normal, from which noise levels are made.
        noise: [K, T, D] standard normal.
        context_shift: [T, D] what is added to trained tokens where they are read; None reads them
            as they are.
        pictures: pixels still to be encoded.
        keys: names of the documents, for reports.

    The draws come from each document's own seed, so a document meets the same ones wherever it
    lies. A batch made by `collate` has none.
    """

    ids: Tensor
    labels: Tensor
    image_tokens: Tensor
    coordinates: Tensor
    condition_places: Tensor
    target_rows: Tensor
    positions: Tensor
    documents: Tensor
    image_places: Tensor
    text_places: Tensor
    text_targets: Tensor
    u: Tensor | None = None
    noise: Tensor | None = None
    context_shift: Tensor | None = None
    pictures: tuple[PictureGroup, ...] = ()
    keys: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """Positions that hold a document."""
        return int((self.documents >= 0).sum())

    def owners(self, places: Tensor) -> Tensor:
        """Numbers of the documents, in the order of `keys`, that flat positions [n] lie in."""
        first = self.documents.amax(1).add(1).cumsum(0).roll(1)
        first[0] = 0
        return (self.documents + first[:, None]).flatten()[places]

    def to(self, device: torch.device | str) -> SequenceBatch:
        """A copy with every tensor on `device`."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        groups = tuple(
            PictureGroup(group.pixels.to(device), group.rows.to(device)) for group in self.pictures
        )
        return replace(self, **moved, pictures=groups)


def pack_rows(
    rows: Seq[Seq[tuple[Document, Seq[Picture]]]],
    row_length: int,
    pad_id: int,
    head_batch_mul: int,
    context_noise: ContextNoise | float = 0.0,
    token_size: int = 64,
) -> SequenceBatch:
    """Lay documents one after another into rows.

    Args:
        rows: for each row its documents, each with its pictures in reading order.
        row_length: S.
        pad_id: id of the padding token.
        head_batch_mul: K.
        context_noise: noise on trained image tokens where they are read; a number is `token_std`
            of `ContextNoise`.
        token_size: D.

    Raises:
        ValueError: when a row is too long, or pictures do not fit their spans.
    """
    batch = _Layout(len(rows), row_length, pad_id)
    if not isinstance(context_noise, ContextNoise):
        context_noise = ContextNoise(context_noise)
    draws = _Draws(head_batch_mul, context_noise, token_size)
    for number, documents in enumerate(rows):
        for document, pictures in documents:
            batch.add(number, document.sequence, pictures, document.key)
            draws.add(document.seed, document.sequence.images)
    return replace(batch.finish(token_size), **draws.finish())


def collate(
    sequences: Seq[Sequence], image_tokens: Seq[Tensor], pad_id: int, multiple: int = 1
) -> SequenceBatch:
    """One sequence to a row, padded to the longest one, without draws.

    Args:
        sequences: B sequences.
        image_tokens: one [rows*columns, D] tensor per picture, in reading order over all rows.
        pad_id: id of the padding token.
        multiple: S is rounded up to one of it, so that compiled code meets few shapes.

    Raises:
        ValueError: when the pictures do not fit the spans.
    """
    counts = [len(tokens) for tokens in image_tokens]
    spans = [span.count for sequence in sequences for span in sequence.images]
    if counts != spans:
        raise ValueError(f"pictures of {counts} tokens do not fit spans of {spans}")
    batch = _Layout(
        len(sequences), -(-max(len(s) for s in sequences) // multiple) * multiple, pad_id
    )
    pictures = iter(image_tokens)
    for row, sequence in enumerate(sequences):
        batch.add(row, sequence, [next(pictures) for _ in sequence.images], f"row {row}")
    return batch.finish(image_tokens[0].shape[-1] if counts else 0)


class _Layout:
    """Rows that grow document by document."""

    def __init__(self, rows: int, length: int, pad_id: int) -> None:
        self.length = length
        self.ids = np.full((rows, length), pad_id, np.int64)
        self.labels = np.full((rows, length), IGNORE, np.int64)
        self.positions = np.zeros((rows, length), np.int64)
        self.documents = np.full((rows, length), -1, np.int64)
        self.used = [0] * rows
        self.count = [0] * rows
        self.tokens = 0
        self.keys: list[str] = []
        self.places: dict[str, list[np.ndarray]] = {
            name: [] for name in ("image", "condition", "target", "text", "next")
        }
        self.coordinates: list[Tensor] = []
        self.pictures: list[tuple[int, ImageSpan, Picture]] = []

    def add(self, row: int, sequence: Sequence, pictures: Seq[Picture], key: str) -> None:
        """Put a document behind the others of `row`."""
        if len(pictures) != len(sequence.images):
            raise ValueError(
                f"{key} has {len(pictures)} pictures, its sequence {len(sequence.images)} spans"
            )
        first, end = self.used[row], self.used[row] + len(sequence)
        if end > self.length:
            raise ValueError(f"{key} does not fit: row {row} would have {end} positions")
        flat = row * self.length + first
        ids = np.asarray(sequence.ids, np.int64)
        labels = np.asarray(sequence.labels, np.int64)
        self.ids[row, first:end], self.labels[row, first:end] = ids, labels
        self.positions[row, first:end] = np.arange(len(ids))
        self.documents[row, first:end] = self.count[row]
        self.used[row], self.count[row] = end, self.count[row] + 1
        self.keys.append(key)
        asked = labels != IGNORE
        asked[:1] = False  # nothing stands before the first id
        for span, picture in zip(sequence.images, pictures, strict=True):
            asked[span.start : span.start + span.count] = False
            self._picture(flat, span, picture, key)
        targets = np.flatnonzero(asked)
        self.places["text"].append(flat + targets - 1)
        self.places["next"].append(ids[targets])

    def _picture(self, flat: int, span: ImageSpan, picture: Picture, key: str) -> None:
        _check_size(span, picture, key)
        steps = np.arange(span.count)
        self.places["image"].append(flat + span.start + steps)
        learned = np.asarray(span.learned, np.int64)
        self.places["condition"].append(flat + span.start - 1 + learned)
        self.places["target"].append(self.tokens + learned)
        self.coordinates.append(raster_coordinates(span.grid))
        self.pictures.append((self.tokens, span, picture))
        self.tokens += span.count

    def finish(self, token_size: int) -> SequenceBatch:
        """The batch without draws."""
        tokens, groups = self._tokens(token_size)
        places = {name: _joined(parts) for name, parts in self.places.items()}
        return SequenceBatch(
            ids=torch.from_numpy(self.ids),
            labels=torch.from_numpy(self.labels),
            image_tokens=tokens,
            coordinates=torch.cat([torch.empty(0, 2, dtype=torch.long), *self.coordinates]),
            condition_places=places["condition"],
            target_rows=places["target"],
            positions=torch.from_numpy(self.positions),
            documents=torch.from_numpy(self.documents),
            image_places=places["image"],
            text_places=places["text"],
            text_targets=places["next"],
            pictures=groups,
            keys=tuple(self.keys),
        )

    def _tokens(self, token_size: int) -> tuple[Tensor, tuple[PictureGroup, ...]]:
        """Image tokens that are there, and groups of the pictures that are not encoded yet."""
        tokens = torch.zeros(self.tokens, token_size)
        groups: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
        for first, span, picture in self.pictures:
            if isinstance(picture, Tensor):
                tokens[first : first + span.count] = picture
            else:
                groups.setdefault((*picture.shape, span.count), []).append((first, picture))
        made = []
        for (*_, count), members in groups.items():
            pixels = torch.from_numpy(np.stack([picture for _, picture in members]))
            firsts = torch.tensor([first for first, _ in members])
            made.append(PictureGroup(pixels, firsts[:, None] + torch.arange(count)))
        return tokens, tuple(made)


class _Draws:
    """Random numbers of every document, each from its own generators."""

    def __init__(self, repeats: int, noise: ContextNoise, size: int) -> None:
        self.repeats, self.context, self.size = repeats, noise, size
        self.u: list[Tensor] = []
        self.noise: list[Tensor] = []
        self.shift: list[Tensor] = []

    def add(self, seed: int, spans: Seq[ImageSpan]) -> None:
        """Draw for a document with these pictures.

        A token that is given has its draws all the same, so that two documents of one seed meet
        the same time and noise at the same place, whatever else of them is learned.
        """
        counts, learned, total = [], list[int](), 0
        for span in spans:
            learned += [total + place for place in span.learned]
            counts.append(len(span.learned))
            total += span.count if span.trained else 0
        count = len(learned)
        flow = torch.Generator().manual_seed(derived_seed(seed, "flow"))
        self.u.append(torch.randn(self.repeats, total, generator=flow)[:, learned])
        self.noise.append(torch.randn(self.repeats, total, self.size, generator=flow)[:, learned])
        if self.context:
            # A stream of its own, so that context noise leaves the flow's draws alone.
            context = torch.Generator().manual_seed(derived_seed(seed, "context"))
            level = torch.rand(count, 1, generator=context) * self.context.token_std
            if self.context.picture_prob:
                heavy = torch.rand(len(counts), 1, generator=context) < self.context.picture_prob
                hit = heavy.repeat_interleave(torch.tensor(counts, dtype=torch.long), 0)
                level = torch.where(hit, self.context.picture_std, level)
            self.shift.append(level * torch.randn(count, self.size, generator=context))

    def finish(self) -> dict[str, Any]:
        """Fields of `SequenceBatch`."""
        return {
            "u": torch.cat([torch.empty(self.repeats, 0), *self.u], dim=1),
            "noise": torch.cat([torch.empty(self.repeats, 0, self.size), *self.noise], dim=1),
            "context_shift": torch.cat([torch.empty(0, self.size), *self.shift])
            if self.context
            else None,
        }


def _joined(parts: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.empty(0, np.int64), *parts]))


def _check_size(span: ImageSpan, picture: Picture, key: str) -> None:
    """Refuse a picture that does not fill its span."""
    rows, columns = span.grid
    if isinstance(picture, Tensor):
        fits = len(picture) == span.count
    else:
        height, width, *colours = picture.shape
        side = height // rows
        fits = colours == [3] and (height, width) == (side * rows, side * columns) and side > 0
    if not fits:
        raise ValueError(
            f"{key}: a picture of shape {tuple(picture.shape)} does not fit {rows}x{columns} tokens"
        )
