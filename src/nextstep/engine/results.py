"""What a request for pictures gives back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from nextstep.engine import metadata as provenance
from nextstep.image.encode import encode, format_of
from nextstep.text.vocabulary import CheckedPrompt


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


def noted(
    made: Sequence[GeneratedPicture], worded: Sequence[CheckedPrompt]
) -> list[GeneratedPicture]:
    """Pictures, as many of each prompt in order, with what was changed in it recorded."""
    each = max(1, len(made) // max(1, len(worded)))
    return [
        replace(picture, settings=picture.settings | worded[place // each].record())
        for place, picture in enumerate(made)
    ]
