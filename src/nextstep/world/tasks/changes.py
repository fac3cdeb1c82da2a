"""Changes to a scene, each with the words that ask for it.

A change takes the choices and a scene and returns (instruction, changed scene), or None where the
scene has no room for it. Changes that bring something new are given the new object.
"""

from __future__ import annotations

from dataclasses import replace

from nextstep.world import layout
from nextstep.world.captions import BACKGROUND_EDITS, STYLE_EDITS
from nextstep.world.draw import Draw
from nextstep.world.drawings import visible_on
from nextstep.world.lexicon import Word, WorldObject, world_objects
from nextstep.world.scenes import Background, Scene, SceneItem
from nextstep.world.spec import RELATIONS, region_of
from nextstep.world.splits import Phrasings
from nextstep.world.tasks.wording import AT, TO

Change = tuple[str, Scene]

ADD = Phrasings("""
    add {a} {at}
    put {a} {at}
    place {a} {at}
    draw {a} {at}
    insert {a} {at}
    there should be {a} {at}
    let {a} appear {at}
    {at} draw {a}
    draw one more thing {at}, {a}
    draw in {a} {at}
    {at} put {a}
    {at} there should be {a}
    i want {a} {at}
    i want to see {a} {at}
    let there be {a} {at}
    paint {a} {at}
    add {a} to the picture {at}
""")
REMOVE = Phrasings("""
    remove {it}
    delete {it}
    take {it} away
    erase {it}
    get rid of {it}
    the same picture without {it}
    make {it} disappear
    take {it} out of the picture
    take {it} from the picture
    make {it} go away
    put {it} away
    let {it} disappear
    {it} should disappear
    {it} should not be there
    show the picture without {it}
    {it} should go away from here
    away with {it}
    move {it} away from the picture
    do not draw {it}
    i want {it} away
    i want the picture without {it}
    draw it all again, but without {it}
    take {it} out of here
""")
REPLACE = Phrasings("""
    replace {it} with {b}
    change {it} into {b}
    turn {it} into {b}
    swap {it} for {b}
    put {b} in place of {it}
    instead of {it} draw {b}
    make {b} out of {it}
    trade {it} for {b}
    change {it} for {b}
    swap {b} in for {it}
    for {it} swap in {b}
    swap out {it} and put in {b}
    make {it} into {b}
    draw {b} instead of {it}
    {b} instead of {it}
    i want {b} instead of {it}
    {b} should take the place of {it}
    let {b} take the place of {it}
    take {it} away and put {b} there
    remove {it} and add {b} there
""")
MOVE = Phrasings("""
    move {it} {to}
    shift {it} {to}
    bring {it} {to}
    push {it} {to}
    slide {it} {to}
    drag {it} {to}
    {it} should go {to}
    {to} is where to bring {it}
    make {it} go {to}
    now bring {it} over here, {to}
    {it} should come {to}
    make {it} slide {to}
    let {it} slide {to}
    put {it} at another place, {to}
    take {it} from here {to}
    i want {it} moved {to}
    the new place of {it}: {to}
    {to}, there i want to bring {it}
    send {it} {to}
    draw {it} again, moved {to}
""")
RESIZE = Phrasings("""
    make {it} {bigger}
    {it} should be {bigger}
    draw {it} {bigger}
    let {it} be {bigger}
    change the size of {it}, {bigger}
    i want {it} to be {bigger}
    draw {it} again, but {bigger}
    draw {it} in a {bigger} size
    draw the same picture with {it} {bigger}
    i want {it} {bigger}
    {it} should get {bigger}
    let {it} get {bigger}
    make the size of {it} {bigger}
    the size of {it} should be {bigger}
    {bigger} is what {it} should be
""")
RECOLOUR = Phrasings("""
    make {it} {colour}
    paint {it} {colour}
    colour {it} {colour}
    turn {it} {colour}
    change the colour of {it} to {colour}
    {it} should be {colour}
    give {it} the colour {colour}
    give {it} {colour} paint
    give {it} another colour, {colour}
    i want to give {it} another colour, {colour}
    {it} should have the colour {colour}
    {it} should get the colour {colour}
    paint {it} in the colour {colour}
    set the colour of {it} to {colour}
    the colour of {it} should be {colour}
    make the colour of {it} {colour}
    let {it} be {colour}
    i want {it} to be {colour}
    draw {it} in {colour}
    show {it} in {colour}
""")
SKIN = Phrasings("""
    change the skin tone of {it} to {tone}
    make the skin of {it} {tone}
    give {it} {tone} skin
    draw {it} with {tone} skin
    the skin of {it} should be {tone}
    set the skin tone of {it} to {tone}
    set {it} to the skin tone {tone}
    for {it}, set {tone} skin
    the skin tone of {it} should be {tone}
    make the skin tone of {it} {tone}
    give {it} the skin tone {tone}
    let the skin of {it} be {tone}
    paint the skin of {it} {tone}
    turn the skin of {it} {tone}
    show {it} with {tone} skin
    i want {it} with {tone} skin
    {it} should have {tone} skin
    set the skin of {it} to {tone}
    change {it} to {tone} skin
    change the skin of {it} to {tone}
""")
WORD = Phrasings("""
    change the word to "{text}"
    make the sign say "{text}"
    write "{text}" on the sign instead
    the sign should say "{text}"
    replace the word with "{text}"
    put "{text}" on the sign
    let the sign say "{text}"
    make the sign show the word "{text}"
    make the word "{text}"
    make "{text}" the word on the sign
    change the sign, it should say "{text}"
    change what the sign says to "{text}"
    the word should be "{text}"
    the word on the sign should be "{text}"
    set the word on the sign to "{text}"
    write "{text}" in place of the word
""")

BIGGER, SMALLER = ("bigger", "larger"), ("smaller", "tinier")
GROWTH = 1.5
"""How much larger a bigger object is; a smaller one is as much smaller."""


def object_at(scene: Scene, place: int) -> WorldObject:
    """The object that an item shows."""
    return world_objects()[scene.items[place].name]


def the(scene: Scene, place: int) -> str:
    """The words for an item that is alone of its kind."""
    return object_at(scene, place).the()


def _any_item(draw: Draw, scene: Scene) -> int:
    return draw.rng.randrange(len(scene.items))


def free_cells(draw: Draw, scene: Scene, mover: int | None = None) -> list[str]:
    """Which of the nine places are empty in a scene whose objects stand in such places."""
    return draw.layout.free_cells([(item.x, item.y, item.size) for item in scene.items], mover)


def put(draw: Draw, item: SceneItem, cell: str) -> SceneItem:
    """An item in one of the nine places."""
    x, y, _ = draw.layout.in_cell(cell, item.size)
    return replace(item, x=x, y=y)


def destination(draw: Draw, scene: Scene, mover: int | None = None) -> tuple[str, str, str] | None:
    """An empty place with the words for being there and for going there.

    Half of the time it is told as the neighbourhood of something else in the scene.

    Args:
        draw: choices.
        scene: objects in nine places.
        mover: the item that will go there, which is no landmark.
    """
    free = free_cells(draw, scene, mover)
    if not free:
        return None
    marks = [i for i in range(len(scene.items)) if i != mover]
    if marks and draw.chance(0.5):
        mark, kind = draw.one_of(marks), draw.one_of(RELATIONS)
        item = scene.items[mark]
        cell = layout.beside(region_of(item.x, item.y), kind)
        if cell in free:
            where = f"to the {kind}" if kind in RELATIONS[:2] else kind
            where = f"{where} {the(scene, mark)}"
            return cell, where, where if kind in RELATIONS[:2] else f"to the place {where}"
    cell = draw.one_of(free)
    return cell, draw.one_of(AT[cell]), draw.one_of(TO[cell])


def add(draw: Draw, scene: Scene, new: WorldObject) -> Change | None:
    """Something new in an empty place."""
    found = destination(draw, scene)
    if found is None:
        return None
    cell, at, _ = found
    item = SceneItem(new.label, scene.items[0].style, *draw.layout.in_cell(cell))
    return draw.say(ADD, a=new.a(), at=at), scene.adding(item)


def remove(draw: Draw, scene: Scene) -> Change:
    """One object less."""
    place = _any_item(draw, scene)
    return draw.say(REMOVE, it=the(scene, place)), scene.without_item(place)


def replace_object(draw: Draw, scene: Scene, new: WorldObject) -> Change:
    """Another object in the place of one, as large."""
    place = _any_item(draw, scene)
    old = scene.items[place]
    item = SceneItem(new.label, old.style, old.x, old.y, old.size)
    text = draw.say(REPLACE, it=the(scene, place), b=new.a())
    return text, scene.with_item(place, item)


def move(draw: Draw, scene: Scene) -> Change | None:
    """One object into an empty place."""
    place = _any_item(draw, scene)
    found = destination(draw, scene, place)
    if found is None:
        return None
    cell, _, to = found
    text = draw.say(MOVE, it=the(scene, place), to=to)
    return text, scene.with_item(place, put(draw, scene.items[place], cell))


def resize(draw: Draw, scene: Scene, place: int, bigger: bool) -> Change:
    """One object larger or smaller about its centre."""
    item = scene.items[place]
    word = draw.one_of(BIGGER if bigger else SMALLER)
    text = draw.say(RESIZE, it=the(scene, place), bigger=word)
    if draw.edition.on_grid:
        resized = replace(item, size=draw.layout.sizes["big" if bigger else "small"])
        return text, scene.with_item(place, put(draw, resized, region_of(item.x, item.y)))
    size = item.size * GROWTH if bigger else item.size / GROWTH
    return text, scene.with_item(place, replace(item, size=size))


def recolour(draw: Draw, scene: Scene) -> Change | None:
    """One object painted in another colour, one that can be seen here."""
    place = _any_item(draw, scene)
    item, obj = scene.items[place], object_at(scene, place)
    around = scene.background.colours
    avoid = [c for c in (*around, item.tint) if c is not None]
    tint = draw.tint(obj, item.style, avoid)
    if tint is None or not all(visible_on(item.name, item.style, tint, c) for c in around):
        return None
    text = draw.say(RECOLOUR, it=the(scene, place), colour=tint)
    return text, scene.with_item(place, replace(item, tint=tint))


def background(draw: Draw, scene: Scene) -> Change | None:
    """Another background."""
    new: Background = draw.background(scene.items)
    if new == scene.background:
        return None
    return draw.say(BACKGROUND_EDITS, bg=Word(new.words)), replace(scene, background=new)


def style(draw: Draw, scene: Scene, new: str) -> Change | None:
    """Everything in another style; None where something could not be seen."""
    items = tuple(replace(item, style=new) for item in scene.items)
    colours = scene.background.colours
    if not all(visible_on(i.name, i.style, i.tint, c) for i in items for c in colours):
        return None
    return draw.say(STYLE_EDITS, style=Word(new)), replace(scene, items=items)


def skin_tone(draw: Draw, scene: Scene, tone: str) -> Change:
    """The first object with another skin."""
    item = replace(scene.items[0], tone=tone)
    text = draw.say(SKIN, it=the(scene, 0), tone=tone)
    return text, scene.with_item(0, item)


def word(draw: Draw, scene: Scene) -> Change | None:
    """Another word on the sign."""
    text = draw.sign_text()
    if scene.sign is None or text == scene.sign.text:
        return None
    return draw.say(WORD, text=text), replace(scene, sign=replace(scene.sign, text=text))
