"""How much of what was asked for a picture shows: one figure a requirement instead of all or none.

`Spec.failures` says whether a picture is right. Learning from rewards needs more: a picture with
one of two objects is nearer to the goal than one with neither. A line of words about a picture can
be judged by the same requirements, once it is read as what it says.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable

from nextstep.evaluate.text_match import edit_distance
from nextstep.world.lexicon import world_objects
from nextstep.world.spec import REGIONS, Constraint, Detection, Detections, Spec, is_related
from nextstep.world.vocabulary import COLOURS, STYLES

PARTS = ("objects", "attributes", "layout", "size", "extra", "background", "style", "text")
"""Kinds of requirements, in the order in which reports name them."""

SMALL_HALF, BIG_HALF = 0.15, 0.25
"""Half of the side of an object that a line calls small, and of one that it does not."""


def requirements(spec: Spec, detections: Detections) -> dict[str, list[float]]:
    """How far every requirement of a spec is met, from 0 to 1, by kind.

    An object that is asked for several times counts once for each of its numbers; what must hold of
    it counts as the share of those asked for that have it.
    """
    found: dict[str, list[float]] = {}

    def add(part: str, value: float) -> None:
        found.setdefault(part, []).append(value)

    seen = Counter(one.name for one in detections.objects)
    asked: Counter[str] = Counter()
    for constraint in spec.include:
        asked[constraint.name] += constraint.count
    for name, count in asked.items():
        add("objects", min(seen[name], count) / max(seen[name], count))
    for constraint in spec.include:
        for part, plain in _single(constraint):
            met = sum(plain.satisfied_by(one) for one in detections.objects)
            add(part, min(1.0, met / constraint.count))
        if constraint.relation is not None:
            kind, other = constraint.relation
            mates = [one for one in detections.objects if spec.include[other].satisfied_by(one)]
            met = sum(
                any(one is not mate and is_related(one.centre, mate.centre, kind) for mate in mates)
                for one in detections.objects
                if one.name == constraint.name
            )
            add("layout", min(1.0, met / constraint.count))
    unwanted = [name for name in spec.exclude if seen[name]]
    if spec.exclude:
        add("extra", 1 - len(unwanted) / len(spec.exclude))
    if spec.only:
        over = sum(seen.values()) - sum(asked.values())
        add("extra", 1 / (1 + max(0, over)))
    if spec.background:
        pairs = zip(spec.background, (*detections.background, None, None), strict=False)
        right = sum(one == other for one, other in pairs)
        add("background", right / max(len(spec.background), len(detections.background)))
    if spec.style is not None:
        add("style", float(detections.style == spec.style))
    if spec.text is not None:
        add("text", text_share(detections.text or "", spec.text))
    return found


def _single(constraint: Constraint) -> Iterable[tuple[str, Constraint]]:
    """What a need asks for beside the name, one object at a time."""
    for part, field in (
        ("attributes", "colour"), ("attributes", "tone"), ("layout", "region"), ("layout", "at"),
        ("size", "size"), ("size", "extent"),
    ):  # fmt: skip
        value = getattr(constraint, field)
        if value is not None:
            yield part, Constraint(constraint.name, **{field: value})


def dense_score(spec: Spec, detections: Detections) -> tuple[float, dict[str, float]]:
    """The mean over all requirements, and the mean of each kind that is asked for."""
    found = requirements(spec, detections)
    every = [value for values in found.values() for value in values]
    means = {part: sum(found[part]) / len(found[part]) for part in PARTS if part in found}
    return (sum(every) / len(every) if every else 1.0), means


def text_share(said: str, wanted: str) -> float:
    """1 - edit distance / length, at least 0; upper and lower case are one."""
    apart = edit_distance(said.lower().strip(), wanted.lower().strip())
    return max(0.0, 1 - apart / max(1, len(wanted.strip())))


def detections_of_line(line: str) -> Detections:
    """A line of words as what it says is there; see `world.descriptions` for its form."""
    seen: list[Detection] = []
    background: tuple[str, ...] = ()
    style, text = None, None
    # Of an edit's line the last part says what the result shows.
    for clause in line.rpartition(";")[2].split(","):
        words = clause.lower().strip()
        if words.endswith("background"):
            background = tuple(word for word in words.split() if word in COLOURS)
        elif words.endswith("style"):
            named = [name for name in STYLES if name in words.split()]
            style = named[0] if len(named) == 1 else None
        elif words.startswith("sign"):
            text = clause.partition('"')[2].rpartition('"')[0] or None
        else:
            seen += _mentioned(words)
    return Detections(tuple(seen), background, style, text)


def _mentioned(words: str) -> list[Detection]:
    """The object that a clause names, at the place that it names."""
    names = [word for word in _words() if f" {word} " in f" {words} "]
    if not names:
        return []
    name = _words()[max(names, key=len)]
    places = [region for region in REGIONS if words.endswith(f" {region}")]
    x, y = REGIONS[max(places, key=len)] if places else (0.5, 0.5)
    half = SMALL_HALF if words.startswith("small ") else BIG_HALF
    before = words.split()
    colour = next((word for word in before if word in COLOURS), None)
    return [Detection(name, (x - half, y - half, x + half, y + half), colour)]


@functools.cache
def _words() -> dict[str, str]:
    """Everyday word of every object -> its label."""
    return {obj.word.lower(): name for name, obj in world_objects().items()}
