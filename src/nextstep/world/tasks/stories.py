"""Interleaved stories, and characters that are called back from far away."""

from __future__ import annotations

from dataclasses import replace

from nextstep.world.descriptions import name_with_style
from nextstep.world.draw import CHARACTERS, Draw
from nextstep.world.examples import Example, ImagePart, TextPart
from nextstep.world.lexicon import Word, world_objects
from nextstep.world.scenes import FILL, Scene, SceneItem
from nextstep.world.spec import Constraint, Spec, exact_spec
from nextstep.world.splits import Phrasings
from nextstep.world.tasks import story_events

START = Phrasings("""
    Once upon a time there was {a} called {name}.
    This is a story about {a} called {name}.
    Meet {name}, {a}.
    {name} is {a}.
    There once lived {a} named {name}.
    Our hero is {name}, {a}.
    Here begins the story of {name}, {a}.
    Here is a story about {a} called {name}.
    Here is the story of {a} named {name}.
    Here comes {a} called {name}.
    This is the story of {name}, {a}.
    The story of {name} begins here: {name} is {a}.
    Now begins a story about {a} called {name}.
    Now the story of {a} named {name} begins.
    There was once {a} called {name}.
    Once there lived {a} called {name}.
    Once there was {name}, {a}.
    In this story we meet {name}, {a}.
    Our story is about {name}, {a}.
    Our hero is {a} called {name}.
    The hero of this story is {a} named {name}.
""")
SETTING = Phrasings("""
     The pictures are in {style} style on {bg.a} background.
     It is drawn in {style} style, and the background is {bg}.
     All is drawn in {style} style on {bg.a} background.
     Think of {style} style and {bg.a} background.
     We draw in {style} style, with {bg.a} background.
     The style is {style}, the background {bg}.
    Think of pictures in {style} style on {bg.a} background.
    Think of {bg.a} background and of the {style} style.
    We think of drawings in {style} style on {bg.a} background.
    Here is {style} style and {bg.a} background.
    The pictures have {bg.a} background and {style} style.
    We see it in {style} style and on {bg.a} background.
    The drawings are in {style} style, the background is {bg}.
    All pictures are in {style} style with {bg.a} background.
    Everything is in {style} style on {bg.a} background.
    The background is {bg} and the style is {style}.
    The background is {bg}, and all is drawn in {style} style.
    It is a story in {style} style with {bg.a} background.
    Drawn in {style} style on {bg.a} background.
""")
BY_SIGHT = Phrasings("""
    This is {name}.
    Meet {name}.
    Here is {name}.
    Look, this is {name}.
    Say hello to {name}.
    And here we see {name}.
    Look, here is {name}.
    Look, here comes {name}.
    Now look at {name}.
    And this is {name}.
    Here comes {name}.
    Now we meet {name}.
    This picture shows {name}.
    Look, there is {name}.
    Look at {name}.
    Look who comes, it is {name}.
    Now this one is {name}.
    Now here is {name}.
    And now {name}.
""")
BY_WORDS = Phrasings("""
    This is {name}, {a}.
    {name} is {a}.
    Meet {name}, {a}.
    Here is {a} called {name}.
    Look, {a} named {name}.
    And here we see {name}, {a}.
    Here is {name}, {a}.
    Here comes {a} named {name}.
    Here we meet {a} called {name}.
    Here you see {name}, {a}.
    This is {a} named {name}.
    Look, this is {a} called {name}.
    Look, here is {name}, {a}.
    Say hello to {a} called {name}.
    Say hello to {name}, {a}.
    We see {a} called {name}.
    Now we meet {a} named {name}.
""")
AGAIN = Phrasings("""
    Draw {name} again on {bg.a} background.
    Here is {name} again, {bg} background.
    Show {name} once more on {bg.a} background.
    Now {name} again on {bg.a} background.
    Back to {name}, on {bg.a} background.
    {name} comes back, {bg} background.
    Do you remember {name}? Here on {bg.a} background.
    Now we go back to {name} on {bg.a} background.
    Draw {name} once more, {bg} background.
    Show {name} again, {bg} background.
    And {name} again on {bg.a} background.
    {name} is here again, {bg} background.
    Now draw {name} again, the background is {bg}.
    Where is {name}? Here, on {bg.a} background.
    We go back to {name}, {bg} background.
    Now we come back to {name}, {bg} background.
    {name} is back again, {bg} background.
    Bring {name} back on {bg.a} background.
    Bring back {name}, {bg} background.
    Look, {name} again on {bg.a} background.
    Draw another picture of {name}, {bg} background.
    Now show {name} again, {bg} background.
    Let {name} come back on {bg.a} background.
""")
END = ("The end.", "And that was that.", "The end of the story.")


def story(draw: Draw) -> Example:
    """Two to six pictures with text between; characters and style stay the same."""
    cast = story_events.choose_cast(draw)
    hero = story_events.placed(draw, cast.hero, cast.style, "hero")
    # Whoever comes later must be seen on the first background too.
    others = [SceneItem(t.label, cast.style) for t in (cast.friend, cast.find, *cast.skies)]
    background = draw.background([hero, *others])
    stage = story_events.StoryStage(background, {"hero": hero}, on_grid=draw.edition.on_grid)
    text = draw.say(START, a=cast.hero.a(), name=cast.names[0])
    spec = Spec((Constraint(cast.hero.label),), only=True)
    if draw.edition.on_grid or draw.chance(0.7):
        text += " " + draw.say(SETTING, style=Word(cast.style), bg=Word(background.words))
        spec = Spec(spec.include, (), True, background.colours, cast.style)
    parts: list[TextPart | ImagePart] = [TextPart(text), ImagePart(stage.scene, spec=spec)]
    kinds, weights = zip(*story_events.EVENTS, strict=True)
    length = 2 * draw.one_of((2, 3, 3, 4, 4, 5, 6))
    while len(parts) < length:
        event = draw.rng.choices(kinds, weights)[0](draw, cast, stage)
        if event is None or event[1] == stage:
            continue
        text, stage = event
        spec = exact_spec(stage.scene)
        parts += [TextPart(text), ImagePart(stage.scene, spec=spec, kept=len(parts) - 1)]
    if draw.chance(0.3):
        parts.append(TextPart(draw.one_of(END)))
    return Example("story", tuple(parts))


def recall(draw: Draw) -> Example:
    """Four to eight characters one after another, then one of the first of them again.

    Half of the time names alone are given with the pictures, so that what somebody is like can
    only be seen.
    """
    count = draw.one_of((4, 5, 6, 7, 8))
    asked = draw.rng.randrange(count - 3)
    names, items, parts = _met(draw, count, asked)
    item = items[asked]
    background = draw.background([item])
    text = draw.say(AGAIN, name=names[asked], bg=Word(background.words))
    constraint = Constraint(item.name, colour=item.tint)
    spec = Spec((constraint,), (), True, background.colours, item.style)
    back = TextPart(text, calls=(names[asked], asked))
    parts += [back, ImagePart(Scene(background, (item,)), spec=spec)]
    return Example("recall", tuple(parts))


def names(draw: Draw) -> Example:
    """Four to eight characters, then who each of them is, in another order; for training alone.

    A recall asks for one of them only, which teaches the way from a name to a picture slowly.
    """
    called, items, met = _met(draw, draw.one_of((4, 5, 6, 7, 8)), 0)
    parts = [part if isinstance(part, ImagePart) else replace(part, trained=False) for part in met]
    between = "\n"
    for place in draw.rng.sample(range(len(called)), len(called)):
        parts.append(TextPart(between + called[place], trained=False))
        parts.append(TextPart(f" {name_with_style(items[place])}"))
        between = ", "
    return Example("names", tuple(parts))


def _met(
    draw: Draw, count: int, asked: int
) -> tuple[list[str], list[SceneItem], list[TextPart | ImagePart]]:
    """Names, characters, and the pictures that introduce them; `asked` is who a split is about."""
    by_look, one_style = draw.chance(0.5), draw.one_of(draw.edition.styles)
    many_styles = draw.chance(0.5)
    names = draw.rng.sample(story_events.NAMES, count)
    parts: list[TextPart | ImagePart] = []
    items: list[SceneItem] = []
    for place, name in enumerate(names):
        # A split of styles is about the character that comes back.
        choices = draw.edition.styles if many_styles or place == asked else (one_style,)
        item = _character(draw if place == asked else _seen(draw), choices, items)
        if not many_styles and place == asked:
            one_style = item.style
        items.append(item)
        parts += _introduced(draw, name, item, by_look)
    return names, items, parts


def _seen(draw: Draw) -> Draw:
    """Choices for the characters that a split is not about."""
    return Draw(draw.rng.getrandbits(62), "seen", draw.edition.name, draw.longest_word)


def _character(draw: Draw, styles: tuple[str, ...], before: list[SceneItem]) -> SceneItem:
    known = [item.name for item in before]
    (obj,), style = draw.cast(1, lambda t: t.kind in CHARACTERS and t.label not in known, styles)
    tint = draw.tint(obj, style) if draw.chance(0.3) else None
    size = FILL if draw.edition.on_grid else draw.one_of((0.6, 0.7, 0.8))
    return SceneItem(obj.label, style, size=size, tint=tint)


def _introduced(
    draw: Draw, name: str, item: SceneItem, by_look: bool
) -> list[TextPart | ImagePart]:
    scene = Scene(draw.background([item]), (item,))
    obj = world_objects()[item.name]
    if by_look:
        return [TextPart(draw.say(BY_SIGHT, name=name)), ImagePart(scene, trained=False)]
    text = draw.say(BY_WORDS, name=name, a=obj.a(item.tint or ""))
    text += f" Drawn in {item.style} style on {Word(scene.background.words).a} background."
    spec = Spec(
        (Constraint(item.name, colour=item.tint),), (), True, scene.background.colours, item.style
    )
    return [TextPart(text), ImagePart(scene, spec=spec)]
