"""Plain text: what objects are, how they compare, what follows; glosses; what stood before."""

from __future__ import annotations

import functools
from pathlib import Path

from nextstep.errors import NextStepError
from nextstep.world.colours import TINTS
from nextstep.world.draw import Draw
from nextstep.world.drawings import colour_of
from nextstep.world.examples import Example, ImagePart, TextPart
from nextstep.world.lexicon import NUMBERS, Word, WorldObject
from nextstep.world.spec import REGIONS, RELATIONS
from nextstep.world.splits import Phrasings
from nextstep.world.tasks.story_events import NAMES
from nextstep.world.vocabulary import COLOURS, STYLES

KIND_WORDS: dict[str, str] = {
    "creature": "creature", "person": "person", "animal": "animal",
    "bird": "bird", "sea animal": "sea animal", "insect": "insect",
    "small animal": "small animal", "plant": "plant", "fruit": "fruit", "vegetable": "vegetable",
    "food": "kind of food", "drink": "thing to drink from", "place": "place to go to",
    "vehicle": "vehicle", "sky": "thing in the sky", "toy": "thing to play with",
    "music": "thing that makes sound", "clothes": "thing to wear", "tool": "tool",
}  # fmt: skip
"""Kind of an object -> what an object of that kind is called; other kinds have no good name."""

IS_A = Phrasings("""
    {a} is {kind.a}.
    {a}: {kind.a}.
    What is {a}? It is {kind.a}.
    We call {a} {kind.a}.
    If you see {a}, you see {kind.a}.
    Everybody knows that {a} is {kind.a}.
""")
BOTH_ARE = Phrasings("""
    {a} and {b} are of one kind: each is {kind.a}.
    {a} is {kind.a}, and so is {b}.
    Both {a} and {b} can be called {kind.a}.
    Like {a}, {b} is {kind.a}.
    {a} is {kind.a} just as {b} is.
    {kind.a}: that can be {a}, or {b}.
""")
NOT_A = Phrasings("""
    {a} is {kind.a}, not {other.a}.
    {a} is not {other.a} but {kind.a}.
    Is {a} {other.a}? No, it is {kind.a}.
    Do not take {a} for {other.a}: it is {kind.a}.
    {a} is no {other}, it is {kind.a}.
    Unlike {other.a}, {a} is {kind.a}.
""")
SUM = Phrasings("""
    {m} and {n} make {total}.
    {m} plus {n} is {total}.
    Put {n} to {m} and you have {total}.
    If there are {m} and {n} come, there are {total}.
    How many are {m} and {n}? {total}.
    With {m} here and {n} there, we count {total}.
""")
REVERSE = Phrasings("""
    If {a} is {kind} {b}, then {b} is {back} {a}.
    {a} is {kind} {b}, so {b} is {back} {a}.
    When {a} stands {kind} {b}, we find {b} {back} {a}.
    {b} is {back} {a} because {a} is {kind} {b}.
    {kind} and {back} are opposites: {a} is {kind} {b}, {b} is {back} {a}.
    Seen from {a}, {b} is {back} it; seen from {b}, {a} is {kind} it.
""")
COLOUR = Phrasings("""
    {a} is mostly {colour}.
    {a} is often drawn in {colour}.
    What colour is {a}? Mostly {colour}.
    Think of {a} and you think of {colour}.
    {colour} is the colour of {a}.
    To draw {a} you need {colour}.
""")
_NEAR = (
    ("animal", "bird", "sea animal", "insect", "small animal", "creature", "person"),
    ("plant", "fruit", "vegetable", "food", "drink"),
    ("toy", "music", "tool", "clothes"),
    ("vehicle", "sky"),
)
"""Kinds of which one may be taken for another, so that "is not" would be too bold."""

_OPPOSITE = dict(zip(RELATIONS, ("right of", "left of", "below", "above"), strict=True))


def plain(draw: Draw, glosses: Path | None = None) -> Example:
    """One sentence about objects of the world, or half of the time a gloss where there are any."""
    if glosses is not None and draw.chance(0.5):
        return Example("plain", (TextPart(draw.one_of(read_glosses(glosses))),))
    make = draw.one_of((_is_a, _is_a, _both_are, _not_a, _sum, _reverse, _colour))
    text = make(draw)
    return Example("plain", (TextPart(text[0].upper() + text[1:]),))


def _kind(obj: WorldObject) -> Word:
    return Word(KIND_WORDS[obj.kind])


def _named(draw: Draw) -> WorldObject:
    """An object whose kind has a name."""
    return draw.one_of([obj for obj in draw.objects if obj.kind in KIND_WORDS])


def _is_a(draw: Draw) -> str:
    obj = _named(draw)
    return draw.say(IS_A, a=obj.a(), kind=_kind(obj))


def _both_are(draw: Draw) -> str:
    first = _named(draw)
    mates = [t for t in draw.objects if t.kind == first.kind and t != first]
    second = draw.one_of(mates) if mates else first
    return draw.say(BOTH_ARE, a=first.a(), b=second.a(), kind=_kind(first))


def _not_a(draw: Draw) -> str:
    obj = _named(draw)
    near = next((group for group in _NEAR if obj.kind in group), ())
    other = draw.one_of([kind for kind in KIND_WORDS if kind != obj.kind and kind not in near])
    return draw.say(NOT_A, a=obj.a(), kind=_kind(obj), other=Word(KIND_WORDS[other]))


def _sum(draw: Draw) -> str:
    obj = draw.one_of(draw.objects)
    m, n = draw.rng.randint(2, 5), draw.rng.randint(1, 4)
    words = {"m": obj.count(m), "n": NUMBERS[n], "total": obj.count(m + n)}
    return draw.say(SUM, **words)


def _reverse(draw: Draw) -> str:
    a, b = draw.rng.sample([t for t in draw.objects if not t.is_plural_word], 2)
    kind = draw.one_of(RELATIONS)
    return draw.say(REVERSE, a=a.the(), b=b.the(), kind=kind, back=_OPPOSITE[kind])


def _colour(draw: Draw) -> str:
    while True:
        obj = draw.one_of(draw.objects)
        colour = common_colour(obj.label)
        if colour is not None:
            return draw.say(COLOUR, a=obj.a(), colour=colour)


@functools.cache
def common_colour(label: str) -> str | None:
    """The colour that an object has in at least three of the four coloured styles."""
    found = [colour_of(label, style) for style in STYLES if style != "mono"]
    best = max(set(found), key=lambda colour: (found.count(colour), colour or ""))
    return best if best is not None and found.count(best) >= 3 else None


@functools.cache
def read_glosses(path: Path) -> tuple[str, ...]:
    """Lines of text for training: of a plain text file, or of WordNet's `data.*` files.

    Args:
        path: a text file with one entry a line, or a folder with WordNet's data files, whose
            glosses become "WORD: GLOSS.".

    Raises:
        NextStepError: when nothing can be read there.
    """
    try:
        if path.is_dir():
            lines = [line for file in sorted(path.glob("data.*")) for line in _wordnet(file)]
        else:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise NextStepError(f"{path} cannot be read as text: {error}") from None
    kept = tuple(line for line in lines if line)
    if not kept:
        raise NextStepError(f"{path} has no glosses; give a text file or WordNet's folder")
    return kept


def _wordnet(file: Path) -> list[str]:
    found = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        fields, bar, gloss = line.partition("|")
        # The licence at the top is indented; a synset begins with its offset.
        if bar and not line.startswith(" "):
            name = fields.split()[4].replace("_", " ").split("(")[0]
            # Examples in quotes come after the definition.
            definition = gloss.strip().split('; "')[0]
            found.append(f"{name}: {definition}.")
    return found


ASKED = 12
"""Pairs that are asked for in one sample; the same ones come back until then."""


def lookup(draw: Draw) -> Example:
    """Two to six pairs on a line, and behind it pairs of which the second word is learned.

    Edits, questions and next states need it: the instruction names an object, and the line about
    the picture says where that one is. Scenes ask for it once a sample, which teaches it slowly.
    One word in each round does not stand on the line and has "none" behind it. A third of the
    lines have names of characters in the first or the second place.
    """
    words = draw.rng.sample([thing.word for thing in draw.objects], draw.rng.randint(2, 6))
    values = [*REGIONS, *TINTS, *NUMBERS[1:5]]
    pairs = [(word, draw.one_of(values)) for word in words]
    named = draw.one_of(("", "", "", "", "first", "second"))
    if named:
        names = draw.rng.sample(NAMES, len(words))
        met = list(zip(names, words, strict=True))
        pairs = met if named == "first" else [(word, name) for name, word in met]
    line = ", ".join(f"{word} {value}" for word, value in pairs)
    parts = [TextPart(f"{line}\n", trained=False)]
    between = ""
    for _ in range(-(-ASKED // (len(pairs) + 1))):
        known = NAMES if named == "first" else [thing.word for thing in draw.objects]
        absent = draw.one_of([one for one in known if one not in dict(pairs)])
        asked = [*pairs, (absent, "none")]
        for word, value in draw.rng.sample(asked, len(asked)):
            parts += [TextPart(f"{between}{word}", trained=False), TextPart(f" {value}")]
            between = ", "
    return Example("lookup", tuple(parts))


def compare(draw: Draw) -> Example:
    """Two lines of pairs that differ in one, and behind them the difference; four times over.

    It is said as `descriptions.changes_between` says what changed from one picture to the next:
    "dog two becomes dog red", "dog two goes", "dog red comes". Half of the lines end as those of
    pictures do, and then it may be the background that changed.
    """
    parts: list[TextPart | ImagePart] = []
    for _ in range(4):
        lines, told = _differing(draw)
        told_of = "; ".join(", ".join(line) or "none" for line in lines)
        parts += [TextPart(f"{told_of};", trained=False), TextPart(f" {told}\n")]
    return Example("compare", tuple(parts))


def _differing(draw: Draw) -> tuple[tuple[list[str], list[str]], str]:
    """Two lists of words and what is different in the second."""
    values = [*REGIONS, *TINTS, *NUMBERS[1:5]]
    words = draw.rng.sample([thing.word for thing in draw.objects], draw.rng.randint(2, 5))
    before = [f"{word} {draw.one_of(values)}" for word in words[1:]]
    things = len(before)
    if draw.chance(0.5):
        before += [f"{draw.one_of(STYLES)} style", f"{draw.one_of(list(COLOURS))} background"]
    after = list(before)
    if things < len(before) and draw.chance(0.25):
        others = [f"{colour} background" for colour in COLOURS]
        after[-1] = draw.one_of([one for one in others if one != before[-1]])
        return (before, after), f"{before[-1]} becomes {after[-1]}"
    place = draw.rng.randrange(things)
    old = before[place]
    kind = draw.one_of(("becomes", "becomes", "turns", "goes", "comes"))
    if kind == "becomes":
        word = words[1 + place]
        new = draw.one_of([f"{word} {value}" for value in values if old != f"{word} {value}"])
    elif kind == "turns":
        # Another thing in the same place: the first word is in neither line.
        new = words[0] + old.removeprefix(words[1 + place])
    else:
        del after[place]
        return ((before, after) if kind == "goes" else (after, before)), f"{old} {kind}"
    after[place] = new
    return (before, after), f"{old} becomes {new}"
