"""Whether an answer in text is right: rules, not string equality, since there are many ways to say
the same object.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence

from nextstep.world.colours import COLOUR_WORDS
from nextstep.world.lexicon import NUMBERS, world_objects
from nextstep.world.spec import REGIONS
from nextstep.world.vocabulary import COLOURS, STYLES

_WAYS = {
    "left": ("to the left of it", "on the left of it", "left of it", "to its left", "on its left",
             "on the left", "to the left", "on the left side", "left"),
    "right": ("to the right of it", "on the right of it", "right of it", "to its right",
              "on its right", "on the right", "to the right", "on the right side", "right"),
    "above": ("above it", "over it", "above", "over", "on top of it", "higher up"),
    "below": ("below it", "under it", "underneath it", "below", "under", "underneath",
              "lower down"),
}  # fmt: skip
_COLOUR = f"(?:{'|'.join(COLOURS)})"
_BACKGROUND = re.compile(
    rf"\b{_COLOUR}( to {_COLOUR})? background\b|\bbackground( is)? {_COLOUR}( to {_COLOUR})?\b"
)
_PLACE = re.compile(
    r"\b(?:over |up |down )?(?:to|into|in|at|on) the "
    rf"({'|'.join(sorted(REGIONS, key=len, reverse=True))})"
    r"(?: corner| side| edge| part| middle| in the middle)?\b"
)
_OPENING = re.compile(
    r"^(it|that|this|there|the picture|the sign|the answer|the style) "
    r"(is|are|was|were|shows|says|reads)( drawn in)? "
)


def is_right(task: str, said: str, answers: Sequence[str]) -> bool:
    """Whether what was said is one of the accepted answers, in its own words.

    Args:
        task: a task of reading.
        said: by the model.
        answers: accepted ones, at least one.
    """
    rule = _RULES.get(task, plain)
    told = rule(said)
    return told is not None and any(told == rule(answer) for answer in answers)


def plain(text: str) -> str | None:
    """Lower case without punctuation or opening words; None for nothing."""
    words = " ".join(re.sub(r"[^\w\s-]", " ", text.lower()).split())
    return _OPENING.sub("", words) or None


def number(text: str) -> int | None:
    """The one number that is named in words or digits; None for none or several."""
    words = (plain(text) or "").replace("none", "no").replace("zero", "no").split()
    found = {NUMBERS.index(word) for word in words if word in NUMBERS}
    found |= {int(word) for word in words if word.isdecimal()}
    return found.pop() if len(found) == 1 else None


def colour(text: str) -> str | None:
    """The one colour that is named."""
    return _only(text, {*COLOUR_WORDS, *COLOURS})


def style(text: str) -> str | None:
    """The one style that is named."""
    return _only(text, set(STYLES))


def yes_no(text: str) -> str | None:
    """The yes or no that an answer begins with."""
    first = (plain(text) or "").split(" ")[0]
    return first if first in ("yes", "no") else None


def letters(text: str) -> str | None:
    """What stands in quotes, else the only words in capitals, else all of it; letters alone."""
    quoted = re.search(r"[\"“']([^\"”']+)[\"”']", text)
    capitals = re.findall(r"\b[A-Z]+\b", text)
    told = quoted[1] if quoted else capitals[0] if len(capitals) == 1 else text
    return "".join(letter for letter in told.upper() if letter.isalpha()) or None


def place(text: str) -> str | None:
    """Region or direction, each in one word of its own."""
    told = plain(text) or ""
    # A direction is said like a side of the picture; nobody is asked for both at once.
    ways = [way for way, forms in _WAYS.items() if told in forms]
    return ways[0] if ways else _in_one_way(told).strip("<>") or None


def change(text: str) -> str | None:
    """What changed, places said in one way."""
    return _in_one_way(plain(text) or "") or None


def caption(text: str) -> tuple[Counter[str], str | None, str] | None:
    """Objects with their numbers, style and background of a caption."""
    told = plain(text) or ""
    style_word = next((s for s in STYLES if re.search(rf"\b{s} style\b", told)), None)
    rest = re.sub(r"\b\w+ style\b", " ", told)
    backing = _BACKGROUND.search(rest)
    if backing:
        rest = rest[: backing.start()] + " " + rest[backing.end() :]
    found: Counter[str] = Counter()
    for said in _nouns().finditer(rest):
        count = said["count"]
        how_many = NUMBERS.index(count) if count in NUMBERS else 1
        found[_by_noun()[said["noun"]]] += int(count) if count.isdecimal() else how_many
    colours = " to ".join(word for word in backing[0].split() if word in COLOURS) if backing else ""
    return (found, style_word, colours) if found else None


@functools.cache
def _by_noun() -> dict[str, str]:
    """How an object is called after its number -> label."""
    nouns: dict[str, str] = {}
    for obj in world_objects().values():
        for form in (obj.plural, obj.one.split(" ", 1)[1], obj.word):
            nouns.setdefault(plain(form) or form, obj.label)
    return nouns


@functools.cache
def _nouns() -> re.Pattern[str]:
    longest_first = sorted(_by_noun(), key=len, reverse=True)
    counts = "|".join((*NUMBERS, "a", "an", r"\d+"))
    nouns = "|".join(map(re.escape, longest_first))
    return re.compile(rf"\b(?P<count>{counts}) (?P<noun>{nouns})\b")


def _in_one_way(told: str) -> str:
    """The text with every place as its region in brackets: "to the upper left corner" and "at the
    top left" are both <top left>.
    """
    for word, usual in (("upper", "top"), ("lower", "bottom"), ("cent(re|er)", "middle")):
        told = re.sub(rf"\b{word}\b", usual, told)
    return _PLACE.sub(r"<\1>", told)


def _only(text: str, known: set[str]) -> str | None:
    found = {word for word in (plain(text) or "").split() if word in known}
    return found.pop() if len(found) == 1 else None


_RULES = {
    "read_caption": caption, "read_count": number, "read_where": place, "read_colour": colour,
    "read_change": change, "read_word": letters, "read_style": style, "read_yes_no": yes_no,
}  # fmt: skip
