"""The vocabulary of a model that was trained on the world, for its folder.

What is taught may be narrower than the whole world, so names, styles and colours are lists.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from nextstep.errors import NextStepError
from nextstep.text.vocabulary import Sheet, Vocabulary
from nextstep.text.wording import words_in
from nextstep.world import captions
from nextstep.world.drawings import atlas
from nextstep.world.editions import edition
from nextstep.world.lexicon import plural_of, world_objects
from nextstep.world.vocabulary import COLOURS, OBJECTS, STYLES

SIDE, COLUMNS = 48, 12
"""Pixels of a name's picture and pictures in a row of the sheet."""
TEXTS = 1500
"""Texts of a live source whose words count as known."""

_SYNONYMS = """
    grinning face = smiley, smiling face, happy face; loudly crying face = sad face;
    smiling face with heart-eyes = face in love; angry face = mad face;
    sleeping face = sleepy face, tired face; skull = death's head; ghost = spook;
    alien = extraterrestrial; robot = bot; pile of poo = poop;
    red heart = heart, love; broken heart = heartbreak;
    dog face = puppy, hound, doggy; cat face = kitten, kitty; lion = lion face, lioness;
    horse face = pony; cow face = cattle; pig face = piglet, hog;
    rabbit face = bunny, hare; mouse face = rat; bear = bear face, brown bear;
    panda = panda bear; koala = koala bear; fox = vixen, fox face; frog = toad, frog face;
    monkey face = ape, chimp; chicken = hen; baby chick = chick; duck = mallard;
    turtle = tortoise; snake = serpent, viper; fish = blue fish; honeybee = bee, bumblebee;
    lady beetle = ladybird, beetle; octopus = squid; snail = slug;
    rose = red rose; cherry blossom = blossom; evergreen tree = fir, fir tree, pine, conifer;
    deciduous tree = tree, oak, leaf tree; palm tree = palm; four leaf clover = clover, shamrock;
    maple leaf = leaf; mushroom = toadstool; grapes = grape; red apple = apple;
    cherries = cherry; ear of corn = corn, maize; eggplant = aubergine; bread = loaf, loaf of bread;
    cheese wedge = cheese; hamburger = burger, cheeseburger; french fries = fries, chips;
    pizza = slice of pizza; hot dog = hotdog; ice cream = icecream; doughnut = donut;
    cookie = biscuit; birthday cake = cake; lollipop = sweet; hot beverage = coffee, tea, cup, mug,
    cup of coffee, cup of tea; beer mug = beer, glass of beer;
    house = home, building, cottage; castle = fortress; bus = coach;
    fire engine = fire truck, firetruck; police car = patrol car;
    automobile = auto, vehicle, sedan;
    bicycle = bike, cycle; sailboat = sailing boat, boat, ship, yacht;
    airplane = plane, aeroplane, aircraft, jet; helicopter = chopper;
    rocket = spaceship, spacecraft;
    alarm clock = clock; crescent moon = moon; sun = sunshine; star = yellow star;
    umbrella = parasol; snowflake = snow; fire = flame, flames;
    droplet = drop, water, drop of water;
    Christmas tree = xmas tree; jack-o-lantern = pumpkin, halloween pumpkin;
    wrapped gift = gift, present; trophy = cup trophy, prize; soccer ball = football, ball;
    game die = die, dice; glasses = spectacles, eyeglasses; t-shirt = tee shirt, shirt, tshirt;
    dress = gown; high-heeled shoe = high heel, heels, shoe; top hat = hat;
    gem stone = gem, diamond, jewel, gemstone; guitar = acoustic guitar; drum = drums;
    telephone = phone;
    television = tv, tv set, telly; light bulb = bulb, lamp, lightbulb;
    books = book, stack of books;
    envelope = letter, mail; pencil = pen; locked = lock, padlock; bomb = explosive
"""
_STYLES: dict[str, tuple[str, ...]] = {
    "twemoji": ("twitter",),
    "flat": ("flat design",),
    "3d": ("3-d", "three-dimensional", "three dimensional"),
    "mono": ("monochrome", "black and white", "line art"),
}
_COLOURS: dict[str, tuple[str, ...]] = {"gray": ("grey",), "purple": ("violet",)}
EMOJI: Mapping[str, str] = dict(zip(
    OBJECTS,
    "😀😍😎😴😭😠💀👻👽🤖💩❤💔🐶🐱🦁🐯🐴🦄🐮🐷🐰🐭🐻🐼🐨🦊🐸🐵🐔🐤🐧🦉🦆🐘🐢🐍🐋🐬🐟🐠🦈🐙🦀🐌"
    "🦋🐝🐞🕷🌹🌻🌷🌸🌲🌳🌴🌵🍀🍁🍄🍇🍉🍋🍌🍍🍎🍏🍐🍑🍒🍓🍅🥑🍆🥕🌽🍞🧀🍔🍟🍕🌭🍣🍨🍩🍪🎂🍭☕🍺"
    "🏠🏰🚌🚒🚓🚗🚜🚲⛵✈🚁🚀⏰🌙☀⭐☁🌈☂❄☃🔥💧🎄🎃🎈🎁🏆⚽🏀🎲👓👕👗👠👑🎩💎🔔🎸🎺🥁☎📺📷"
    "💡📚✉✏✂🔒🔑🔨💣",
    strict=True,
))  # fmt: skip
"""Name -> its character in Unicode, without the variation selector; of emojibase-data."""

_PLACEHOLDER = re.compile(r"{\w+(?:\.\w+)?}")


def world_vocabulary(
    names: Sequence[str] = OBJECTS,
    styles: Sequence[str] = STYLES,
    colours: Sequence[str] = tuple(COLOURS),
    texts: Iterable[str] = (),
    notes: Mapping[str, str] | None = None,
) -> Vocabulary:
    """What a model knows that was taught these names in these styles on these backgrounds.

    Args:
        names: labels of objects; their everyday words and plurals become synonyms.
        styles, colours: as captions say them.
        texts: of its training, whose words are known too.
        notes: what is to be known about a task, see `Vocabulary.notes`.

    Raises:
        NextStepError: for a name, a style or a colour that the world does not have, or none.
    """
    for kind, asked, known in (
        ("object", names, world_objects()), ("style", styles, STYLES), ("colour", colours, COLOURS),
    ):  # fmt: skip
        unknown = [one for one in asked if one not in known]
        if unknown or not asked:
            raise NextStepError(f"the world has no {kind} '{unknown[0] if unknown else ''}'")
    framing = [form for form, _ in captions.CAPTIONS]
    framing += [*captions.BACKGROUND_EDITS.trained, *captions.STYLE_EDITS.trained]
    plain = [_PLACEHOLDER.sub(" ", form) for form in framing] + ["an"]
    return Vocabulary(
        names=_synonyms(names),
        styles={style: _STYLES.get(style, ()) for style in styles},
        colours={colour: COLOURS[colour] for colour in colours},
        colour_synonyms={c: _COLOURS[c] for c in colours if c in _COLOURS},
        words=words_in([*plain, *texts]),
        examples=tuple(
            captions.default_caption(name, styles[i % len(styles)], colours[i % len(colours)])
            for i, name in enumerate(_examples(names))
        ),
        edits=(
            f"make the background {colours[-1]}",
            *(f"make it {style} style" for style in styles[-2:]),
        ),
        notes=dict(notes or {}),
    )


def vocabulary_of(sources: Iterable[Any]) -> Vocabulary:
    """The words of live sources: names, styles and backgrounds that any of them draws, pictured.

    Args:
        sources: of documents, as recipes name them.
    """
    names: dict[str, None] = {}
    styles: dict[str, None] = {}
    colours: dict[str, None] = {}
    words: set[str] = set()
    for source in sources:
        # Sources of single objects have no edition, but all styles of the core or of everything.
        whole = "core-144" if getattr(source, "core", False) else "full"
        own = edition(getattr(source, "edition", whole))
        narrow = hasattr(source, "edition")
        names |= dict.fromkeys(own.objects)
        styles |= dict.fromkeys(own.styles)
        colours |= dict.fromkeys(own.backgrounds if narrow else COLOURS)
        words |= words_in(itertools.islice(source.texts(), TEXTS))
    return pictured(world_vocabulary(tuple(names), tuple(styles), tuple(colours), sorted(words)))


def pictured(vocabulary: Vocabulary) -> Vocabulary:
    """The same with a drawing of every name, in its first style."""
    canvas = _drawings(list(vocabulary.names), next(iter(vocabulary.styles)))
    contents = io.BytesIO()
    canvas.save(contents, "WEBP", quality=80, method=6)
    return replace(vocabulary, sheet=Sheet(SIDE, COLUMNS, contents.getvalue()))


def _examples(names: Sequence[str]) -> list[str]:
    """Three names for examples: favourites first."""
    favourites = [name for name in ("red apple", "fox", "castle") if name in names]
    return [*favourites, *(name for name in names if name not in favourites)][:3]


def _synonyms(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Other words for every name; a word that is another taught name's own is left to it."""
    table = dict(_table())
    own = {name.lower() for name in names}
    found = {}
    for name in names:
        obj = world_objects()[name]
        said = [obj.word, obj.plural, obj.one.split(" ", 1)[1], *table.get(name, ())]
        said += [plural_of(name)] if name == obj.word else []
        said += [EMOJI[name]] if name in EMOJI else []
        kept = dict.fromkeys(word for word in said if word.lower() not in own)
        found[name] = tuple(kept)
    return found


def _table() -> list[tuple[str, tuple[str, ...]]]:
    entries = []
    for line in _SYNONYMS.split(";"):
        name, _, others = line.partition("=")
        entries.append((name.strip(), tuple(" ".join(one.split()) for one in others.split(","))))
    return entries


def _drawings(names: Sequence[str], style: str) -> Image.Image:
    """Drawings of the names in order, `COLUMNS` in a row, on white."""
    rows = -(-len(names) // COLUMNS)
    canvas = Image.new("RGB", (COLUMNS * SIDE, rows * SIDE), "white")
    for place, name in enumerate(names):
        drawing = atlas().drawing(name, style)
        drawing.thumbnail((SIDE - 8, SIDE - 8), Image.Resampling.LANCZOS)
        left = place % COLUMNS * SIDE + (SIDE - drawing.width) // 2
        top = place // COLUMNS * SIDE + (SIDE - drawing.height) // 2
        canvas.paste(drawing, (left, top), drawing)
    return canvas
