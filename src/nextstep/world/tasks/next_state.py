"""Next state: a picture and what happens, then the next picture; and back again.

Objects stand in the nine places of `spec.REGIONS`. What happens is exact: a step is one place, a
fall ends in the lowest row, a jump lands behind what is jumped over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nextstep.text.wording import join_words
from nextstep.world import layout
from nextstep.world.draw import Draw
from nextstep.world.drawings import faces_a_side, visible_on
from nextstep.world.examples import Example, ImagePart, TextPart
from nextstep.world.scenes import Scene
from nextstep.world.spec import REGIONS, Constraint, exact_spec, region_of
from nextstep.world.tasks import changes
from nextstep.world.tasks.editing import in_cells
from nextstep.world.tasks.next_state_wording import (
    BACK,
    BOTH,
    COLOUR,
    FALL,
    GROW,
    JUMP,
    RISE,
    SHRINK,
    STEP,
    SWAP,
    TURN,
    VANISH,
)
from nextstep.world.tasks.wording import AT, framed

_WAYS = {"left": "left of", "right": "right of", "up": "above", "down": "below"}
Happening = tuple[str, Scene]


def _to(draw: Draw, scene: Scene, place: int, cell: str | None) -> Scene | None:
    """The scene with an item in another cell, if that is there and empty."""
    if cell is None or cell not in changes.free_cells(draw, scene, place):
        return None
    return scene.with_item(place, changes.put(draw, scene.items[place], cell))


def _cell(scene: Scene, place: int) -> str:
    return region_of(scene.items[place].x, scene.items[place].y)


def step(draw: Draw, scene: Scene, place: int) -> Happening | None:
    """One place to a side."""
    way = draw.one_of(list(_WAYS))
    after = _to(draw, scene, place, layout.beside(_cell(scene, place), _WAYS[way]))
    if after is None:
        return None
    return draw.say(STEP, it=changes.the(scene, place), way=way), after


def fall_or_rise(draw: Draw, scene: Scene, place: int) -> Happening | None:
    """Down to the lowest row, or up to the highest."""
    down = draw.chance(0.5)
    column = list(REGIONS).index(_cell(scene, place)) % 3
    after = _to(draw, scene, place, list(REGIONS)[6 + column if down else column])
    if after is None:
        return None
    return draw.say(FALL if down else RISE, it=changes.the(scene, place)), after


def jump(draw: Draw, scene: Scene, place: int) -> Happening | None:
    """Over a neighbour at the side."""
    for way in draw.rng.sample(["left of", "right of"], 2):
        between = layout.beside(_cell(scene, place), way)
        for other in range(len(scene.items)):
            if between is not None and _cell(scene, other) == between:
                after = _to(draw, scene, place, layout.beside(between, way))
                if after is not None:
                    names = changes.the(scene, place), changes.the(scene, other)
                    return draw.say(JUMP, it=names[0], other=names[1]), after
    return None


def swap(draw: Draw, scene: Scene, place: int) -> Happening | None:
    """Two objects in each other's places."""
    others = [i for i in range(len(scene.items)) if i != place]
    if not others:
        return None
    other = draw.one_of(others)
    one, two = scene.items[place], scene.items[other]
    after = scene.with_item(place, changes.put(draw, one, _cell(scene, other)))
    after = after.with_item(other, changes.put(draw, two, _cell(scene, place)))
    text = draw.say(SWAP, it=changes.the(scene, place), other=changes.the(scene, other))
    return text, after


def turn(draw: Draw, scene: Scene, place: int) -> Happening | None:
    """The mirror image of one object."""
    item = scene.items[place]
    if not faces_a_side(item.name, item.style):
        return None
    after = scene.with_item(place, replace(item, flip=not item.flip))
    return draw.say(TURN, it=changes.the(scene, place)), after


def grow_or_shrink(draw: Draw, scene: Scene, place: int) -> Happening:
    """From the usual size to the small one, or back."""
    item = scene.items[place]
    grows = item.size < draw.layout.usual
    size = draw.layout.usual if grows else draw.layout.small
    text = draw.say(GROW if grows else SHRINK, it=changes.the(scene, place))
    resized = changes.put(draw, replace(item, size=size), _cell(scene, place))
    return text, scene.with_item(place, resized)


def colour(draw: Draw, scene: Scene, place: int) -> Happening | None:
    """Another colour."""
    item, obj = scene.items[place], changes.object_at(scene, place)
    avoid = [*scene.background.colours, item.tint or ""]
    tint = draw.tint(obj, item.style, avoid)
    around = scene.background.colours
    if tint is None or not all(visible_on(item.name, item.style, tint, c) for c in around):
        return None
    text = draw.say(COLOUR, it=changes.the(scene, place), colour=tint)
    return text, scene.with_item(place, replace(item, tint=tint))


def vanish(draw: Draw, scene: Scene, place: int) -> Happening | None:
    """One object less, if another stays."""
    if len(scene.items) < 2:
        return None
    return draw.say(VANISH, it=changes.the(scene, place)), scene.without_item(place)


_HAPPENINGS: list[tuple[Callable[[Draw, Scene, int], Happening | None], int]] = [
    (step, 6), (fall_or_rise, 3), (jump, 3), (swap, 2), (turn, 2), (grow_or_shrink, 2),
    (colour, 2), (vanish, 1),
]  # fmt: skip


def happening(draw: Draw, scene: Scene) -> Happening:
    """Something that can happen in a scene."""
    kinds, weights = zip(*_HAPPENINGS, strict=True)
    while True:
        kind = draw.rng.choices(kinds, weights)[0]
        found = kind(draw, scene, draw.rng.randrange(len(scene.items)))
        if found is not None:
            return found


def two_happenings(draw: Draw, scene: Scene) -> Happening:
    """Two that happen to different objects and do not disturb each other."""
    while True:
        first, between = happening(draw, scene)
        second, after = happening(draw, between)
        changed = [
            [a for a, b in zip(x.items, y.items, strict=False) if a != b]
            for x, y in ((scene, between), (between, after))
        ]
        same_length = len(scene.items) == len(between.items) == len(after.items)
        touched = {item.name for item in changed[0]} & {item.name for item in changed[1]}
        if same_length and not touched:
            return draw.say(BOTH, first=first, second=second), after


def _opening(draw: Draw, scene: Scene) -> list[TextPart | ImagePart]:
    """The first picture, with or without words before it."""
    if not draw.chance(0.3):
        return [ImagePart(scene, trained=False)]
    sizes = ["small" if item.size < draw.layout.usual else "" for item in scene.items]
    phrases = [
        f"{changes.object_at(scene, i).a(size)} {draw.one_of(AT[_cell(scene, i)])}"
        for i, size in enumerate(sizes)
    ]
    caption, told = framed(draw, join_words(phrases), scene.items[0].style, scene.background)
    constraints = tuple(
        Constraint(item.name, region=region_of(item.x, item.y), size=size or None)
        for item, size in zip(scene.items, sizes, strict=True)
    )
    return [TextPart(caption), ImagePart(scene, spec=replace(told, include=constraints))]


def next_state(draw: Draw) -> Example:
    """One to three steps, each a picture; some are undone."""
    number = max(draw.one_of((1, 2, 2, 3)), 2 if draw.split == "held_out_pairs" else 1)
    return _states(draw, "next_state", number, (1, 1, 2, 2, 3), back=0.25, both=0.35)


def steps(draw: Draw) -> Example:
    """As `next_state`, with what is hardest there in most of the steps; for training alone.

    Three objects, two happenings at once, and steps that are undone.
    """
    number = draw.one_of((2, 3, 3, 3))
    return _states(draw, "steps", number, (2, 3, 4), back=0.35, both=0.6)


def _states(
    draw: Draw, task: str, number: int, lengths: tuple[int, ...], *, back: float, both: float
) -> Example:
    found, style = draw.cast(number, lambda obj: not obj.is_plural_word)
    scene = in_cells(draw, found, style)
    if draw.chance(0.2):
        small = replace(scene.items[0], size=draw.layout.small)
        scene = scene.with_item(0, changes.put(draw, small, _cell(scene, 0)))
    parts = _opening(draw, scene)
    names = tuple(obj.label for obj in found)
    past: list[Scene] = []
    for _ in range(draw.one_of(lengths)):
        if past and draw.chance(back):
            text, after = draw.say(BACK), past.pop()
        else:
            several = len(scene.items) > 1 and draw.chance(both)
            text, after = (two_happenings if several else happening)(draw, scene)
            past.append(scene)
        scene = after
        spec = exact_spec(scene, names)
        parts += [TextPart(text), ImagePart(scene, spec=spec, kept=len(parts) - 1)]
    return Example(task, tuple(parts))
