"""A scene in one line of words, always the same way: what a model writes before it draws.

dog top left, small red cat bottom left, cat two bottom right, noto style, blue background
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from nextstep.world.lexicon import NUMBERS, world_objects
from nextstep.world.scenes import Scene, SceneItem, Sign
from nextstep.world.spec import REGIONS, RELATIONS, region_of, size_word

__all__ = ["changes_between", "describe", "name_with_places", "name_with_style", "relation_between"]


def describe(scene: Scene) -> str:
    """The objects of a scene in raster order, then its sign, style and background.

    An object says whether it is small, its colour, skin and direction where they are not its own,
    which of several alike it is, and its place. One that stands alone in the middle and is large
    says no place. A sign on the grid says which columns of image tokens its letters take.
    """
    told = list(_told(scene).values())
    for sign in scene.signs:
        told.append(f"{_written(sign)} {region_of(sign.x, sign.y)}")
        told += _letters(sign)
    style = _style(scene)
    return ", ".join([*told, *([style] if style else []), _background(scene)])


def name_with_places(scene: Scene, names: Iterable[str]) -> str:
    """The objects of a scene that have these labels, each by its word and place alone.

    The word and what follows it are those of `describe`, so that they can be copied from there.

    Args:
        scene: where they stand.
        names: labels; objects are told in their order, those alike in raster order.
    """
    told = _told(scene, by_name=True)
    return ", ".join(words for name in names for item, words in told.items() if item.name == name)


def name_with_style(item: SceneItem) -> str:
    """An object by its colour, word and style: "red cat mono"."""
    words = [item.tint, world_objects()[item.name].word, item.style]
    return " ".join(word for word in words if word)


def relation_between(scene: Scene, names: Sequence[str]) -> str | None:
    """Where the first of two objects stands, seen from the second: "cat left of dog".

    Args:
        scene: where they stand.
        names: labels.

    Returns:
        None unless the scene has one object of each of two labels.
    """
    found = [[item for item in scene.items if item.name == name] for name in names]
    if [len(alike) for alike in found] != [1, 1]:
        return None
    (one,), (other,) = found
    right, down = one.x - other.x, one.y - other.y
    sideways = abs(right) > abs(down)
    way = RELATIONS[(right > 0) if sideways else 2 + (down > 0)]
    return f"{world_objects()[one.name].word} {way} {world_objects()[other.name].word}"


def changes_between(before: Scene, after: Scene, instruction: str = "") -> str:
    """What is different in the second scene, each part in the words of `describe`.

    "cat left becomes small cat left", "cat left goes", "cat left comes", and the same of signs,
    styles and backgrounds. An object is followed by its name, else in the order of the items.

    Args:
        before, after: the scenes.
        instruction: that led to the second one; objects are told in the order in which it names
            them, those that it does not name behind the others, in raster order.
    """
    if before.background != after.background:
        return f"{_background(before)} becomes {_background(after)}"
    old, new = (
        dict(sorted(_told(scene).items(), key=lambda told: _mention(instruction, told[0])))
        for scene in (before, after)
    )
    gone = [item for item in old if item not in new]
    here = [item for item in new if item not in old]
    if gone and len(gone) == len(old) == len(new) and _style(before) != _style(after):
        return f"{_style(before)} becomes {_style(after)}"
    found = []
    for item in gone:
        same = next((other for other in here if other.name == item.name), None)
        at = next((other for other in here if (other.x, other.y) == (item.x, item.y)), None)
        other = same or (at if at and at.name not in {one.name for one in gone} else None)
        if other is None:
            found.append(f"{old[item]} goes")
        else:
            here.remove(other)
            found.append(f"{old[item]} becomes {new[other]}")
    found += [f"{new[item]} comes" for item in here]
    if before.sign != after.sign:
        signs = [_written(sign) if sign else None for sign in (before.sign, after.sign)]
        if None not in signs:
            found.append(f"{signs[0]} becomes {signs[1]}")
        else:
            found.append(f"{signs[0]} goes" if signs[0] else f"{signs[1]} comes")
    return ", ".join(found)


def _mention(instruction: str, item: SceneItem) -> int:
    """Where a text names an object first, its length where it does not."""
    word = re.escape(world_objects()[item.name].word)
    found = re.search(rf"\b{word}\b", instruction, re.IGNORECASE)
    return found.start() if found else len(instruction)


def _told(scene: Scene, by_name: bool = False) -> dict[SceneItem, str]:
    """The objects of a scene in raster order -> their words."""
    order = list(REGIONS)
    items = sorted(scene.items, key=lambda item: order.index(region_of(item.x, item.y)))
    alone = len(items) == 1 and scene.sign is None
    met: dict[str, int] = {}
    told = {}
    for item in items:
        number = met[item.name] = met.get(item.name, 0) + 1
        words = [
            world_objects()[item.name].word,
            NUMBERS[number] if number > 1 else None,
            f"with {item.tone} skin" if item.tone and not by_name else None,
            _place(item, alone),
        ]
        if not by_name:
            small = "small" if size_word(item.size) == "small" else None
            words = [small, item.tint, "turned" if item.flip else None, *words]
        told[item] = " ".join(word for word in words if word)
    return told


def _place(item: SceneItem, alone: bool) -> str | None:
    place = region_of(item.x, item.y)
    return None if alone and place == "middle" and item.size >= 0.6 else place


def _style(scene: Scene) -> str:
    styles = dict.fromkeys(item.style for item in scene.items)
    return f"{' and '.join(styles)} style" if styles else ""


def _background(scene: Scene) -> str:
    return f"{scene.background.words} background"


def _written(sign: Sign) -> str:
    return f'sign "{sign.text}"'


def _letters(sign: Sign) -> list[str]:
    """Which columns of image tokens the letters of a sign on the grid take, counted from 1."""
    if sign.pitch is None:
        return []
    wide = round(sign.pitch * 8)
    first = round(sign.x * 8 - wide * len(sign.text) / 2) + 1
    places = [first + wide * place for place in range(len(sign.text))]
    told = zip(places, sign.text, strict=True)
    return ["columns " + " ".join(f"{at}-{at + wide - 1}{letter}" for at, letter in told)]
