"""The JSON record of a sample: its captions, its numbers, and whether its tags fit its pictures.

A record is a flat object: `caption` (or `text` in text sets), optionally `caption_all` (a list or
an object of alternatives), any further captions, numbers to filter by, and `metadata`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from nextstep.data.documents import SampleError
from nextstep.text.sequence import IMAGE_TAG, picture_order

CORRUPT_CAPTION = "corrupt caption"
MISSING_CAPTION = "missing caption"
MISSING_PICTURE = "missing picture"
WRONG_TAGS = "wrong tag count"

NOT_CAPTIONS = ("metadata",)
TAGGED_KINDS = ("image_to_image", "interleaved")
"""Kinds whose captions place every picture with a tag."""


def parse_record(data: bytes, key: str) -> dict[str, Any]:
    """The record in the bytes of a KEY.json member.

    Raises:
        SampleError: "corrupt caption" when they hold no JSON object.
    """
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SampleError(key, CORRUPT_CAPTION, f"not JSON: {error}") from None
    if not isinstance(record, dict):
        raise SampleError(key, CORRUPT_CAPTION, "not a JSON object")
    return record


def captions_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The texts of a record by field: a string, or a list or object of alternatives."""
    return {
        name: value
        for name, value in record.items()
        if name not in NOT_CAPTIONS and any(text.strip() for text in texts_of(value))
    }


def numbers_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among a record's fields, for filters."""
    numbers: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:
                continue
            if math.isfinite(number):
                numbers[name] = number
    return numbers


def texts_of(value: Any) -> Iterator[str]:
    """The strings of one caption field: itself, or its alternatives."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            if isinstance(item, str):
                yield item


def tags_fit(text: str, pictures: int) -> bool:
    """Whether the tags of `text` place each of the pictures exactly once."""
    if not IMAGE_TAG.search(text):
        return pictures == 0
    return sorted(picture_order(text, pictures)) == list(range(pictures))


def with_tags(text: str, pictures: int) -> str:
    """An instruction in the released form, sources before it and the target after it.

    A text that has a tag already, and one without pictures, stays as it is.
    """
    if pictures == 0 or IMAGE_TAG.search(text):
        return text
    sources = "".join(f"<image_{i}>" for i in range(pictures - 1))
    return f"{sources}{text}<image_{pictures - 1}>"


def check_captions(kind: str, captions: Mapping[str, Any], pictures: int, key: str) -> None:
    """Make sure that a sample has captions and that their tags fit its pictures.

    `caption` must place every picture of an edit or an interleaved sample; the alternatives in
    other fields may have no tags, but not wrong ones.

    Args:
        kind: one of `documents.KINDS`.
        captions: from `captions_of`.
        pictures: how many the sample has.
        key: names the sample in errors.

    Raises:
        SampleError: "missing caption", "missing picture" or "wrong tag count".
    """
    if not captions:
        raise SampleError(key, MISSING_CAPTION)
    if kind == "text":
        return
    if kind == "image_text" and pictures == 0:
        raise SampleError(key, MISSING_PICTURE)
    if kind == "image_text" and pictures > 1:
        raise SampleError(key, WRONG_TAGS, f"{pictures} pictures where one belongs to a caption")
    if kind == "image_to_image" and pictures < 2:
        raise SampleError(key, MISSING_PICTURE, "an edit needs a source and a target")
    for name, value in captions.items():
        strict = name == "caption" and kind in TAGGED_KINDS
        for text in texts_of(value):
            tags = len(IMAGE_TAG.findall(text))
            if (tags or strict) and not tags_fit(text, pictures):
                raise SampleError(key, WRONG_TAGS, f"{tags} tags for {pictures} pictures")
