"""Reading: pictures, a question, and the answer in text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

from nextstep.text.wording import join_words
from nextstep.world.draw import Draw
from nextstep.world.drawings import colour_of
from nextstep.world.examples import Example, ImagePart, TextPart
from nextstep.world.lexicon import NUMBERS, WorldObject
from nextstep.world.scenes import Scene, SceneItem
from nextstep.world.spec import RELATIONS, is_related, region_of
from nextstep.world.tasks import changes, drawing
from nextstep.world.tasks.editing import in_cells
from nextstep.world.tasks.reading_wording import (
    HOW_MANY,
    IS_THERE,
    WHAT,
    WHAT_CHANGED,
    WHERE,
    WHERE_FROM,
    WHICH_COLOUR,
    WHICH_STYLE,
    WHICH_WORD,
)
from nextstep.world.tasks.wording import AT, TO, is_or_are


def _example(
    draw: Draw,
    task: str,
    scenes: list[Scene],
    question: str,
    answer: str,
    others: tuple[str, ...] = (),
    about: Sequence[WorldObject] | None = None,
) -> Example:
    """Pictures, the question as anybody would type it, and the answer after a space."""
    if draw.chance(0.25):
        question = question[0].lower() + question[1:]
    answers = tuple(dict.fromkeys((answer, *others)))
    shown = [ImagePart(scene, trained=False) for scene in scenes]
    labels = None if about is None else tuple(obj.label for obj in about)
    asked = TextPart(question, about=labels)
    return Example(task, (*shown, asked, TextPart(f" {answer}", answers=answers)))


def _groups(draw: Draw) -> tuple[list[tuple[WorldObject, int]], Scene]:
    """One to three kinds of objects, one to four of each, five in all at most."""
    kinds = max(draw.one_of((1, 2, 2, 3)), 2 if draw.split == "held_out_pairs" else 1)
    found, style = draw.cast(kinds)
    most = {1: 4, 2: 3, 3: 1}[kinds]
    numbers = [draw.rng.randint(1, most) for _ in found]
    most = 4 if draw.edition.on_grid else 5
    if sum(numbers) > most:
        numbers[0] = most - sum(numbers[1:])
    items = [
        SceneItem(t.label, style) for t, n in zip(found, numbers, strict=True) for _ in range(n)
    ]
    places = draw.layout.spread(len(items))
    items = [replace(i, x=x, y=y, size=s) for i, (x, y, s) in zip(items, places, strict=True)]
    return list(zip(found, numbers, strict=True)), Scene(draw.background(items), tuple(items))


def _caption(groups: list[tuple[WorldObject, int]], scene: Scene) -> str:
    said = join_words([t.a() if n == 1 else t.count(n) for t, n in groups])
    return f"{said}, {scene.items[0].style} style, {scene.background.words} background"


def read_caption(draw: Draw) -> Example:
    """What is there, in the form of a drawing's caption; first what stands higher, then left."""
    groups, scene = _groups(draw)

    def order(group: tuple[WorldObject, int]) -> tuple[int, float]:
        mine = [item for item in scene.items if item.name == group[0].label]
        return min((int(item.y * 3), item.x) for item in mine)

    groups.sort(key=order)
    others = tuple(_caption(list(each), scene) for each in permutations(groups))
    if draw.split != "held_out_phrasings" and draw.chance(0.3):
        # Without a question a caption follows the picture at once.
        said = _caption(groups, scene)
        answer = TextPart(said, answers=tuple(dict.fromkeys((said, *others))))
        return Example("read_caption", (ImagePart(scene, trained=False), answer))
    return _example(draw, "read_caption", [scene], draw.say(WHAT), _caption(groups, scene), others)


def read_count(draw: Draw) -> Example:
    """How many of one object there are; at times none."""
    groups, scene = _groups(draw)
    obj, number = draw.one_of(groups)
    if draw.chance(0.12):
        present = [other for other, _ in groups]
        obj, number = draw.one_of([t for t in draw.objects if t not in present]), 0
    answer = "none" if number == 0 else NUMBERS[number]
    question = draw.say(HOW_MANY, things=obj.plural)
    answers = str(number), NUMBERS[number]
    return _example(draw, "read_count", [scene], question, answer, answers, [obj])


def read_where(draw: Draw) -> Example:
    """Where something is, in the picture or seen from something else."""
    found, style = draw.cast(2)
    if draw.chance(0.5):
        scene = in_cells(draw, found, style)
        cell = region_of(scene.items[0].x, scene.items[0].y)
        question = draw.say(WHERE, it=found[0].the(), verb=is_or_are(found[0]))
        return _example(draw, "read_where", [scene], question, AT[cell][0], AT[cell][1:], found[:1])
    kind = draw.one_of(RELATIONS)
    items = tuple(
        SceneItem(obj.label, style, x, y, size)
        for obj, (x, y, size) in zip(found, draw.layout.related(kind), strict=True)
    )
    question = draw.say(
        WHERE_FROM, it=found[0].the(), verb=is_or_are(found[0]), other=found[1].the()
    )
    ways = {
        "left of": ("on the left", "to the left", "left", "left of it"),
        "right of": ("on the right", "to the right", "right", "right of it"),
        "above": ("above it", "above", "over it"),
        "below": ("below it", "below", "under it"),
    }[kind]
    scene = Scene(draw.background(items), items)
    return _example(draw, "read_where", [scene], question, ways[0], ways[1:], found)


def read_colour(draw: Draw) -> Example:
    """The colour of an object, or of the background."""
    found, style = draw.cast(draw.one_of((1, 2)), lambda obj: not obj.names_a_colour)
    items: list[SceneItem] = []
    for obj in found:
        used = tuple(i.tint for i in items if i.tint)
        items.append(drawing.painted_item(draw, obj, style, used))
    places = draw.layout.spread(len(items))
    items = [replace(i, x=x, y=y, size=s) for i, (x, y, s) in zip(items, places, strict=True)]
    scene = Scene(draw.background(items, gradients=0), tuple(items))
    if draw.chance(0.2):
        question = draw.say(WHICH_COLOUR, it="the background", verb="is")
        return _example(draw, "read_colour", [scene], question, scene.background.colour)
    answer = colour_of(items[0].name, style, None, items[0].tint) or ""
    question = draw.say(WHICH_COLOUR, it=found[0].the(), verb=is_or_are(found[0]))
    return _example(draw, "read_colour", [scene], question, answer, about=found[:1])


def read_change(draw: Draw) -> Example:
    """What became different from the first picture to the second."""
    found, style = draw.cast(3)
    *here, new = found
    scene = in_cells(draw, here, style, [new])
    kind = draw.one_of(("add", "remove", "replace", "move", "recolour", "background"))
    answer, after = None, scene
    while answer is None:
        place = draw.rng.randrange(len(scene.items))
        item, it = scene.items[place], changes.object_at(scene, place)
        was = "were" if it.is_plural_word else "was"
        free = changes.free_cells(draw, scene, place if kind == "move" else None)
        if kind in ("add", "move") and not free:
            kind = "remove"
        if kind == "add":
            cell = draw.one_of(free)
            after = scene.adding(SceneItem(new.label, style, *draw.layout.in_cell(cell)))
            answer = f"{new.a()} was added {AT[cell][0]}"
        elif kind == "remove":
            after, answer = scene.without_item(place), f"{it.the()} {was} removed"
        elif kind == "replace":
            after = scene.with_item(place, replace(item, name=new.label))
            answer = f"{it.the()} became {new.a()}"
        elif kind == "move":
            cell = draw.one_of(free)
            after = scene.with_item(place, changes.put(draw, item, cell))
            answer = f"{it.the()} moved {TO[cell][0]}"
        elif kind == "recolour":
            change = changes.recolour(draw, scene)
            if change is not None:
                after = change[1]
                answer = _recoloured(scene, after)
        else:
            backing = draw.background(scene.items)
            after = replace(scene, background=backing)
            if backing != scene.background:
                answer = f"the background became {backing.words}"
    return _example(draw, "read_change", [scene, after], draw.say(WHAT_CHANGED), answer)


def _recoloured(before: Scene, after: Scene) -> str:
    """Names the item that got a new colour."""
    place = next(i for i, item in enumerate(after.items) if item != before.items[i])
    return f"{changes.the(after, place)} became {after.items[place].tint}"


def read_word(draw: Draw) -> Example:
    """What a sign says."""
    scene = drawing.words(draw).scenes[0]
    text = scene.sign.text if scene.sign else ""
    return _example(draw, "read_word", [scene], draw.say(WHICH_WORD), f'"{text}"', (text,))


def read_style(draw: Draw) -> Example:
    """Which style a picture is drawn in."""
    groups, scene = _groups(draw)
    del groups
    style = scene.items[0].style
    return _example(draw, "read_style", [scene], draw.say(WHICH_STYLE), style, (f"{style} style",))


def read_yes_no(draw: Draw) -> Example:
    """Whether something is there, or in a relation, half of the time yes."""
    found, style = draw.cast(3)
    kind = draw.one_of(RELATIONS)
    items = tuple(
        SceneItem(obj.label, style, x, y, size)
        for obj, (x, y, size) in zip(found, draw.layout.related(kind), strict=False)
    )
    scene = Scene(draw.background(items), items)
    yes = draw.chance(0.5)
    if draw.chance(0.5):
        about = [found[0] if yes else found[2]]
        question = draw.say(IS_THERE, a=about[0].a())
    else:
        first, second = (items[0].x, items[0].y), (items[1].x, items[1].y)
        wanted = [k for k in RELATIONS if is_related(first, second, k) == yes]
        about = found[:2]
        one, other = found[0].the(), found[1].the()
        verb = is_or_are(found[0]).capitalize()
        question = f"{verb} {one} {draw.one_of(wanted)} {other}?"
    answer = "yes" if yes else "no"
    return _example(draw, "read_yes_no", [scene], question, answer, about=about)
