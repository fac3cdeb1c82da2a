"""How well a picture's words agree with the words that were asked for: OneIG's text rule.

ED is the edit distance, CR whether the strings are equal, WAC the share of the asked words (for
Chinese: characters) that are there. Source: the scorer of OneIG-Bench, scripts/text.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass


def edit_distance(one: str, other: str) -> int:
    """Insertions, deletions and replacements that make one text of another (Levenshtein)."""
    row = list(range(len(other) + 1))
    for place, letter in enumerate(one, 1):
        diagonal, row[0] = row[0], place
        for column, mate in enumerate(other, 1):
            least = min(row[column] + 1, row[column - 1] + 1, diagonal + (letter != mate))
            diagonal, row[column] = row[column], least
    return row[-1]


CHINESE = re.compile("[\u4e00-\u9fff]")
KEPT = "\u4e00-\u9fa5a-zA-Z0-9àâäéèêëîïôöùûüçÀÂÄÉÈÊËÎÏÔÖÙÛÜÇ"
OTHER = re.compile(rf"[^{KEPT}\s]")
NOTHING = ("addCriterion", "No text recognized.", "No text recognized")
"""What a reader says instead of text."""


@dataclass(frozen=True)
class Match:
    """One reading against the asked text.

    Attributes:
        distance: edit distance of the two, tidied.
        exact: whether they are equal.
        found, asked: words that are there, and words that were asked for.
    """

    distance: int
    exact: bool
    found: int
    asked: int


def tidied(text: str) -> str:
    """Letters, digits and single spaces; Chinese text without any space."""
    kept = OTHER.sub("", text)
    if CHINESE.search(kept):
        return re.sub(r"\s+", "", kept)
    return re.sub(r"\s+", " ", kept).strip()


def without_phrases(answer: str) -> str:
    """An answer without the phrases that readers say where there is no text."""
    for phrase in NOTHING:
        answer = answer.replace(phrase, "")
    return answer


def match(read: str, asked: str) -> Match:
    """Compare what was read with what was asked for."""
    mine, wanted = tidied(without_phrases(read)), tidied(asked)
    split = list if CHINESE.search(wanted) else str.split
    words, others = Counter(split(wanted)), Counter(split(mine))
    distance = edit_distance(mine, wanted)
    return Match(distance, distance == 0, (words & others).total(), words.total())
