"""What can happen in a story, on a small stage with fixed places.

The hero stands on the left, a friend on the right, something found lies between them, and one
object can be in the sky. Every event changes one of these and says so in a sentence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from nextstep.world.draw import CHARACTERS, Draw
from nextstep.world.drawings import visible_on
from nextstep.world.lexicon import Word, WorldObject
from nextstep.world.scenes import Background, Scene, SceneItem, Sign, grid_sign
from nextstep.world.tasks.story_wording import (
    APPEAR,
    AROUND,
    CHANGE_SKY,
    CLEAR_SKY,
    EAT,
    FIND,
    GROW,
    LEAVE,
    LOSE,
    MEET,
    NORMAL,
    PAINT,
    SHRINK,
    SIGN,
    SWAP,
)

NAMES = (
    "Alex", "Ari", "Ash", "Bo", "Charlie", "Dani", "Jo", "Jules", "Kim", "Kit", "Lou", "Max",
    "Mika", "Niko", "Noa", "Quinn", "Remy", "Rio", "Robin", "Rory", "Sam", "Sasha", "Sol", "Toni",
)  # fmt: skip
"""Names that suit anybody."""

FINDS = ("food", "fruit", "vegetable", "toy", "music", "clothes", "tool", "thing", "plant")
EATEN = ("food", "fruit", "vegetable")
SKY = (
    "sun", "crescent moon", "star", "cloud", "rainbow", "cloud with rain", "balloon", "kite",
    "airplane", "helicopter", "rocket", "flying saucer", "high voltage", "ringed planet",
    "snowflake",
)  # fmt: skip
"""Labels of what can be in the sky."""

ROLES = ("sky", "find", "hero", "friend")
"""Parts in a story, in the order in which they are drawn."""


@dataclass(frozen=True)
class Cast:
    """Who and what a story is about: all may share pictures.

    Attributes:
        hero: the main character.
        friend: another character.
        find: something that can be found.
        skies: two objects for the sky.
        names: of hero and friend.
        style: of all drawings.
    """

    hero: WorldObject
    friend: WorldObject
    find: WorldObject
    skies: tuple[WorldObject, WorldObject]
    names: tuple[str, str]
    style: str


def choose_cast(draw: Draw) -> Cast:
    """Characters and objects that may share a picture."""

    def somebody(obj: WorldObject) -> bool:
        return obj.kind in CHARACTERS

    def sky(obj: WorldObject) -> bool:
        return obj.label in SKY

    def findable(obj: WorldObject) -> bool:
        return obj.kind in FINDS and obj.label not in SKY and not obj.is_plural_word

    found, style = draw.cast(5, [somebody, somebody, findable, sky, sky])
    names = draw.rng.sample(NAMES, 2)
    return Cast(found[0], found[1], found[2], (found[3], found[4]), (names[0], names[1]), style)


@dataclass(frozen=True)
class StoryStage:
    """One moment of a story.

    Attributes:
        background: behind all.
        roles: who is there: role -> item.
        sign: letters on a sign, in the sky's place.
        on_grid: whether the sign stands on the grid of image tokens.
    """

    background: Background
    roles: dict[str, SceneItem] = field(default_factory=dict)
    sign: str | None = None
    on_grid: bool = False

    @property
    def scene(self) -> Scene:
        """Its picture."""
        items = tuple(self.roles[role] for role in ROLES if role in self.roles)
        sign = None
        if self.sign:
            sign = grid_sign(self.sign, 0) if self.on_grid else Sign(self.sign, y=0.17, height=0.24)
        return Scene(self.background, items, sign)

    def having(self, role: str, item: SceneItem) -> StoryStage:
        """The stage with somebody added or changed."""
        return replace(self, roles={**self.roles, role: item})

    def without(self, role: str) -> StoryStage:
        """The stage with somebody gone."""
        return replace(self, roles={k: v for k, v in self.roles.items() if k != role})


def placed(draw: Draw, obj: WorldObject, style: str, role: str) -> SceneItem:
    """An object in the place of a role."""
    return SceneItem(obj.label, style, *draw.layout.roles[role])


Event = tuple[str, StoryStage]


def _hero_size(draw: Draw, stage: StoryStage) -> str:
    size = stage.roles["hero"].size
    return next(word for word, place in draw.layout.hero_sizes.items() if place[2] == size)


def meet(draw: Draw, cast: Cast, stage: StoryStage) -> Event | None:
    """A friend comes."""
    if "friend" in stage.roles or stage.roles["hero"].x > 0.5:
        return None
    who, other = cast.names
    text = draw.say(MEET, who=who, other=other, a=cast.friend.a())
    return text, stage.having("friend", placed(draw, cast.friend, cast.style, "friend"))


def find(draw: Draw, cast: Cast, stage: StoryStage) -> Event | None:
    """Something is found."""
    if "find" in stage.roles or (stage.sign and stage.on_grid) or _hero_size(draw, stage) == "big":
        return None
    who = draw.one_of(cast.names) if "friend" in stage.roles else cast.names[0]
    text = draw.say(FIND, who=who, a=cast.find.a())
    return text, stage.having("find", placed(draw, cast.find, cast.style, "find"))


def lose(draw: Draw, cast: Cast, stage: StoryStage) -> Event | None:
    """What was found is eaten or lost."""
    if "find" not in stage.roles:
        return None
    who = draw.one_of(cast.names) if "friend" in stage.roles else cast.names[0]
    eaten = cast.find.kind in EATEN and draw.chance(0.7)
    return draw.say(EAT if eaten else LOSE, who=who, it=cast.find.the()), stage.without("find")


def sky(draw: Draw, cast: Cast, stage: StoryStage) -> Event | None:
    """Something comes into the sky, changes, or leaves it."""
    if stage.sign:
        return None
    first, second = cast.skies
    now = stage.roles.get("sky")
    if now is None:
        text = draw.say(APPEAR, a=first.a())
        return _sentence(text), stage.having("sky", placed(draw, first, cast.style, "sky"))
    old, new = (first, second) if now.name == first.label else (second, first)
    if draw.chance(0.3):
        return _sentence(draw.say(CLEAR_SKY, it=old.the())), stage.without("sky")
    text = draw.say(CHANGE_SKY, it=old.the(), a=new.a())
    return _sentence(text), stage.having("sky", placed(draw, new, cast.style, "sky"))


def paint(draw: Draw, cast: Cast, stage: StoryStage) -> Event | None:
    """A character gets another colour."""
    role = draw.one_of(["hero", *(["friend"] if "friend" in stage.roles else [])])
    obj, who = (cast.hero, cast.names[0]) if role == "hero" else (cast.friend, cast.names[1])
    item = stage.roles[role]
    around = stage.background.colours
    tint = draw.tint(obj, cast.style, [*around, item.tint or ""])
    if tint is None or not all(visible_on(item.name, item.style, tint, c) for c in around):
        return None
    text = draw.say(PAINT, who=who, colour=tint)
    return text, stage.having(role, replace(item, tint=tint))


def resize(draw: Draw, cast: Cast, stage: StoryStage) -> Event | None:
    """The hero grows, shrinks, or gets the usual size back."""
    hero, now = stage.roles["hero"], _hero_size(draw, stage)
    if hero.x > 0.5:
        return None
    sizes = draw.layout.hero_sizes
    grown = "big" in sizes and "find" not in stage.roles
    size = draw.one_of(["small", "big"] if grown else ["small"]) if now == "normal" else "normal"
    phrasings = {"big": GROW, "small": SHRINK, "normal": NORMAL}[size]
    x, y, extent = sizes[size]
    text = draw.say(phrasings, who=cast.names[0])
    return text, stage.having("hero", replace(hero, x=x, y=y, size=extent))


def leave(draw: Draw, cast: Cast, stage: StoryStage) -> Event | None:
    """The friend goes."""
    if "friend" not in stage.roles:
        return None
    return draw.say(LEAVE, other=cast.names[1]), stage.without("friend")


def swap(draw: Draw, cast: Cast, stage: StoryStage) -> Event | None:
    """Hero and friend change places."""
    if "friend" not in stage.roles or _hero_size(draw, stage) != "normal":
        return None
    one, two = stage.roles["hero"], stage.roles["friend"]
    text = draw.say(SWAP, who=cast.names[0], other=cast.names[1])
    after = stage.having("hero", replace(one, x=two.x)).having("friend", replace(two, x=one.x))
    return text, after


def around(draw: Draw, cast: Cast, stage: StoryStage) -> Event | None:
    """Another background."""
    background = draw.background(list(stage.roles.values()))
    if background == stage.background:
        return None
    return draw.say(AROUND, bg=Word(background.words)), replace(stage, background=background)


def put_up_sign(draw: Draw, cast: Cast, stage: StoryStage) -> Event | None:
    """A sign in the empty sky."""
    if stage.sign or "sky" in stage.roles or _hero_size(draw, stage) == "big":
        return None
    if stage.on_grid and "find" in stage.roles:
        return None  # a sign on the grid takes all of the upper rows
    text = draw.sign_text()
    return draw.say(SIGN, who=cast.names[0], text=text), replace(stage, sign=text)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


EVENTS: list[tuple[Callable[[Draw, Cast, StoryStage], Event | None], int]] = [
    (meet, 8), (find, 4), (lose, 3), (sky, 4), (paint, 2), (resize, 2), (leave, 1), (swap, 2),
    (around, 2), (put_up_sign, 1),
]  # fmt: skip
"""What can happen, with how often."""
