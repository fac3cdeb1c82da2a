"""A scene in one line of words, always the same way: what a model writes before it draws.

dog top left, small red cat bottom right, noto style, blue background
"""

from __future__ import annotations

from collections.abc import Iterable

from nextstep.world.lexicon import world_objects
from nextstep.world.scenes import Scene, SceneItem
from nextstep.world.spec import REGIONS, region_of, size_word

__all__ = ["describe", "name_with_places"]


def describe(scene: Scene) -> str:
    """The objects of a scene in raster order, then its sign, style and background.

    An object says whether it is small, its colour, skin and direction where they are not its own,
    and its place. One that stands alone in the middle and is large says no place.
    """
    alone = _is_alone(scene)
    told = [_described(item, alone) for item in _in_raster_order(scene.items)]
    if scene.sign is not None:
        told.append(f'sign "{scene.sign.text}" {region_of(scene.sign.x, scene.sign.y)}')
    styles = list(dict.fromkeys(item.style for item in scene.items))
    told += [f"{' and '.join(styles)} style"] if styles else []
    return ", ".join([*told, f"{scene.background.words} background"])


def name_with_places(scene: Scene, items: Iterable[SceneItem]) -> str:
    """Some objects of a scene in raster order, each by its word and place alone.

    The word and what follows it are those of `describe`, so that they can be copied from there.
    """
    alone = _is_alone(scene)
    told = [
        f"{world_objects()[item.name].word} {_place(item, alone) or ''}".strip()
        for item in _in_raster_order(items)
    ]
    return ", ".join(told)


def _in_raster_order(items: Iterable[SceneItem]) -> list[SceneItem]:
    order = list(REGIONS)
    return sorted(items, key=lambda item: order.index(region_of(item.x, item.y)))


def _is_alone(scene: Scene) -> bool:
    return len(scene.items) == 1 and scene.sign is None


def _place(item: SceneItem, alone: bool) -> str | None:
    place = region_of(item.x, item.y)
    return None if alone and place == "middle" and item.size >= 0.6 else place


def _described(item: SceneItem, alone: bool) -> str:
    words = [
        "small" if size_word(item.size) == "small" else None,
        item.tint,
        "turned" if item.flip else None,
        world_objects()[item.name].word,
        f"with {item.tone} skin" if item.tone else None,
        _place(item, alone),
    ]
    return " ".join(word for word in words if word)
