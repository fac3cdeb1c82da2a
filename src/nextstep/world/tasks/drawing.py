"""Text to image: a caption, then its picture."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nextstep.text.wording import join_words
from nextstep.world.captions import caption
from nextstep.world.draw import Draw
from nextstep.world.drawings import colour_of
from nextstep.world.examples import Example, ImagePart, TextPart
from nextstep.world.lexicon import Word, WorldObject
from nextstep.world.scenes import FILL, Background, Scene, SceneItem, Sign, grid_sign
from nextstep.world.signs import is_held_out_word, sign_text
from nextstep.world.spec import RELATIONS, Constraint, Spec, region_of
from nextstep.world.splits import Phrasings
from nextstep.world.tasks.wording import (
    AT,
    BACKGROUND_FRAMES,
    BIG_WORDS,
    RELATION_PHRASINGS,
    SMALL_WORDS,
    framed,
    tells,
)

PAIR = Phrasings("""
    {a} and {b}
    {a} next to {b}
    {a} with {b}
    {a} together with {b}
    {a} beside {b}
    {a} and also {b}
    {a} near {b}
    {a} close to {b}
    {a} along with {b}
    {a} plus {b}
    both {a} and {b}
    {a} by {b}
    {a} as well as {b}
    {a} alongside {b}
    {a}, {b}
    {a} side by side with {b}
    two things, {a} and {b}
    {a} standing close to {b}
    {a}, next to it {b}
    {a} and next to it {b}
    {a}, with {b} next to it
""")
COUNTS = Phrasings("""
    {n}
    exactly {n}
    a group of {n}
    {n} together
    {n} and nothing else
    {n}, no more and no less
    {n} all together
    {n} in all
    {n}, nothing else
    {n} and no more
    no more and no less than {n}
    {n}, not one more and not one less
    exactly {n}, no less
    {n}, exactly
    {n}, no less
    {n}, all together
    a group with {n}
    {n} and no other
    no less than {n} and no more
    together {n}
""")
COLOURED = Phrasings("""
    {t.painted}
    {t.plain} that is {t.colour}
    {t.plain} painted {t.colour}
    {t.plain} in {t.colour}
    {t.plain}, coloured {t.colour}
    {t.plain} of {t.colour} colour
    {t.plain} in the colour {t.colour}
    {t.plain}, painted in {t.colour}
    {t.plain} drawn in {t.colour}
    {t.plain}, {t.colour} all over
    {t.plain}, and it is {t.colour}
    {t.plain}, its colour is {t.colour}
    {t.plain} that has been painted {t.colour}
    {t.plain} that was coloured {t.colour}
    {t.plain}, one that is painted {t.colour}
    {t.plain} that is painted in {t.colour}
    {t.plain} of the colour {t.colour}
    {t.plain}, painted all {t.colour}
    {t.plain}, {t.colour}
""")
PLACED = Phrasings("""
    {a} {at}
    {a}, {at}
    {a} {at} of the picture
    {a} found {at}
    {a} located {at}
    {a} placed {at}
    {a} seen {at}
    {a} standing {at}
    {a} drawn {at}
    {a} that is {at}
    {a} that stands {at}
    {a}, drawn {at}
    {a}, and it is {at}
    {a}, to be seen {at}
    {a} put {at}
    {a}, put {at}
""")
SIGNS = Phrasings("""
    a sign that says "{text}"
    a sign with the word "{text}"
    a sign saying "{text}"
    a sign reading "{text}"
    a board with "{text}" written on it
    the word "{text}" on a sign
    a sign that reads "{text}"
    a sign that shows the word "{text}"
    a sign saying the word "{text}"
    a sign with a word on it, saying "{text}"
    a board that says "{text}"
    a board with the word "{text}"
    a sign with "{text}"
    a sign, and it says "{text}"
    a sign on which is written "{text}"
    a sign with writing on it saying "{text}"
    a sign on a board, saying "{text}"
    a board that reads "{text}"
    a board reading "{text}"
    the word "{text}" on a board
    "{text}" on a board
    a sign that says the word "{text}"
""")


@dataclass(frozen=True)
class _Coloured:
    """An object and its colour for `COLOURED`."""

    painted: str
    plain: str
    colour: str


def _finish(
    draw: Draw,
    task: str,
    phrase: str,
    scene: Scene,
    include: list[Constraint],
    text: str | None = None,
) -> Example:
    """Frame a phrase, and put caption and picture together."""
    style = scene.items[0].style if scene.items else None
    said, told = framed(draw, phrase, style, scene.background)
    spec = replace(told, include=tuple(include), text=text)
    return Example(task, (TextPart(said), ImagePart(scene, spec=spec)))


def _arranged(draw: Draw, items: list[SceneItem]) -> list[SceneItem]:
    """The items at places of a random arrangement."""
    places = draw.layout.spread(len(items))
    return [
        replace(item, x=x, y=y, size=size) for item, (x, y, size) in zip(items, places, strict=True)
    ]


def single(draw: Draw) -> Example:
    """One object, large; half of the time in the captions that the first model learned."""
    (obj,), style = draw.cast(1)
    item = SceneItem(obj.label, style)
    if draw.split != "held_out_phrasings" and draw.chance(0.5):
        background = draw.background([item], gradients=0)
        name = draw.one_of((obj.label, obj.word))
        said = caption(draw.rng, name, style, background.colour)
        while not tells(draw, style, background, f"{style} style" in said, "background" in said):
            said = caption(draw.rng, name, style, background.colour)
        spec = Spec(
            (Constraint(obj.label),),
            background=background.colours if "background" in said else (),
            style=style if f"{style} style" in said else None,
        )
        return Example("single", (TextPart(said), ImagePart(Scene(background, (item,)), spec=spec)))
    x, y, size = draw.layout.single()
    item = replace(item, x=x, y=y, size=size)
    scene = Scene(draw.background([item]), (item,))
    return _finish(draw, "single", obj.a(), scene, [Constraint(obj.label)])


def two_objects(draw: Draw) -> Example:
    """Two different objects."""
    found, style = draw.cast(2)
    items = _arranged(draw, [SceneItem(obj.label, style) for obj in found])
    phrase = draw.say(PAIR, a=found[0].a(), b=found[1].a())
    scene = Scene(draw.background(items), tuple(items))
    return _finish(draw, "two_objects", phrase, scene, [Constraint(t.label) for t in found])


def counting(draw: Draw) -> Example:
    """Two to four of one object, or one to four of one and one to three of another."""
    mixed = draw.split == "held_out_pairs" or draw.chance(0.4)
    found, style = draw.cast(2 if mixed else 1)
    numbers = [draw.one_of((1, 2, 3, 4)), draw.one_of((1, 2, 3))] if mixed else []
    numbers = numbers or [draw.one_of((2, 3, 4))]
    if draw.edition.on_grid and sum(numbers) > 4:
        numbers = draw.one_of(([1, 2], [2, 1], [1, 3], [3, 1], [2, 2], [1, 1]))
    items = _arranged(
        draw,
        [SceneItem(t.label, style) for t, n in zip(found, numbers, strict=True) for _ in range(n)],
    )
    said = join_words([t.count(n) for t, n in zip(found, numbers, strict=True)])
    phrase = said if mixed and draw.chance(0.5) else draw.say(COUNTS, n=said)
    constraints = [Constraint(t.label, n) for t, n in zip(found, numbers, strict=True)]
    return _finish(
        draw, "counting", phrase, Scene(draw.background(items), tuple(items)), constraints
    )


def painted_item(
    draw: Draw, obj: WorldObject, style: str, avoid: tuple[str, ...] = ()
) -> SceneItem:
    """An object in a colour that can be named: its own at times, else painted."""
    own = colour_of(obj.label, style)
    if own is not None and own not in avoid and draw.chance(0.3):
        return SceneItem(obj.label, style)
    return SceneItem(obj.label, style, tint=draw.tint(obj, style, avoid))


def _paintable(obj: WorldObject) -> bool:
    return not obj.names_a_colour


def colours(draw: Draw) -> Example:
    """One object in a named colour."""
    (obj,), style = draw.cast(1, _paintable)
    item = painted_item(draw, obj, style)
    colour = colour_of(item.name, style, None, item.tint) or ""
    if not draw.edition.on_grid:
        item = replace(item, size=draw.one_of((0.5, 0.6, 0.7, FILL)))
    phrase = draw.say(COLOURED, t=_Coloured(obj.a(colour), obj.a(), colour))
    scene = Scene(draw.background([item]), (item,))
    return _finish(draw, "colours", phrase, scene, [Constraint(obj.label, colour=colour)])


def attributes(draw: Draw) -> Example:
    """Two objects in two colours, side by side or one above the other."""
    found, style = draw.cast(2, _paintable)
    items: list[SceneItem] = []
    names: list[str] = []
    for obj in found:
        item = painted_item(draw, obj, style, tuple(names))
        items.append(item)
        names.append(colour_of(item.name, style, None, item.tint) or "")
    a, b = (obj.a(name) for obj, name in zip(found, names, strict=True))
    constraints = [Constraint(t.label, colour=c) for t, c in zip(found, names, strict=True)]
    if draw.chance(0.3):
        kind = draw.one_of(RELATIONS)
        places = list(draw.layout.related(kind))
        phrase = draw.say(RELATION_PHRASINGS[kind], a=a, b=b)
        constraints[0] = replace(constraints[0], relation=(kind, 1))
    else:
        places = draw.layout.spread(2)
        phrase = draw.say(PAIR, a=a, b=b)
    items = [replace(i, x=x, y=y, size=s) for i, (x, y, s) in zip(items, places, strict=True)]
    scene = Scene(draw.background(items), tuple(items))
    return _finish(draw, "attributes", phrase, scene, constraints)


def position(draw: Draw) -> Example:
    """Two objects in a relation, or one or two objects in named places."""
    if draw.split == "held_out_pairs" or draw.chance(0.6):
        found, style = draw.cast(2)
        kind = draw.one_of(RELATIONS)
        items = [
            SceneItem(obj.label, style, x, y, size)
            for obj, (x, y, size) in zip(found, draw.layout.related(kind), strict=True)
        ]
        phrase = draw.say(RELATION_PHRASINGS[kind], a=found[0].a(), b=found[1].a())
        constraints = [Constraint(found[0].label, relation=(kind, 1)), Constraint(found[1].label)]
    else:
        found, style = draw.cast(draw.one_of((1, 1, 2)))
        items, phrases, constraints = [], [], []
        for obj, cell in zip(found, draw.layout.cells(len(found)), strict=True):
            items.append(SceneItem(obj.label, style, *draw.layout.in_cell(cell)))
            phrases.append(f"{obj.a()} {draw.one_of(AT[cell])}")
            constraints.append(Constraint(obj.label, region=cell))
        phrase = join_words(phrases)
        if len(found) == 1:
            at = draw.one_of(AT[region_of(items[0].x, items[0].y)])
            phrase = draw.say(PLACED, a=found[0].a(), at=at)
    scene = Scene(draw.background(items), tuple(items))
    return _finish(draw, "position", phrase, scene, constraints)


def sizes(draw: Draw) -> Example:
    """A big object and a small one."""
    found, style = draw.cast(2)
    words = draw.one_of((["big", "small"], ["small", "big"]))
    extents = [draw.layout.sizes[word] for word in words]
    places = draw.layout.strew(extents) or [(0.3, 0.3, extents[0]), (0.72, 0.72, extents[1])]
    items = [
        SceneItem(obj.label, style, x, y, size)
        for obj, (x, y, size) in zip(found, places, strict=True)
    ]
    a, b = (
        obj.a(draw.one_of(BIG_WORDS if word == "big" else SMALL_WORDS))
        for obj, word in zip(found, words, strict=True)
    )
    constraints = [Constraint(t.label, size=word) for t, word in zip(found, words, strict=True)]
    phrase = draw.say(PAIR, a=a, b=b)
    return _finish(draw, "sizes", phrase, Scene(draw.background(items), tuple(items)), constraints)


def words(draw: Draw) -> Example:
    """A sign with a word on it, at times with something above it."""
    text = draw.sign_text()
    phrase = draw.say(SIGNS, text=text)
    if draw.split != "held_out_styles" and draw.chance(0.6):
        background = Background(draw.background([]).colour)
        scene = Scene(background, sign=_lone_sign(draw, text))
        return _finish(draw, "words", phrase, scene, [], text)
    (obj,), style = draw.cast(1)
    item, sign = above_sign(draw, obj, style, text)
    scene = Scene(draw.background([item]), (item,), sign)
    phrase = draw.say(ABOVE_SIGN, a=obj.a(), sign=phrase)
    return _finish(draw, "words", phrase, scene, [Constraint(obj.label)], text)


def letters(draw: Draw) -> Example:
    """One to three signs on the grid under each other, for practice: many letters at once.

    In two of three samples every sign repeats one letter. Then a model can learn what the letters
    look like, and which sign stands where, before it finds the letter of every column.
    """
    repeats = draw.chance(2 / 3)
    rows = draw.one_of(((0,), (3,), (6,), (0, 3), (0, 3, 6), (0, 3, 6)))
    signs = []
    for row in rows:
        text = sign_text(draw.rng, 4)
        same = text[0] * len(text)
        signs.append(grid_sign(same if repeats and not is_held_out_word(same) else text, row))
    scene = Scene(draw.background([]), sign=signs[-1], more_signs=tuple(signs[:-1]))
    words = join_words([f'"{sign.text}"' for sign in signs])
    said = draw.say(BACKGROUND_FRAMES, p=f"signs with {words}", bg=Word(scene.background.words))
    return Example("letters", (TextPart(said), ImagePart(scene)))


def _lone_sign(draw: Draw, text: str) -> Sign:
    if draw.edition.on_grid:
        return grid_sign(text, 3)
    height = draw.one_of((0.28, 0.32, 0.36))
    return Sign(text, y=0.5 + draw.rng.uniform(-1, 1) * (0.46 - height / 2), height=height)


def above_sign(draw: Draw, obj: WorldObject, style: str, text: str) -> tuple[SceneItem, Sign]:
    """An object and a sign below it."""
    if draw.edition.on_grid:
        return SceneItem(obj.label, style, *draw.layout.in_cell("top")), grid_sign(text, 6)
    return SceneItem(obj.label, style, 0.5, 0.34, 0.56), Sign(text, y=0.82, height=0.28)


ABOVE_SIGN = Phrasings("""
    {a} and {sign}
    {a} above {sign}
    {a} with {sign}
    {a} over {sign}
    {sign} below {a}
    {sign} and {a}
    {a} at the top, {sign} below
    {a} standing over {sign}
    {a} on top of {sign}
    {a} and below it {sign}
    {a} with {sign} below it
    {a} higher up than {sign}
    {sign} with {a} over it
    {sign} with {a} above it
    {sign} under {a}
    {sign} underneath {a}
    at the top {a}, at the bottom {sign}
    {sign} and over it {a}
    {sign} and above it {a}
""")
