"""Editing: one or more pictures, an instruction, the changed picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from nextstep.world.draw import Draw
from nextstep.world.examples import Example, ImagePart, TextPart
from nextstep.world.lexicon import Word, WorldObject
from nextstep.world.scenes import Scene, SceneItem, Sign, grid_sign
from nextstep.world.spec import exact_spec
from nextstep.world.splits import Phrasings
from nextstep.world.tasks import changes
from nextstep.world.tasks.changes import Change
from nextstep.world.tasks.drawing import above_sign

COLOURISE = Phrasings("""
    colour the picture, {bg} background
    colourise it with {bg.a} background
    add colour to it, the background is {bg}
    bring the colours back, {bg} background
    make it a colour picture on {bg.a} background
    turn it from gray into colour with {bg.a} background
    turn it into a colour picture, {bg} background
    turn the gray picture into colour on {bg.a} background
    turn gray into colour, the background is {bg}
    from gray to colour, {bg} background
    change it from gray to colours, {bg} background
    bring colour into the gray picture, {bg} background
    not gray but in colour, with {bg.a} background
    the picture is gray, make it coloured with {bg.a} background
    make it coloured, with {bg.a} background
    give it its colours back, {bg} background
    give it colours with {bg.a} background
    paint it in colour, the background should be {bg}
    all in colour, {bg} background
    bring the colours back from gray, {bg} background
    from a gray picture make one in colour with {bg.a} background
    paint it in colour on {bg.a} background
""")
FILL = Phrasings("""
    fill in the missing part
    fill the hole
    restore the missing part
    complete the picture
    repair the picture
    paint in what is missing
    close the gap
    complete what is missing
    complete the missing part
    the picture is not complete, fill it in
    fill the gap
    fill the empty part
    draw the missing part
    draw in what is missing
    put back what is missing
    bring back the missing part
    restore the picture
    repair the hole
    close the hole
    the picture has a hole, fill it
""")
COMBINE = Phrasings("""
    put both in one picture, {bg} background
    both together on {bg.a} background
    combine the two pictures on {bg.a} background
    show both side by side, {bg} background
    bring them together on {bg.a} background
    one picture with both of them, {bg} background
    show one beside the other, {bg} background
    put both side by side on {bg.a} background
    draw them side by side on {bg.a} background
    both side by side in one picture, {bg} background
    bring both into one picture on {bg.a} background
    turn the two pictures into one with {bg.a} background
    the first on the left, the second on the right, {bg} background
    show the two pictures as one, {bg} background
    show both of them in one picture on {bg.a} background
    show them both on {bg.a} background, one picture
    now show both on {bg.a} background
    show one on the left and one on the right, {bg} background
    one on the left, one on the right, {bg} background
    show the first left and the second right, {bg} background
    draw both on {bg.a} background
    make one picture with both, {bg} background
    put the two together on {bg.a} background
    the two side by side, {bg} background
""")


def _example(task: str, source: Scene, change: Change, avoid: Sequence[str] = ()) -> Example:
    text, target = change
    before = tuple(dict.fromkeys([*avoid, *(item.name for item in source.items)]))
    spec = exact_spec(target, avoid=before)
    return Example(
        task,
        (ImagePart(source, trained=False), TextPart(text), ImagePart(target, spec=spec, kept=0)),
    )


def _strewn(draw: Draw, found: Sequence[WorldObject], style: str) -> Scene:
    """Objects in a random arrangement."""
    places = draw.layout.spread(len(found))
    items = [
        SceneItem(obj.label, style, x, y, size)
        for obj, (x, y, size) in zip(found, places, strict=True)
    ]
    return Scene(draw.background(items), tuple(items))


def in_cells(
    draw: Draw, found: Sequence[WorldObject], style: str, beside: Sequence[WorldObject] = ()
) -> Scene:
    """Objects in different ones of the nine places.

    Args:
        draw: choices.
        found: what stands there.
        style: of all.
        beside: what may come into the picture later and must stand out from its background too.
    """
    items = [
        SceneItem(obj.label, style, *draw.layout.in_cell(cell))
        for obj, cell in zip(found, draw.layout.cells(len(found)), strict=True)
    ]
    later = [SceneItem(obj.label, style) for obj in beside]
    return Scene(draw.background([*items, *later]), tuple(items))


def _number(draw: Draw, *numbers: int) -> int:
    """How many objects; at least two where a split is about pairs."""
    return max(draw.one_of(numbers), 2 if draw.split == "held_out_pairs" else 1)


def _until(make: Callable[[], Example | None]) -> Example:
    """Draw again where a scene had no room for its change."""
    while True:
        example = make()
        if example is not None:
            return example


def add(draw: Draw) -> Example:
    """Something new at a named place."""
    found, style = draw.cast(1 + draw.one_of((1, 1, 2)))
    *here, new = found if draw.split != "held_out_styles" else found[::-1]

    def attempt() -> Example | None:
        """One draw; None where it allows no such change."""
        scene = in_cells(draw, here, style, [new])
        change = changes.add(draw, scene, new)
        return None if change is None else _example("add", scene, change)

    return _until(attempt)


def remove(draw: Draw) -> Example:
    """One object less."""
    found, style = draw.cast(_number(draw, 2, 2, 3))
    scene = _strewn(draw, found, style)
    return _example("remove", scene, changes.remove(draw, scene))


def replace_object(draw: Draw) -> Example:
    """One object in the place of another."""
    found, style = draw.cast(1 + _number(draw, 1, 2, 2))
    new, here = found[0], found[1:]
    scene = _strewn(draw, here, style)
    backing = draw.background([*scene.items, SceneItem(new.label, style)])
    scene = replace(scene, background=backing)
    return _example("replace", scene, changes.replace_object(draw, scene, new))


def move(draw: Draw) -> Example:
    """One object goes to a named place."""
    found, style = draw.cast(_number(draw, 1, 2, 2))

    def attempt() -> Example | None:
        """One draw; None where it allows no such change."""
        scene = in_cells(draw, found, style)
        change = changes.move(draw, scene)
        return None if change is None else _example("move", scene, change)

    return _until(attempt)


def resize(draw: Draw) -> Example:
    """One object grows or shrinks; there is always room for it."""
    found, style = draw.cast(_number(draw, 1, 2, 2))
    bigger = draw.chance(0.5)
    items = _sized(draw, found, style, bigger)
    scene = Scene(draw.background(items), tuple(items))
    return _example("resize", scene, changes.resize(draw, scene, 0, bigger))


def _sized(draw: Draw, found: Sequence[WorldObject], style: str, bigger: bool) -> list[SceneItem]:
    """Objects of which the first can become bigger, or smaller."""
    if draw.edition.on_grid:
        first = draw.layout.sizes["small" if bigger else "big"]
        places = draw.layout.strew([first, *([draw.layout.usual] * (len(found) - 1))]) or []
        return [SceneItem(obj.label, style, *at) for obj, at in zip(found, places, strict=True)]
    small = 0.3 if len(found) > 1 else draw.one_of((0.3, 0.4, 0.53))
    sizes = [small * changes.GROWTH, *([0.3] * (len(found) - 1))]
    places = draw.layout.strew(sizes) or [(0.3, 0.3, sizes[0]), (0.8, 0.8, 0.3)]
    items = [SceneItem(obj.label, style, *at) for obj, at in zip(found, places, strict=True)]
    if bigger:
        items[0] = replace(items[0], size=small)
    return items


def recolour(draw: Draw) -> Example:
    """One object gets another colour."""

    def attempt() -> Example | None:
        """One draw; None where it allows no such change."""
        found, style = draw.cast(_number(draw, 1, 1, 2), lambda obj: not obj.names_a_colour)
        scene = _strewn(draw, found, style)
        if draw.chance(0.2):
            first = replace(scene.items[0], tint=draw.tint(found[0], style))
            scene = scene.with_item(0, first)
            scene = replace(scene, background=draw.background(scene.items))
        change = changes.recolour(draw, scene)
        return None if change is None else _example("recolour", scene, change)

    return _until(attempt)


def background(draw: Draw) -> Example:
    """Another background."""

    def attempt() -> Example | None:
        """One draw; None where it allows no such change."""
        found, style = draw.cast(_number(draw, 1, 1, 2))
        scene = _strewn(draw, found, style)
        change = changes.background(draw, scene)
        return None if change is None else _example("background", scene, change)

    return _until(attempt)


def style(draw: Draw) -> Example:
    """Another style; in the split of styles it is the one that objects never had."""

    def attempt() -> Example | None:
        """One draw; None where it allows no such change."""
        found, (new, old) = draw.cast_in_styles(_number(draw, 1, 1, 2), 2)
        scene = _strewn(draw, found, old)
        change = changes.style(draw, scene, new)
        return None if change is None else _example("style", scene, change)

    return _until(attempt)


def skin_tone(draw: Draw) -> Example:
    """Another skin tone."""
    coloured = [style for style in draw.edition.styles if style != "mono"]
    (obj,), drawn = draw.cast(1, lambda obj: obj.toned, coloured)
    before, after = draw.tones(2)
    x, y, size = draw.layout.single()
    item = SceneItem(obj.label, drawn, x, y, size, tone=None if draw.chance(0.4) else before)
    scene = Scene(draw.background([item]), (item,))
    return _example("skin_tone", scene, changes.skin_tone(draw, scene, after))


def colourise(draw: Draw) -> Example:
    """A grey picture gets its colours back; the background's, which nobody can guess, is said."""
    coloured = [style for style in draw.edition.styles if style != "mono"]
    found, drawn = draw.cast(_number(draw, 1, 1, 2), None, coloured)
    scene = _strewn(draw, found, drawn)
    text = draw.say(COLOURISE, bg=Word(scene.background.words))
    return _example("colourise", replace(scene, grey=True), (text, scene))


def fill(draw: Draw) -> Example:
    """A hole over part of an object is filled in."""
    found, drawn = draw.cast(_number(draw, 1, 1, 2))
    scene = _strewn(draw, found, drawn)
    source = replace(scene, hole=_hole(draw, draw.one_of(scene.items)))
    return _example("fill", source, (draw.say(FILL), scene))


def _hole(draw: Draw, item: SceneItem) -> tuple[float, float, float, float]:
    """A missing part over part of an object."""
    if draw.edition.on_grid:
        # Two by two image tokens, or four by four of an object that fills the picture; the first
        # row and column are 1, 3, 5 or 7.
        side, steps = (0.25, (0, 1)) if item.size < 0.5 else (0.5, (0, 0.5, 1))
        half = 2 * side if item.size < 0.5 else 1.0
        x, y = (round((c - half / 2) * 4) / 4 + draw.one_of(steps) * side for c in (item.x, item.y))
        return x, y, x + side, y + side
    side = item.size * draw.rng.uniform(0.45, 0.65)
    x, y = (c + draw.one_of((-1, 0, 1)) * item.size * 0.3 for c in (item.x, item.y))
    edges = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
    left, top, right, bottom = (min(1.0, max(0.0, edge)) for edge in edges)
    return left, top, right, bottom


def change_word(draw: Draw) -> Example:
    """Another word on a sign."""

    def attempt() -> Example | None:
        """One draw; None where it allows no such change."""
        text = draw.sign_text()
        lone = grid_sign(text, 3) if draw.edition.on_grid else Sign(text)
        scene = Scene(draw.background([]), sign=lone)
        if draw.split == "held_out_styles" or draw.chance(0.4):
            (obj,), drawn = draw.cast(1)
            item, sign = above_sign(draw, obj, drawn, draw.sign_text())
            scene = Scene(draw.background([item]), (item,), sign)
        change = changes.word(draw, scene)
        return None if change is None else _example("change_word", scene, change)

    return _until(attempt)


def combine(draw: Draw) -> Example:
    """Two pictures of one object each become one: the first's left, the second's right."""
    found, drawn = draw.cast(2)
    sources = [_strewn(draw, [obj], drawn) for obj in found]
    places = ((0.26, 0.5, 0.46), (0.74, 0.5, 0.46))
    if draw.edition.on_grid:
        places = draw.layout.related("left of")
    items = tuple(SceneItem(obj.label, drawn, *at) for obj, at in zip(found, places, strict=True))
    target = Scene(draw.background(items), items)
    text = draw.say(COMBINE, bg=Word(target.background.words))
    shown = [ImagePart(source, trained=False) for source in sources]
    return Example("combine", (*shown, TextPart(text), ImagePart(target, spec=exact_spec(target))))


def turns(draw: Draw) -> Example:
    """Two to four changes, one after another, each to the picture before it."""
    found, drawn = draw.cast(_number(draw, 2, 2, 3))
    scene = in_cells(draw, found, drawn)
    names = tuple(obj.label for obj in found)
    parts: list[TextPart | ImagePart] = [ImagePart(scene, trained=False)]
    length = 1 + 2 * draw.one_of((2, 2, 3, 4))
    while len(parts) < length:
        options = [changes.move, changes.recolour, changes.background]
        if len(scene.items) > 1:
            options.append(changes.remove)
        change = draw.one_of(options)(draw, scene)
        if change is None:
            continue
        text, scene = change
        kept = len(parts) - 1
        parts += [TextPart(text), ImagePart(scene, spec=exact_spec(scene, names), kept=kept)]
    return Example("turns", tuple(parts))
