"""The objects of the scenes: which drawing, which everyday words, what kind of object.

A line of the tables is `LABEL`, `LABEL = WORD`, `LABEL = WORD / PLURAL` or
`LABEL = WORD / PLURAL / ONE`. The label is the English one of `emojibase-data` and finds the
drawing; the word is what people say; ONE is "a dog", given where it is not the word with its
article. The 144 objects of `vocabulary.OBJECTS` are the core that every model here has seen.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from nextstep.world.vocabulary import COLOURS, OBJECTS

_TABLES: dict[str, str] = {
    "face": """
        grinning face; smiling face with heart-eyes = heart-eyed face;
        smiling face with sunglasses = face with sunglasses / faces with sunglasses;
        sleeping face; loudly crying face = crying face; angry face; winking face
    """,
    "creature": """
        ghost; alien; robot; unicorn; dragon face = dragon; T-Rex = dinosaur
    """,
    "person": """
        baby = baby / babies; boy; girl; man = man / men; woman = woman / women;
        old man = old man / old men; old woman = old woman / old women; police officer; farmer;
        cook; astronaut; firefighter; princess = princess / princesses;
        superhero = superhero / superheroes; mage = wizard; fairy = fairy / fairies;
        mermaid; Santa Claus = Santa; cowboy hat face = cowboy; clown face = clown
    """,
    "hand": """
        waving hand; thumbs up = thumbs-up / thumbs-ups; victory hand; flexed biceps = strong arm;
        raised fist = fist
    """,
    "animal": """
        dog face = dog; cat face = cat; lion; tiger face = tiger; horse face = horse;
        cow face = cow; pig face = pig; rabbit face = rabbit; mouse face = mouse / mice; bear;
        panda; koala; fox = fox / foxes; frog; monkey face = monkey; elephant; turtle; snake; bat;
        wolf = wolf / wolves; raccoon; gorilla; zebra; giraffe; deer = deer / deer; camel;
        kangaroo; hippopotamus = hippo; rhinoceros = rhino; ewe = sheep / sheep; hedgehog;
        polar bear; sloth; beaver; crocodile
    """,
    "bird": """
        chicken = hen; baby chick = chick; penguin; owl; duck; rooster; turkey; eagle; swan;
        flamingo; peacock; parrot
    """,
    "sea animal": """
        whale; dolphin; fish = fish / fish; tropical fish = striped fish / striped fish; shark;
        octopus = octopus / octopuses; crab; lobster;
        jellyfish = jellyfish / jellyfish
    """,
    "insect": """
        butterfly = butterfly / butterflies; honeybee = bee; lady beetle = ladybug;
        bug = caterpillar; ant
    """,
    "small animal": "snail; spider",
    "plant": """
        rose; sunflower; tulip; cherry blossom = blossom; evergreen tree = pine tree;
        deciduous tree = round tree; palm tree; cactus = cactus / cacti;
        four leaf clover = clover; maple leaf = maple leaf / maple leaves; mushroom; potted plant
    """,
    "fruit": """
        grapes = grapes / bunches of grapes / a bunch of grapes; watermelon; lemon; banana;
        pineapple; red apple; green apple; pear; peach = peach / peaches;
        cherries = cherries / pairs of cherries / a pair of cherries;
        strawberry = strawberry / strawberries; avocado; mango = mango / mangoes;
        kiwi fruit = kiwi; coconut
    """,
    "vegetable": """
        tomato = tomato / tomatoes; eggplant; carrot; ear of corn = corn cob;
        potato = potato / potatoes; hot pepper = chili; bell pepper;
        broccoli = broccoli / pieces of broccoli / a piece of broccoli; onion
    """,
    "food": """
        bread = bread / loaves of bread / a loaf of bread;
        cheese wedge = cheese / pieces of cheese / a piece of cheese; hamburger;
        french fries = fries / boxes of fries / a box of fries; pizza; hot dog;
        sushi = sushi / pieces of sushi / a piece of sushi; ice cream; doughnut; cookie;
        birthday cake = cake; lollipop; croissant; pretzel;
        pancakes = pancakes / stacks of pancakes / a stack of pancakes; waffle;
        sandwich = sandwich / sandwiches; taco; cooking = fried egg; egg;
        popcorn = popcorn / boxes of popcorn / a box of popcorn; cupcake; pie;
        candy = candy / candies; honey pot;
        spaghetti = spaghetti / plates of spaghetti / a plate of spaghetti
    """,
    "drink": """
        hot beverage = coffee cup; beer mug; glass of milk = glass of milk / glasses of milk;
        teapot; wine glass = wine glass / wine glasses; baby bottle
    """,
    "place": """
        house; castle; mountain; volcano = volcano / volcanoes; tent; ferris wheel
    """,
    "vehicle": """
        bus = bus / buses; fire engine = fire truck; police car; automobile = car; tractor;
        bicycle = bike; sailboat; airplane; helicopter; rocket; taxi; ambulance;
        delivery truck = truck; racing car = race car; motorcycle; locomotive = train; canoe;
        passenger ship = ship; flying saucer = UFO; skateboard
    """,
    "sky": """
        crescent moon = moon; sun; star; cloud; rainbow; snowflake; ringed planet = planet;
        high voltage = lightning bolt; cloud with rain = rain cloud
    """,
    "toy": """
        balloon; soccer ball; basketball; game die = dice / dice; snowman = snowman / snowmen;
        jack-o-lantern = pumpkin; teddy bear; kite;
        bullseye = target; american football = football; baseball; volleyball; boxing glove
    """,
    "music": """
        guitar; trumpet; drum; saxophone; violin; microphone; musical note = music note; bell;
        headphone = headphones / pairs of headphones / a pair of headphones
    """,
    "clothes": """
        glasses = glasses / pairs of glasses / a pair of glasses; t-shirt;
        dress = dress / dresses; high-heeled shoe; crown; top hat;
        jeans = jeans / pairs of jeans / a pair of jeans; scarf = scarf / scarves; backpack;
        handbag; running shoe = sneaker; graduation cap; billed cap = cap; ring;
        gloves = gloves / pairs of gloves / a pair of gloves;
        sunglasses = sunglasses / pairs of sunglasses / a pair of sunglasses
    """,
    "tool": """
        scissors = scissors / pairs of scissors / a pair of scissors; pencil; key; hammer;
        umbrella; axe; screwdriver; wrench = wrench / wrenches; magnet; ladder;
        paintbrush = paintbrush / paintbrushes; crayon; gear;
        broom; bucket; toothbrush = toothbrush / toothbrushes;
        magnifying glass tilted left = magnifying glass / magnifying glasses; telescope; shield
    """,
    "thing": """
        skull; pile of poo = poo / piles of poo / a pile of poo; red heart; broken heart;
        fire = flame; droplet = water drop; alarm clock; Christmas tree; wrapped gift = gift;
        trophy = trophy / trophies; gem stone = diamond; telephone; television = TV; camera;
        light bulb; books = stack of books / stacks of books; envelope;
        locked = lock; bomb; anchor; hourglass done = hourglass / hourglasses; candle;
        mobile phone = phone; laptop; closed book = book; coin; crystal ball; magic wand;
        artist palette = palette; ribbon; vertical traffic light = traffic light; bone; brain;
        tooth = tooth / teeth; door; bed; chair; mirror; basket
    """,
}  # fmt: skip

TONED: tuple[str, ...] = (
    "baby", "boy", "girl", "man", "woman", "old man", "old woman", "police officer", "cook",
    "princess", "waving hand", "thumbs up", "victory hand", "flexed biceps", "raised fist",
)  # fmt: skip
"""Labels whose skin tones are in the atlas; the mono style draws none of them."""

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class WorldObject:
    """An object that scenes can hold.

    Attributes:
        label: emojibase's English name, the key of its drawings.
        word: what people call it.
        plural: several of it.
        one: the word with what stands before it, e.g. "a dog", "a pair of scissors".
        kind: which table it stands in.
        core: whether it is one of `vocabulary.OBJECTS`.
    """

    label: str
    word: str
    plural: str
    one: str
    kind: str
    core: bool

    def a(self, adjective: str = "") -> str:
        """One of it, e.g. "an orange dog"."""
        if not adjective:
            return self.one
        return with_article(f"{adjective} {self.one.split(' ', 1)[1]}")

    def the(self, adjective: str = "") -> str:
        """The one that is known, e.g. "the orange dog"."""
        return " ".join(["the", *adjective.split(), self.word])

    def count(self, number: int, adjective: str = "") -> str:
        """Some of it in words, e.g. "three orange dogs"; one is "one dog"."""
        noun = self.plural if number != 1 else self.one.split(" ", 1)[1]
        return " ".join([NUMBERS[number], *adjective.split(), noun])

    @property
    def is_plural_word(self) -> bool:
        """Whether the word alone takes "are": scissors, grapes."""
        return self.one.split(" ", 1)[1] != self.word and self.word.endswith("s")

    @property
    def names_a_colour(self) -> bool:
        """Whether the word has a colour in it, so that the object is never painted another."""
        return any(word in COLOURS for word in self.word.split())

    @property
    def toned(self) -> bool:
        """Whether it is drawn in several skin tones."""
        return self.label in TONED


def with_article(noun: str) -> str:
    """The noun with "a" or "an" before it, by the sound it begins with."""
    first = noun.split(maxsplit=1)[0].lower()
    said_with_vowel = first[0] in "aeiou" and not first.startswith(("uni", "ufo", "eu", "one"))
    return f"{'an' if said_with_vowel or first.startswith('hour') else 'a'} {noun}"


def with_right_articles(text: str) -> str:
    """The text with "a" and "an" as the words after them want it."""
    return re.sub(r"\b(a|an) (\w+)", lambda found: with_article(found[2]), text)


class Word(str):
    """A word for a template: "{w}" is the word, "{w.a}" has its article."""

    __slots__ = ()

    @property
    def a(self) -> str:
        """With "a" or "an" before it."""
        return with_article(self)


def plural_of(word: str) -> str:
    """The regular plural."""
    return f"{word}es" if word.endswith(("s", "sh", "ch", "x")) else f"{word}s"


@functools.cache
def world_objects() -> dict[str, WorldObject]:
    """Label -> object, the core ones first and in the order of `vocabulary.OBJECTS`."""
    found: dict[str, WorldObject] = {}
    for kind, table in _TABLES.items():
        for line in table.split(";"):
            label, _, said = (piece.strip() for piece in line.partition("="))
            words = [word.strip() for word in said.split("/")] if said else [label]
            word = words[0]
            plural = words[1] if len(words) > 1 else plural_of(word)
            one = words[2] if len(words) > 2 else with_article(word)
            found[label] = WorldObject(label, word, plural, one, kind, label in OBJECTS)
    extended = [label for label in found if label not in OBJECTS]
    return {label: found[label] for label in (*OBJECTS, *extended)}
