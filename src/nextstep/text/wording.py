"""Words of prompts: taken apart, compared, looked up."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping

Colour = tuple[int, int, int]

SYMBOL = "So"
"""Unicode's category of emoji."""
SELECTOR = "\ufe0f"
"""Stands behind a character that is to be shown as an emoji."""
QUOTED = re.compile(r'("[^"]*")')
WORD = re.compile(r"[^\W\d_][\w'-]*|\d+\w+")


def words_in(texts: Iterable[str]) -> frozenset[str]:
    """Every word of the texts as it is written there; words on signs are left out."""
    found: set[str] = set()
    for text in texts:
        found.update(WORD.findall(QUOTED.sub(" ", text)))
    return frozenset(found)


def taken(text: str, before: str, known: Mapping[str, str], noun: str) -> tuple[str, str]:
    """The text without "X NOUN", and X: a known word if there is one, else the word before."""
    longest = sorted(map(re.escape, known), key=len, reverse=True)
    for words in ("|".join(longest), r"[^\W_][\w-]*"):
        pattern = rf"{before}(?<![\w-])({words})\s+(?:{noun})(?![\w-])"
        if words and (found := re.search(pattern, text)):
            return f"{text[: found.start()]} {text[found.end() :]}", found[1]
    return text, ""


def singulars(text: str) -> list[str]:
    """What a regular plural may be the plural of."""
    endings = (("ies", "y"), ("ves", "f"), ("ves", "fe"), ("es", ""), ("s", ""))
    return [text.removesuffix(many) + one for many, one in endings if text.endswith(many)]


def join_words(phrases: list[str]) -> str:
    """Phrases as a list in words: "a cat, a dog and a fox"."""
    if len(phrases) < 2:
        return "".join(phrases)
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def by_synonym(listed: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Synonym -> name; of two names with one synonym the first has it."""
    found: dict[str, str] = {}
    for name, synonyms in listed.items():
        for synonym in synonyms:
            found.setdefault(synonym.lower(), name)
    return found


def is_symbol(text: str) -> bool:
    """Whether a text is one character that is a sign, such as an emoji, and no letter."""
    return len(text) == 1 and unicodedata.category(text) == SYMBOL


def emoji_words(listed: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Emoji among the synonyms -> the name, or what is said instead with fewer of its words."""
    found: dict[str, str] = {}
    for name, others in listed.items():
        everyday, *_ = (*others, name)
        shorter = WORD.findall(everyday) and {*WORD.findall(everyday)} < {*WORD.findall(name)}
        word = everyday if shorter else name
        found |= {one: word for one in others if is_symbol(one)}
    return found


def emoji_spelled(text: str, emoji: Mapping[str, str]) -> str:
    """A text whose emoji are put into words; those that stand together become a list."""
    if not emoji or not any(map(is_symbol, text)):
        return text
    one = f"(?:{'|'.join(map(re.escape, emoji))}){SELECTOR}?"

    def spelled(found: re.Match[str]) -> str:
        words = [emoji[sign] for sign in found[0] if sign in emoji]
        if len(words) > 1:
            words = [f"{'an' if word[0] in 'aeiou' else 'a'} {word}" for word in words]
        return f" {join_words(words)} "

    runs = re.compile(rf"{one}(?:\s*{one})*")
    pieces = QUOTED.split(text)
    plain = [piece if piece[:1] == '"' else runs.sub(spelled, piece) for piece in pieces]
    return re.sub(r"\s+([,.;:!?])", r"\1", " ".join("".join(plain).split()))


def apart(one: Colour, other: Iterable[int]) -> float:
    """How unlike two colours look: a weighted distance in sRGB."""
    (red, green, blue), (r, g, b) = one, other
    mean = (red + r) / 2
    weights = 2 + mean / 256, 4.0, 2 + (255 - mean) / 256
    return sum(w * d * d for w, d in zip(weights, (red - r, green - g, blue - b), strict=True))
