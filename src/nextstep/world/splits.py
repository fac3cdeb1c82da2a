"""What is kept out of training, as pure functions of words: training and tests cannot disagree.

Four kinds of sample are held out: some objects in some styles (`vocabulary.is_held_out`), some
pairs of objects that never share a picture, one phrasing of every list of phrasings, and some words
on signs (`signs.is_held_out_word`).
"""

from __future__ import annotations

import functools
import hashlib
import string

from nextstep.world.signs import is_held_out_word
from nextstep.world.vocabulary import is_held_out

__all__ = [
    "SPLITS", "Phrasings", "is_held_out", "is_held_out_pair", "is_held_out_word",
]  # fmt: skip

SPLITS: dict[str, str] = {
    "train": "what training sees",
    "seen": "the same kinds of scenes, drawn from other seeds",
    "held_out_styles": "an object in a style that it never had in training",
    "held_out_pairs": "two objects that never shared a picture in training",
    "held_out_phrasings": "ways of saying it that training never used",
    "held_out_words": "words on signs that training never showed",
}
"""Split -> what its samples are. All but `train` are for tests."""


def _share(text: str) -> float:
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


@functools.lru_cache(maxsize=65536)
def is_held_out_pair(first: str, second: str, share: float = 0.05) -> bool:
    """Whether these two objects (labels, in any order) are kept from sharing a training picture."""
    return first != second and _share("pair|" + "|".join(sorted((first, second)))) < share


class Phrasings:
    """Several ways of saying one object, one of which is kept out of training.

    Which one is a function of the texts alone: the one with the smallest hash, the first form
    excepted, which is the plainest and the one that examples use.

    Args:
        forms: `str.format` templates that all use the same fields, one a line.

    Raises:
        ValueError: when there are fewer than six, or their fields differ.
    """

    def __init__(self, forms: str) -> None:
        self.forms = tuple(line.strip() for line in forms.strip().splitlines())
        if len(set(self.forms)) < 6:
            raise ValueError(f"'{self.forms[0]}' needs five other ways of saying it")
        used = {tuple(sorted(_fields(form))) for form in self.forms}
        if len(used) > 1:
            raise ValueError(f"the phrasings of '{self.forms[0]}' differ in what they say")
        self.held_out = min(self.forms[1:], key=_share)
        self.trained = tuple(form for form in self.forms if form != self.held_out)


def _fields(form: str) -> set[str]:
    return {name.split(".")[0] for _, name, _, _ in string.Formatter().parse(form) if name}
