"""What passes between the parts of the data system.

A `Source` turns an index into a `Document`: a sequence of text and pictures with every random
choice made, but no picture decoded yet, so that mixing and packing can plan far ahead from lengths
alone. Pictures are decoded later, only on the rank that trains on them.

Legend: H W pixels, RGB, uint8; D values per token in rows*columns tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from nextstep.errors import NextStepError
from nextstep.text.sequence import Sequence

if TYPE_CHECKING:
    from torch import Tensor

KINDS = ("text", "image_text", "image_to_image", "interleaved")
"""Kinds of sources: plain text; one picture and its caption; sources, instruction and target;
text and pictures in any order."""


class SampleError(NextStepError):
    """One sample cannot be used; it is skipped, counted and named, never fatal by itself.

    Attributes:
        key: which sample, as "SET/SHARD/KEY".
        reason: a short stable word for counting, e.g. "corrupt picture".
        detail: what exactly was found, if more can be said.
    """

    def __init__(self, key: str, reason: str, detail: str = "") -> None:
        super().__init__(f"{key}: {reason}{f' ({detail})' if detail else ''}")
        self.key, self.reason, self.detail = key, reason, detail

    def __reduce__(self) -> tuple[type[SampleError], tuple[str, str, str]]:
        # Without it a worker process could not hand the error over.
        return type(self), (self.key, self.reason, self.detail)


@dataclass(frozen=True)
class Document:
    """A sample after all random choices and before any picture is decoded.

    Attributes:
        key: "SET/SHARD/KEY" (or what names the sample of a live source), for reports.
        sequence: ids, labels and image spans.
        images: which picture of the sample each span shows, in reading order.
        seed: 63-bit key of this use of the sample; every later draw (noise levels, noise) comes
            from it, so nothing depends on rank, row or worker.
        payload: what the source needs to decode the pictures later.
    """

    key: str
    sequence: Sequence
    images: tuple[int, ...] = ()
    seed: int = 0
    payload: Any = None

    def __len__(self) -> int:
        return len(self.sequence)

    @property
    def image_tokens(self) -> int:
        """Image tokens of all pictures."""
        return sum(span.count for span in self.sequence.images)


@dataclass(frozen=True)
class DocumentHandle:
    """A document that lies pickled where another process made it: what planning needs of it.

    Attributes:
        key: of the document.
        length: its positions.
        data: the document, pickled.
    """

    key: str
    length: int
    data: bytes

    def __len__(self) -> int:
        return self.length


class Source(Protocol):
    """One data set. Both methods are pure: the same arguments give the same answer anywhere."""

    name: str
    kind: str

    def __len__(self) -> int:
        """Samples of one epoch."""

    def document(self, index: int, seed: int) -> Document | None:
        """Sample `index` with its random choices drawn from `seed`.

        Returns:
            None when a filter leaves the sample out.

        Raises:
            SampleError: when it is broken.
        """

    def pictures(self, document: Document) -> Seq[np.ndarray | Tensor]:
        """The document's pictures in reading order, each of its span's grid size.

        Returns:
            Pixels as arrays, uint8 [H, W, 3]; or image tokens as tensors, [rows*columns, D].

        Raises:
            SampleError: when one cannot be decoded.
        """


def derived_seed(*parts: int | str) -> int:
    """63 bits from any parts; the same on every machine and in every process."""
    digest = hashlib.blake2b("\x1f".join(str(part) for part in parts).encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big") >> 1
