"""A scene in words, always the same way: the thoughts of scenes, see `text.sequence.thought`."""

from __future__ import annotations

from nextstep.world.lexicon import things
from nextstep.world.scenes import Item, Scene
from nextstep.world.spec import region_of, size_word
from nextstep.world.tasks.wording import AT

__all__ = ["describe"]


def describe(scene: Scene) -> str:
    """The things of a scene from back to front, then its sign, style and background.

    A thing says whether it is small or big, its colour and skin where they are not its own, and its
    place: "a small dog in the top left corner, a big red cat on the right, flat style, blue
    background". One that stands alone in the middle says no place, and is big without saying so;
    a medium one says that it is.
    """
    alone = len(scene.items) == 1 and scene.sign is None
    told = [_described(item, alone) for item in scene.items]
    if scene.sign is not None:
        told.append(f'a sign with "{scene.sign.text}"')
    styles = list(dict.fromkeys(item.style for item in scene.items))
    told += [f"{' and '.join(styles)} style"] if styles else []
    return ", ".join([*told, f"{scene.background.words} background"])


def _described(item: Item, alone: bool) -> str:
    place = region_of(item.x, item.y)
    expected = alone and place == "middle"
    said = size_word(item.size)
    if expected:
        said = None if said == "big" else said or "medium"
    noun = things()[item.name].a(" ".join(word for word in (said, item.tint) if word))
    if item.tone is not None:
        noun = f"{noun} with {item.tone} skin"
    return noun if expected else f"{noun} {AT[place][0]}"
