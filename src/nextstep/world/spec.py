"""What must hold of a picture, in a form that can be checked: GenEval's metadata and more.

A `Spec` is a list of constraints. `Detections` are what a picture shows: found by a detector, or
the truth of the scene itself (`detections_of`). `Spec.failures` applies the same rules to both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nextstep.world.drawings import colour_of
from nextstep.world.lexicon import world_objects
from nextstep.world.scenes import Scene

NEAR = 0.12
"""How far an object may be from where it should be, as a share of the side."""

SIZE_FACTOR = 1.3
"""How much larger or smaller than asked an object may be."""

SMALL, BIG = 0.39, 0.42
"""A small object's longest side is at most, a big one's at least, this share of the picture's."""

REGIONS: dict[str, tuple[float, float]] = {
    "top left": (0.2, 0.2), "top": (0.5, 0.2), "top right": (0.8, 0.2),
    "left": (0.2, 0.5), "middle": (0.5, 0.5), "right": (0.8, 0.5),
    "bottom left": (0.2, 0.8), "bottom": (0.5, 0.8), "bottom right": (0.8, 0.8),
}  # fmt: skip
"""The nine places of a picture with their centres; each is a third of it wide and high."""

RELATIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class Detection:
    """One object as it is seen.

    Attributes:
        name: label of the object.
        box: left, top, right, bottom in shares of the side.
        colour: its colour word; None where it has no main colour.
        tone: its skin tone, None where it is not known.
    """

    name: str
    box: tuple[float, float, float, float]
    colour: str | None = None
    tone: str | None = None

    @property
    def centre(self) -> tuple[float, float]:
        """The middle of its box."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def size(self) -> float:
        """The longest side of its box."""
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])


@dataclass(frozen=True)
class Detections:
    """A picture as it is seen.

    Attributes:
        objects: what is in it.
        background: one or two colour names, top first; empty where it is not known.
        style: the drawing style of all objects, None when they differ or it is not known.
        text: letters on a sign, None without one.
    """

    objects: tuple[Detection, ...] = ()
    background: tuple[str, ...] = ()
    style: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class Constraint:
    """Objects of one name that must be there.

    Attributes:
        name: label.
        count: exactly how many of them satisfy all the rest.
        colour: their colour word.
        tone: their skin tone.
        region: a key of `REGIONS` in which their centres lie.
        relation: (one of `RELATIONS`, place in `Spec.include` of the object it is relative to).
        size: "big" or "small".
        at: where the centre is, give or take `NEAR`.
        extent: longest side as a share of the picture's, give or take `SIZE_FACTOR`.
    """

    name: str
    count: int = 1
    colour: str | None = None
    tone: str | None = None
    region: str | None = None
    relation: tuple[str, int] | None = None
    size: str | None = None
    at: tuple[float, float] | None = None
    extent: float | None = None

    def satisfied_by(self, seen: Detection) -> bool:
        """Whether one object has the right name, colour, tone, place and size."""
        x, y = seen.centre
        return (
            seen.name == self.name
            and (self.colour is None or seen.colour == self.colour)
            and (self.tone is None or seen.tone == self.tone)
            and (self.region is None or region_of(x, y) == self.region)
            and (self.size is None or size_word(seen.size) == self.size)
            and (self.at is None or max(abs(x - self.at[0]), abs(y - self.at[1])) <= NEAR)
            and (
                self.extent is None
                or self.extent / SIZE_FACTOR <= seen.size <= self.extent * SIZE_FACTOR
            )
        )


@dataclass(frozen=True)
class Spec:
    """Everything that must hold of one picture.

    Attributes:
        include: what must be there.
        exclude: labels of what must not be there.
        only: whether nothing else may be there.
        background: colour names, top first; empty for any.
        style: of all objects, None for any.
        text: on the sign, None for any.
    """

    include: tuple[Constraint, ...] = ()
    exclude: tuple[str, ...] = ()
    only: bool = False
    background: tuple[str, ...] = ()
    style: str | None = None
    text: str | None = None

    def failures(self, detections: Detections) -> list[str]:
        """What does not hold, in words; empty when all does."""
        wrong = []
        for constraint in self.include:
            found = [seen for seen in detections.objects if constraint.satisfied_by(seen)]
            if constraint.relation is not None:
                kind, other = constraint.relation
                found = [s for s in found if self._related(s, kind, other, detections)]
            if len(found) != constraint.count:
                wrong.append(f"{constraint.count} {constraint.name} asked, {len(found)} right")
        names = [seen.name for seen in detections.objects]
        wrong += [f"{name} should not be there" for name in self.exclude if name in names]
        if self.only and len(names) != sum(constraint.count for constraint in self.include):
            wrong.append(f"{len(names)} objects in all")
        if self.background and detections.background != self.background:
            wrong.append(f"background {' to '.join(detections.background) or 'unknown'}")
        if self.style is not None and detections.style != self.style:
            wrong.append(f"style {detections.style}")
        if self.text is not None and detections.text != self.text:
            wrong.append(f"the sign says {detections.text}")
        return wrong

    def _related(self, seen: Detection, kind: str, other: int, detections: Detections) -> bool:
        constraint = self.include[other]
        return any(
            is_related(seen.centre, mate.centre, kind)
            for mate in detections.objects
            if mate is not seen and constraint.satisfied_by(mate)
        )

    def metadata(self, tag: str, prompt: str) -> dict[str, Any]:
        """The spec in GenEval's form: classes are everyday words."""
        include = []
        for constraint in self.include:
            entry: dict[str, Any] = {
                "class": world_objects()[constraint.name].word,
                "count": constraint.count,
            }
            if constraint.relation is not None:
                entry["position"] = list(constraint.relation)
            for key, value in (
                ("color", constraint.colour), ("tone", constraint.tone),
                ("region", constraint.region),
                ("size", constraint.size), ("at", constraint.at), ("extent", constraint.extent),
            ):  # fmt: skip
                if value is not None:
                    entry[key] = list(value) if isinstance(value, tuple) else value
            include.append(entry)
        found: dict[str, Any] = {"tag": tag, "prompt": prompt, "include": include}
        if self.exclude:
            found["exclude"] = [
                {"class": world_objects()[n].word, "count": 1} for n in self.exclude
            ]
        for key, told in (
            ("only", self.only), ("background", list(self.background)),
            ("style", self.style), ("text", self.text),
        ):  # fmt: skip
            if told:
                found[key] = told
        return found


def region_of(x: float, y: float) -> str:
    """Which of the nine places a centre lies in."""
    column = min(2, max(0, int(x * 3)))
    row = min(2, max(0, int(y * 3)))
    return list(REGIONS)[row * 3 + column]


def is_related(first: tuple[float, float], second: tuple[float, float], kind: str) -> bool:
    """Whether the first centre lies left of, right of, above or below the second.

    It must be a tenth of the side apart that way, and more so than the other way.
    """
    right, down = first[0] - second[0], first[1] - second[1]
    along = {"left of": -right, "right of": right, "above": -down, "below": down}[kind]
    across = abs(down) if kind in RELATIONS[:2] else abs(right)
    return along > 0.1 and along > across


def size_word(size: float) -> str | None:
    """Whether a longest side counts as small or big."""
    return "small" if size <= SMALL else "big" if size >= BIG else None


def detections_of(scene: Scene, size: int = 128) -> Detections:
    """The truth about a scene: boxes as they are drawn, colours as they are measured."""
    seen = []
    for item in scene.items:
        left, top, right, bottom = (edge / size for edge in item.box(size))
        colour = colour_of(item.name, item.style, item.tone, item.tint)
        seen.append(Detection(item.name, (left, top, right, bottom), colour, item.tone))
    styles = {item.style for item in scene.items}
    return Detections(
        tuple(seen),
        scene.background.colours,
        styles.pop() if len(styles) == 1 else None,
        scene.sign.text if scene.sign else None,
    )


def exact_spec(scene: Scene, avoid: tuple[str, ...] = ()) -> Spec:
    """The spec that asks for this whole scene: every object at its place and of its size.

    Args:
        scene: the picture.
        avoid: labels that must not be there.
    """
    detections = detections_of(scene)
    include = []
    for item, seen in zip(scene.items, detections.objects, strict=True):
        place = round(seen.centre[0], 3), round(seen.centre[1], 3)
        include.append(
            Constraint(
                item.name, colour=item.tint, tone=item.tone, at=place, extent=round(seen.size, 3)
            )
        )
    present = {item.name for item in scene.items}
    return Spec(
        tuple(include),
        tuple(name for name in avoid if name not in present),
        True,
        scene.background.colours,
        detections.style,
        detections.text,
    )
