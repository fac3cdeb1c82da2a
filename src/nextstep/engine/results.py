"""What a request for pictures gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from nextstep.engine import metadata as provenance
from nextstep.image.encode import encode, format_of


@dataclass(frozen=True)
class Progress:
    """Told after every image token.

    Attributes:
        tokens: done so far for every picture of this batch, and `total` of them.
        batch: pictures in this batch.
        pictures: how many pictures of the request are finished.
        preview: call it for the batch as it looks now (undrawn places are grey).
    """

    tokens: int
    total: int
    batch: int
    pictures: int
    preview: Callable[[], list[Image.Image]]


@dataclass(frozen=True)
class GeneratedPicture:
    """A picture with everything needed to make it again."""

    image: Image.Image
    settings: dict[str, Any]

    def png(self) -> bytes:
        """PNG contents with the settings as text chunks."""
        return encode(self.image, "PNG", provenance.as_texts(self.settings))

    def save(self, path: str | Path) -> None:
        """Write a PNG, JPEG or WebP by the ending, its settings inside; whole or not at all.

        Raises:
            NextStepError: for another ending, or a folder that is missing or may not be written.
        """
        path = Path(path)
        texts = provenance.as_texts(self.settings)
        provenance.write_file(path, encode(self.image, format_of(path), texts))


OnPicture = Callable[[int, GeneratedPicture], None]
"""Told the place and a picture as soon as it is done."""
