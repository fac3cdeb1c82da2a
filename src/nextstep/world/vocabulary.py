"""What the emoji world is made of: objects, drawing styles and background colours.

The objects are well-known objects that every training style draws. Names are the English labels
of `emojibase-data`, so a caption can be looked up without a table of our own.
"""

from __future__ import annotations

import hashlib
import random

OBJECTS: tuple[str, ...] = tuple(
    name.strip()
    for name in """
    grinning face; smiling face with heart-eyes; smiling face with sunglasses; sleeping face;
    loudly crying face; angry face; skull; ghost; alien; robot; pile of poo; red heart;
    broken heart;
    dog face; cat face; lion; tiger face; horse face; unicorn; cow face; pig face; rabbit face;
    mouse face; bear; panda; koala; fox; frog; monkey face; chicken; baby chick; penguin; owl;
    duck; elephant; turtle; snake; whale; dolphin; fish; tropical fish; shark; octopus; crab;
    snail; butterfly; honeybee; lady beetle; spider;
    rose; sunflower; tulip; cherry blossom; evergreen tree; deciduous tree; palm tree; cactus;
    four leaf clover; maple leaf; mushroom;
    grapes; watermelon; lemon; banana; pineapple; red apple; green apple; pear; peach; cherries;
    strawberry; tomato; avocado; eggplant; carrot; ear of corn; bread; cheese wedge; hamburger;
    french fries; pizza; hot dog; sushi; ice cream; doughnut; cookie; birthday cake; lollipop;
    hot beverage; beer mug;
    house; castle; bus; fire engine; police car; automobile; tractor; bicycle; sailboat;
    airplane; helicopter; rocket; alarm clock; crescent moon; sun; star; cloud; rainbow;
    umbrella; snowflake; snowman; fire; droplet;
    Christmas tree; jack-o-lantern; balloon; wrapped gift; trophy; soccer ball; basketball;
    game die; glasses; t-shirt; dress; high-heeled shoe; crown; top hat; gem stone; bell; guitar;
    trumpet; drum; telephone; television; camera; light bulb; books; envelope; pencil; scissors;
    locked; key; hammer; bomb
    """.split(";")
)

COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (24, 24, 24),
    "gray": (150, 150, 150),
    "red": (214, 48, 49),
    "orange": (243, 146, 55),
    "yellow": (250, 211, 80),
    "green": (76, 175, 80),
    "blue": (66, 133, 244),
    "purple": (142, 68, 173),
    "pink": (248, 165, 194),
}
"""Background colours by name, sRGB 0..255."""

STYLES: tuple[str, ...] = ("noto", "twemoji", "flat", "3d", "mono")
"""Training styles as they are called in captions; `sources.STYLE_PACKAGES` says whose they are."""

TOKENIZER_STYLES: tuple[str, ...] = (*STYLES, "blob")
"""Styles the image tokenizer is trained on: one more, whose drawings need no captions."""

TONES: tuple[str, ...] = ("light", "medium-light", "medium", "medium-dark", "dark")
"""Skin tones by name, in the order of Unicode's modifiers 1 to 5."""

HELD_OUT_STYLES: tuple[str, ...] = ("openmoji", "emojione-v1")
"""Never trained on: their licence is share-alike, and an unseen style is a fair test."""


def background_allowed(style: str, colour: str) -> bool:
    """A black drawing on a black background shows nothing, so that pair is left out."""
    return not (style == "mono" and colour == "black")


def is_held_out(name: str, style: str, share: float = 0.05) -> bool:
    """Whether this object in this style is kept out of training, to test new combinations.

    A pure function of the two words, so training and evaluation cannot disagree.
    """
    digest = hashlib.sha256(f"{name}|{style}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


def sample_objects(count: int, seed: int) -> list[str]:
    """`count` object names drawn by `seed` alone: the fixed lists of the galleries."""
    return random.Random(seed).sample(OBJECTS, count)
