"""Random choices on the text side of a sample: captions, templates, order, what is left out.

Every function is pure: it draws from the `random.Random` it is given, which callers seed with
`derived_seed`, and through `random()` alone, the one method whose stream Python promises to keep.

A sample of text and pictures is a list of pieces, as `nextstep.text.sequence.split_tags` gives it:
stretches of text, and numbers of pictures. The shares follow the released training code; its
mistakes (dropping "both" only dropped the text, captions lost their capitals) are left out.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from nextstep.data.captions import texts_of
from nextstep.errors import NextStepError
from nextstep.text.sequence import IMAGE_TAG, split_tags

T = TypeVar("T")
Piece = str | int

CAPTION_PLACE = "{caption}"

# Only words that say nothing: "a painting of" and "a photo of" name a medium and stay.
_ENGLISH = re.compile(
    r"""^\s*(?:
        (?:the|this|that)\s+(?:given\s+|provided\s+)?(?:image|picture|photo|photograph|scene)\s+
        (?:(?:clearly|mainly|prominently|vividly)\s+)?
        (?:shows|depicts|displays|features|presents|portrays|captures|illustrates|contains|
           showcases|is\s+showing|is\s+of|is(?=\s+an?\s))\s+
      | (?:(?:the|this|an?)\s+)?(?:image|picture)\s+of\s+
      | in\s+(?:the|this)\s+(?:image|picture|photo|photograph|scene),?\s+
        (?:there\s+(?:is|are)\s+|(?:we|you|one)\s+can\s+see\s+)?
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_CHINESE = re.compile(
    r"""^\s*在?(?:这是|这|该|此|本)?(?:一?[张幅])?(?:图片|图像|照片|画面|图)[里中上内]?面?[,\uff0c]?
        (?:主要|清晰地)?
        (?:(?:展示|描绘|显示|呈现|展现|描述|刻画|拍摄|记录)(?:了|的是|着|出)?
           |(?:我们|你)?(?:可以|能)看到|是|有)[:\uff1a,\uff0c]?\s*""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Shares:
    """How often each augmentation of edits and interleaved samples is made, 0 to 1.

    Attributes:
        tags_last: edits whose pictures all stand after the instruction.
        drop_source_prob: edits of one source that lose the source, the text, or both, a third each.
        drop_one_source_prob: edits of two sources that lose one of them.
        drop_first_source_prob: how often that one is the first.
        images_only: interleaved samples that keep only their pictures.
    """

    tags_last: float = 0.1
    drop_source_prob: float = 0.2
    drop_one_source_prob: float = 0.3
    drop_first_source_prob: float = 0.3
    images_only: float = 0.1

    def __post_init__(self) -> None:
        for field in fields(self):
            check_share(field.name, getattr(self, field.name))

    @classmethod
    def none(cls) -> Shares:
        """No augmentation, as for validation."""
        return cls(0.0, 0.0, 0.0, 0.0, 0.0)


def check_share(name: str, value: float) -> None:
    """Refuse what is not a probability.

    Raises:
        NextStepError: naming it.
    """
    if not 0 <= value <= 1:
        raise NextStepError(f"{name} is a share between 0 and 1, not {value}")


def happens(rng: random.Random, share: float) -> bool:
    """One draw that comes true with probability `share`."""
    return rng.random() < share


def pick(rng: random.Random, choices: Seq[T], weights: Seq[float] | None = None) -> T:
    """One of the choices, by weight; equal weights without any."""
    weights = [1.0] * len(choices) if weights is None else weights
    point = rng.random() * sum(weights)
    for choice, weight in zip(choices, weights, strict=True):
        point -= weight
        if point < 0:
            return choice
    return next(c for c, w in zip(reversed(choices), reversed(weights), strict=True) if w)


def choose_caption(
    captions: Mapping[str, Any], weights: Mapping[str, float], rng: random.Random
) -> str | None:
    """One caption of a sample.

    Args:
        captions: key -> text, or a list or an object of texts, from which each is as likely.
        weights: key -> how often it is chosen among the keys that this sample has.
        rng: source of the draws.

    Returns:
        The text; of keys with "_all" in their name (alternatives written by a captioning model)
        without a boilerplate opener. None when no weighted key holds a text.
    """
    present = {
        key: [text for text in texts_of(captions.get(key)) if text.strip()]
        for key, weight in weights.items()
        if weight > 0
    }
    keys = [key for key, texts in present.items() if texts]
    if not keys:
        return None
    key = pick(rng, keys, [weights[key] for key in keys])
    text = pick(rng, present[key])
    return without_opener(text) if "_all" in key else text


def without_opener(caption: str) -> str:
    """The caption without "The image shows", "这张图片展示了" and their like at its start.

    A caption that is nothing but an opener stays as it is; letters keep their case.
    """
    rest = _CHINESE.sub("", _ENGLISH.sub("", caption, count=1), count=1)
    return rest if rest.strip() else caption


def upper_first(caption: str) -> str:
    """The first letter in upper case and every other one as it was."""
    return caption[:1].upper() + caption[1:]


def in_template(caption: str, templates: Seq[str], rng: random.Random) -> str:
    """The caption in the place {caption} of one template; as it is when there are none."""
    if not templates:
        return caption
    return pick(rng, templates).replace(CAPTION_PLACE, caption)


def check_templates(templates: Seq[str]) -> None:
    """Refuse a template without a place for the caption.

    Raises:
        NextStepError: quoting it.
    """
    for template in templates:
        if template.count(CAPTION_PLACE) != 1:
            raise NextStepError(f"template {template!r} must hold {CAPTION_PLACE} exactly once")


def edit_pieces(text: str, count: int) -> list[Piece]:
    """An edit's text and pictures in order; the picture that comes last is the target.

    Args:
        text: with a tag for every picture, or for every source (the target then comes last), or
            without tags (the sources then come first, the target last).
        count: pictures, the target among them.

    Raises:
        ValueError: when tags and pictures do not match one to one.
    """
    tags = len(IMAGE_TAG.findall(text))
    if tags == 0:
        return [*range(count - 1), *([text] if text else []), count - 1]
    if tags == count - 1:
        return [*split_tags(text, tags), tags]
    return split_tags(text, count)


def augment_edit(pieces: Seq[Piece], shares: Shares, rng: random.Random) -> list[Piece]:
    """Sometimes move the pictures behind the text, sometimes leave a condition out.

    Leaving out source, text, or both trains the branches that guidance needs; the target stays.
    """
    given = list(pieces)
    pieces, pictures = given, [piece for piece in given if isinstance(piece, int)]
    if happens(rng, shares.tags_last):
        pieces = [*(piece for piece in pieces if isinstance(piece, str)), *pictures]
    if len(pictures) == 2 and happens(rng, shares.drop_source_prob):
        gone = pick(rng, ("source", "text", "both"))
        if gone in ("source", "both"):
            pieces = [piece for piece in pieces if piece != pictures[0]]
        if gone in ("text", "both"):
            pieces = [piece for piece in pieces if isinstance(piece, int)]
    elif len(pictures) == 3 and happens(rng, shares.drop_one_source_prob):
        first = happens(rng, shares.drop_first_source_prob)
        pieces = [piece for piece in pieces if piece != pictures[0 if first else 1]]
    return given if pieces == given else joined(pieces)


def joined(pieces: Seq[Piece]) -> list[Piece]:
    """Neighbouring stretches of text as one, without the spaces that a tag left behind."""
    merged: list[Piece] = []
    for piece in pieces:
        last = merged[-1] if merged else ""
        if isinstance(piece, str) and isinstance(last, str):
            rest = piece.lstrip(" ") if last.endswith(" ") or not last else piece
            merged = [*merged[:-1], last + rest]
        else:
            merged.append(piece)
    return [piece for piece in merged if piece != ""]


def fitting_window(
    costs: Seq[int], is_picture: Seq[bool], room: int, rng: random.Random
) -> tuple[int, int]:
    """The pieces of an interleaved sample that fit: (first, last + 1), always neighbours.

    A picture keeps the text right before it. The window starts at a picture drawn by chance and
    grows to the right while there is room, then to the left. The first picture is always taken,
    so that the caller sees a sample that is too long whatever is left out.

    Args:
        costs: positions that each piece takes.
        is_picture: which pieces are pictures; at least one is.
        room: positions there are.
        rng: source of the draw.
    """
    if sum(costs) <= room:
        return 0, len(costs)
    chunks = _chunks(is_picture)
    sizes = [sum(costs[first:last]) for first, last in chunks]
    with_picture = [n for n, (first, last) in enumerate(chunks) if any(is_picture[first:last])]
    left = pick(rng, with_picture)
    right, used = left + 1, sizes[left]
    while right < len(chunks) and used + sizes[right] <= room:
        used += sizes[right]
        right += 1
    while left > 0 and used + sizes[left - 1] <= room:
        left -= 1
        used += sizes[left]
    return chunks[left][0], chunks[right - 1][1]


def _chunks(is_picture: Seq[bool]) -> list[tuple[int, int]]:
    """Each picture with the text before it; text after the last picture on its own."""
    chunks, first = [], 0
    for place, picture in enumerate(is_picture):
        if picture:
            chunks.append((first, place + 1))
            first = place + 1
    if first < len(is_picture):
        chunks.append((first, len(is_picture)))
    return chunks
