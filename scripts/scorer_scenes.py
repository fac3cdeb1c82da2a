"""Scenes on which the scorer of the emoji world learns to see, and what it should see in them.

They are wider than any task: every object in every style and colour, styles mixed, sizes and places
at random. Nothing is held out: a judge must know what it judges.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np

from nextstep.evaluate.world.network import ANY, COLOUR_NAMES, SIGN, STYLE_NAMES, TONE_NAMES, labels
from nextstep.world import layout
from nextstep.world.colours import TINTS
from nextstep.world.drawings import atlas, colour_of, visible_on
from nextstep.world.lexicon import world_objects
from nextstep.world.scenes import Background, Scene, SceneItem, Sign, render
from nextstep.world.signs import sign_text
from nextstep.world.vocabulary import COLOURS, STYLES, TONES

SIDE = 128
MOST = 10
"""Objects in a scene at most, the sign counted."""

Place = tuple[float, float, float]


@dataclass(frozen=True)
class Truth:
    """What stands in a scene, padded to `MOST` rows.

    Attributes:
        boxes: float32 [MOST, 4]: left, top, right, bottom in pixels; all 0 in unused rows.
        names: int16 [MOST, 4]: class, style, colour, tone; `ANY` where it does not matter.
        text: on the sign, empty without one.
    """

    boxes: np.ndarray
    names: np.ndarray
    text: str


def sample_scene(rng: random.Random, signs: float = 0.15) -> Scene:
    """A scene of its own kind.

    Args:
        rng: all choices.
        signs: share of scenes with a sign.
    """
    sign, places = None, _places(rng)
    if rng.random() < signs:
        sign, places = _sign(rng)
    one_style = rng.choice(STYLES) if rng.random() < 0.75 else None
    items = [_item(rng, place, one_style or rng.choice(STYLES)) for place in places]
    if len(items) > 1 and rng.random() < 0.3:
        # Several of one object, as they are counted.
        for place in range(1, rng.randint(2, len(items))):
            first, here = items[0], items[place]
            items[place] = replace(first, x=here.x, y=here.y, size=here.size)
    return Scene(_background(rng, items), tuple(items), sign, grey=rng.random() < 0.02)


def _places(rng: random.Random) -> list[Place]:
    kind = rng.random()
    if kind < 0.02:
        return []
    if kind < 0.18:
        size = rng.uniform(0.4, 0.86)
        return [(_inside(rng, size), _inside(rng, size), size)]
    if kind < 0.45:
        # Many objects in one scene teach more than few, at the same cost.
        cells = layout.cells(rng, rng.choice((1, 2, 3, 5, 7, 9)))
        size = rng.choice((0.2, 0.3, 0.3, 0.3, 0.32))
        return [(*layout.in_cell(cell)[:2], size) for cell in cells]
    if kind < 0.53:
        roles = [place for place in layout.FreeLayout.roles.values() if rng.random() < 0.6]
        return roles or [layout.FreeLayout.roles["hero"]]
    if kind < 0.75:
        return layout.spread(rng, rng.choice((2, 3, 4, 4, 5, 6, 7)), jitter=0.03)
    many = rng.random() < 0.6
    sizes = [
        rng.uniform(0.18, 0.3 if many else 0.5) for _ in range(rng.randint(3, 8 if many else 5))
    ]
    return layout.strew(rng, sizes, gap=rng.choice((-0.04, 0.0, 0.03))) or [(0.5, 0.5, 0.5)]


def _inside(rng: random.Random, size: float) -> float:
    return rng.uniform(size / 2, 1 - size / 2)


def _sign(rng: random.Random) -> tuple[Sign, list[Place]]:
    """A sign and the places that are left beside it."""
    text = sign_text(rng, rng.choice((4, 8, 8)), held_out=rng.random() < 0.1)
    kind = rng.random()
    if kind < 0.45:
        height = rng.uniform(0.24, 0.38)
        return Sign(text, y=0.5 + rng.uniform(-1, 1) * (0.46 - height / 2), height=height), []
    if kind < 0.75:
        return Sign(text, y=0.82, height=0.28), [(0.5, 0.34, rng.uniform(0.4, 0.58))]
    roles = [
        layout.FreeLayout.roles[role] for role in ("find", "hero", "friend") if rng.random() < 0.7
    ]
    return Sign(text, y=0.17, height=0.24), roles


def _item(rng: random.Random, place: Place, style: str) -> SceneItem:
    obj = rng.choice(list(world_objects().values()))
    tone = None
    if obj.toned and rng.random() < 0.8:
        tone = rng.choice(TONES)
        tone = tone if atlas().has(obj.label, style, tone) else None
    tint = rng.choice(list(TINTS)) if tone is None and rng.random() < 0.35 else None
    return SceneItem(obj.label, style, *place, tone=tone, tint=tint, flip=rng.random() < 0.15)


def _background(rng: random.Random, items: list[SceneItem]) -> Background:
    good = [c for c in COLOURS if all(visible_on(i.name, i.style, i.tint, c) for i in items)]
    first, second = (rng.choice(good or ["white"]) for _ in range(2))
    return Background(first, second if second != first and rng.random() < 0.4 else None)


def truth_of(scene: Scene) -> Truth:
    """What a judge should see in a scene."""
    boxes, names = np.zeros((MOST, 4), np.float32), np.full((MOST, 4), ANY, np.int16)
    rows = [(item.box(SIDE), _names(item, scene.grey)) for item in scene.items]
    if scene.sign is not None:
        rows.append((scene.sign.box(SIDE), (SIGN, ANY, ANY, ANY)))
    for place, (box, name) in enumerate(rows[-MOST:]):
        boxes[place], names[place] = box, name
    return Truth(boxes, names, scene.sign.text if scene.sign else "")


def _names(item: SceneItem, grey: bool) -> tuple[int, int, int, int]:
    colour = COLOUR_NAMES.index(colour_of(item.name, item.style, item.tone, item.tint))
    tone = TONE_NAMES.index(item.tone) if world_objects()[item.name].toned else ANY
    place = labels().index(item.name)
    return place, STYLE_NAMES.index(item.style), ANY if grey else colour, ANY if grey else tone


def sample(seed: int, signs: float = 0.15) -> tuple[np.ndarray, Truth]:
    """Picture uint8 [SIDE, SIDE, 3] and truth; a function of the seed."""
    scene = sample_scene(random.Random(seed), signs)
    return render(scene, SIDE), truth_of(scene)
