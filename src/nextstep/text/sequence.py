"""The sequence grammar: text and pictures in order, as ids, labels and image spans.

One picture is an image block

    <|image_area|> "rows*columns" <|begin_of_image|> placeholder * (rows*columns) <|end_of_image|>

and every template (text to image, editing, interleaved, caption after image, text only) is a list
of parts. Training builds the whole sequence; generation builds the very same one and cuts it after
the begin token of the picture that is asked for. So they cannot drift apart.

Label rules, as released: text, area tag, size and end-of-image are trained; begin-of-image and the
placeholders are not; the final end-of-text is trained after text and ignored right after a picture.
"""

from __future__ import annotations

import re
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from nextstep.text.reasoning import Region
from nextstep.text.tokenizer import TextTokenizer

IGNORE = -100
Grid = tuple[int, int]


@dataclass(frozen=True)
class Text:
    """A stretch of text; `trained` is whether its ids are predicted."""

    text: str
    trained: bool = True


@dataclass(frozen=True)
class Picture:
    """A picture of a grid of image tokens.

    Attributes:
        grid: (rows, columns).
        trained: whether flow matching learns it.
        region: the tokens that are learned, where the others are given; None for all.
    """

    grid: Grid
    trained: bool = True
    region: Region | None = None


Part = Text | Picture


@dataclass(frozen=True)
class ImageSpan:
    """Where a picture's tokens lie: ids[start : start + rows*columns] are placeholders."""

    start: int
    grid: Grid
    trained: bool
    region: Region | None = None

    @property
    def learned(self) -> list[int]:
        """Places of the tokens that flow matching learns, in raster order."""
        if not self.trained:
            return []
        return list(range(self.count)) if self.region is None else self.region.places(self.grid)

    @property
    def count(self) -> int:
        """Image tokens in the span."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class Sequence:
    """Ids with their labels and pictures, the one form that training and generation share.

    Attributes:
        ids: token ids; image places hold the placeholder.
        labels: the id where the language-model head is trained to predict it, else IGNORE.
        images: spans in reading order.
    """

    ids: list[int]
    labels: list[int]
    images: list[ImageSpan] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def prompt(self) -> Sequence:
        """The part up to and including the begin token of the last picture.

        Raises:
            ValueError: when there is no picture.
        """
        if not self.images:
            raise ValueError("a sequence without a picture has no picture to generate")
        end = self.images[-1].start
        return Sequence(self.ids[:end], self.labels[:end], self.images[:-1])


def build_sequence(parts: Seq[Part], tokenizer: TextTokenizer, end: bool = True) -> Sequence:
    """Lay out parts in order.

    Args:
        parts: texts and pictures.
        tokenizer: gives ids; texts are tokenised one by one.
        end: close with the end-of-text token.

    Returns:
        The sequence with labels by the rules above.
    """
    special = tokenizer.ids
    ids: list[int] = []
    labels: list[int] = []
    images: list[ImageSpan] = []

    def put(new: Seq[int], trained: bool) -> None:
        ids.extend(new)
        labels.extend(new if trained else [IGNORE] * len(new))

    for part in parts:
        if isinstance(part, Text):
            put(tokenizer.encode(part.text), part.trained)
            continue
        rows, columns = part.grid
        put([special.image_area, *tokenizer.encode(f"{rows}*{columns}")], True)
        put([special.begin_of_image], False)
        images.append(ImageSpan(len(ids), part.grid, part.trained, part.region))
        put([special.image_placeholder] * (rows * columns), False)
        put([special.end_of_image], True)
    if end:
        after_picture = bool(parts) and isinstance(parts[-1], Picture)
        put([special.eos], not after_picture)
    return Sequence(ids, labels, images)


def text_to_image(caption: str, grid: Grid) -> list[Part]:
    """Caption, picture."""
    return [Text(caption), Picture(grid)]


def caption_after_image(caption: str, grid: Grid) -> list[Part]:
    """Picture, caption: captioning, and the picture without text for guidance."""
    return [Picture(grid), Text(caption)]


def text_only(text: str) -> list[Part]:
    """Text."""
    return [Text(text)]


def with_reasoning(instruction: str, result: str) -> str:
    """An instruction with what the result shows on a line of its own behind it.

    A model that was trained so can write the second line itself before it draws: it says what it
    recognises and what becomes of it, and then draws what it said.
    """
    return f"{instruction}\n{result}"


def editing(
    instruction: str, sources: Seq[Grid], target: Grid, region: Region | None = None
) -> list[Part]:
    """Sources in the places of their tags, then the target, which alone is trained.

    Args:
        instruction: text with `<image>` or `<image_0>`, `<image_1>` ... where the sources stand;
            without any tag the sources come first.
        sources: grids of the source pictures in order.
        target: grid of the edited picture.
        region: its tokens that are sampled and learned, where the others are the source's.

    Raises:
        ValueError: when tags and sources do not match one to one.
    """
    if not IMAGE_TAG.search(instruction):
        instruction = "<image>" * len(sources) + instruction
    return [*interleaved(instruction, sources, trained=False), Picture(target, region=region)]


IMAGE_TAG = re.compile(r"<image(?:_(\d+))?>")


def split_tags(text: str, count: int) -> list[str | int]:
    """Text cut at its picture tags: stretches of text, and numbers of pictures between them.

    Args:
        text: with tags `<image>` (next in order) or `<image_n>` (that picture).
        count: pictures there are.

    Raises:
        ValueError: when tags and pictures do not match one to one.
    """
    pieces = IMAGE_TAG.split(text)
    tags = pieces[1::2]
    order = [place if number is None else int(number) for place, number in enumerate(tags)]
    if sorted(order) != list(range(count)):
        named = ", ".join(f"<image_{number}>" for number in order) or "no picture"
        raise ValueError(
            f"the text names {named}, and {count} picture{'s were' if count != 1 else ' was'} "
            "given; every picture needs one tag <image>, or <image_n> with n from 0"
        )
    mixed = [order[place // 2] if place % 2 else piece for place, piece in enumerate(pieces)]
    return [piece for piece in mixed if piece != ""]


def interleaved(text: str, grids: Seq[Grid], trained: bool = True) -> list[Part]:
    """Text whose tags `<image>` (next in order) or `<image_n>` (that picture) become pictures.

    Raises:
        ValueError: when tags and pictures do not match one to one.
    """
    return [
        Text(piece) if isinstance(piece, str) else Picture(grids[piece], trained)
        for piece in split_tags(text, len(grids))
    ]


def picture_order(text: str, count: int) -> list[int]:
    """In which order `count` pictures are read when `text` places them with tags."""
    tags = [match.group(1) for match in IMAGE_TAG.finditer(text)]
    if not tags:
        return list(range(count))
    return [place if number is None else int(number) for place, number in enumerate(tags)]


def without_text(parts: Seq[Part], negative: str) -> list[Part]:
    """The image-only branch of a request: its pictures in order, then the negative text.

    The last part is the picture to be generated; it stays last.
    """
    sources = [part for part in parts[:-1] if isinstance(part, Picture)]
    return [*sources, *([Text(negative)] if negative else []), parts[-1]]


def without_text_and_pictures(parts: Seq[Part], negative: str) -> list[Part]:
    """The unconditional branch of a request: the negative text, then the picture."""
    return [*([Text(negative)] if negative else []), parts[-1]]
