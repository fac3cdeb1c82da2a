"""A scene in one line of words, always the same way: what a model writes before it draws.

dog top left, small red cat bottom right, noto style, blue background
"""

from __future__ import annotations

from nextstep.world.lexicon import world_objects
from nextstep.world.scenes import Scene, SceneItem
from nextstep.world.spec import REGIONS, region_of, size_word

__all__ = ["describe"]


def describe(scene: Scene) -> str:
    """The objects of a scene in raster order, then its sign, style and background.

    An object says whether it is small, its colour, skin and direction where they are not its own,
    and its place. One that stands alone in the middle and is large says no place.
    """
    order = list(REGIONS)
    items = sorted(scene.items, key=lambda item: order.index(region_of(item.x, item.y)))
    alone = len(items) == 1 and scene.sign is None
    told = [_described(item, alone) for item in items]
    if scene.sign is not None:
        told.append(f'sign "{scene.sign.text}" {region_of(scene.sign.x, scene.sign.y)}')
    styles = list(dict.fromkeys(item.style for item in scene.items))
    told += [f"{' and '.join(styles)} style"] if styles else []
    return ", ".join([*told, f"{scene.background.words} background"])


def _described(item: SceneItem, alone: bool) -> str:
    place = region_of(item.x, item.y)
    large = alone and place == "middle" and item.size >= 0.6
    words = [
        "small" if size_word(item.size) == "small" else None,
        item.tint,
        "turned" if item.flip else None,
        world_objects()[item.name].word,
        f"with {item.tone} skin" if item.tone else None,
        None if large else place,
    ]
    return " ".join(word for word in words if word)
