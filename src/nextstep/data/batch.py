"""Sequences with their image tokens, padded into one batch.

Legend: B rows, S positions, M image tokens of all rows in reading order, T trained ones of them.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from nextstep.image.latents import raster_coordinates
from nextstep.text.sequence import IGNORE, Sequence


@dataclass(frozen=True)
class SequenceBatch:
    """What one training step reads.

    Attributes:
        ids: [B, S], padded on the right, which causal attention never looks at.
        labels: [B, S], IGNORE where nothing is asked.
        image_tokens: [M, D].
        coordinates: [M, 2] row and column of every image token in its picture.
        condition_places: [T] flat indices b*S + s of the states that predict the trained tokens.
        target_rows: [T] indices of those tokens in `image_tokens`.
    """

    ids: Tensor
    labels: Tensor
    image_tokens: Tensor
    coordinates: Tensor
    condition_places: Tensor
    target_rows: Tensor


def collate(
    sequences: Seq[Sequence], image_tokens: Seq[Tensor], pad_id: int, multiple: int = 1
) -> SequenceBatch:
    """Pad sequences to the longest one.

    Args:
        sequences: B sequences.
        image_tokens: one [rows*columns, D] tensor per picture, in reading order over all rows.
        pad_id: id of the padding token.
        multiple: S is rounded up to one of it, so that compiled code meets few shapes.

    Raises:
        ValueError: when the pictures do not fit the spans.
    """
    spans = [(row, span) for row, s in enumerate(sequences) for span in s.images]
    counts = [len(tokens) for tokens in image_tokens]
    if counts != [span.count for _, span in spans]:
        raise ValueError(
            f"pictures of {counts} tokens do not fit spans of {[s.count for _, s in spans]}"
        )
    S = -(-max(len(s) for s in sequences) // multiple) * multiple
    ids = torch.full((len(sequences), S), pad_id)
    labels = torch.full((len(sequences), S), IGNORE)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence.ids)
        labels[row, : len(sequence)] = torch.tensor(sequence.labels)
    none = torch.empty(0, dtype=torch.long)
    places, targets, first = [none], [none], 0
    for row, span in spans:
        if span.trained:
            start = row * S + span.start - 1
            places.append(torch.arange(start, start + span.count))
            targets.append(torch.arange(first, first + span.count))
        first += span.count
    return SequenceBatch(
        ids,
        labels,
        torch.cat(list(image_tokens)) if counts else torch.empty(0, 0),
        torch.cat([none.view(0, 2), *(raster_coordinates(span.grid) for _, span in spans)]),
        torch.cat(places),
        torch.cat(targets),
    )
