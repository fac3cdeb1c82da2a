"""What a request for pictures gives back, and what it tells on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image
from torch import Tensor

from nextstep.engine import metadata as provenance
from nextstep.image.encode import encode, format_of
from nextstep.text.vocabulary import CheckedPrompt

if TYPE_CHECKING:
    from nextstep.engine.request import Request

Kind = Literal["admitted", "token", "row", "finished", "stopped", "failed", "cancelled", "late"]
ENDS = ("finished", "stopped", "failed", "cancelled", "late")


@dataclass(frozen=True)
class Event:
    """Something that happened to a picture.

    Attributes:
        kind: `token` and `row` come after every token, `row` when it closes a row; the last event
            of a picture is one of `ENDS`.
        ticket: which.
        tokens: [k, D] so far, fp32; none of a text.
        message: why it failed or is late, one sentence.
        ids: of a text, so far; also of one that is written before its picture.
        end: the id that ended a text; None at its limit.
        request: with the last event of a `Request`, as it was drawn.
        picture: with `finished`, and with `stopped` the rows that are done; only of a `Request`.
    """

    kind: Kind
    ticket: int
    tokens: Tensor
    message: str = ""
    ids: tuple[int, ...] = ()
    end: int | None = None
    request: Request | None = None
    picture: GeneratedPicture | None = None


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
