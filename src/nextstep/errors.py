"""Errors that are somebody's input, told in one sentence; commands end with status 2 on them."""

from __future__ import annotations

import re


class NextStepError(ValueError):
    """Bad input: the message says what is wrong and how to mend it."""


class ModelFileError(NextStepError):
    """A model folder that is missing, damaged or does not fit its config."""


_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def printable(text: str) -> str:
    """A foreign text as it may be shown on a terminal.

    Control characters, which could move the cursor or change the title, marks that turn the
    direction of writing, and halves of surrogate pairs are written as escapes; line ends and tabs
    stay.
    """
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
