"""Looking up what stood before: pairs of words, and the second ones asked for in another order.

Edits, questions and next states all need it: the instruction names an object, and the line about
the picture says where that one is. Scenes ask for it once a sample, which teaches it slowly.
"""

from __future__ import annotations

from nextstep.world.colours import TINTS
from nextstep.world.draw import Draw
from nextstep.world.examples import Example, TextPart
from nextstep.world.lexicon import NUMBERS
from nextstep.world.spec import REGIONS

ASKED = 12
"""Pairs that are asked for in one sample; the same ones come back until then."""


def lookup(draw: Draw) -> Example:
    """Two to six pairs on a line, and behind it pairs of which the second word is learned."""
    words = draw.rng.sample([thing.word for thing in draw.objects], draw.rng.randint(2, 6))
    values = [*REGIONS, *TINTS, *NUMBERS[1:5]]
    pairs = [(word, draw.one_of(values)) for word in words]
    line = ", ".join(f"{word} {value}" for word, value in pairs)
    parts = [TextPart(f"{line}\n", trained=False)]
    between = ""
    for _ in range(-(-ASKED // len(pairs))):
        for word, value in draw.rng.sample(pairs, len(pairs)):
            parts += [TextPart(f"{between}{word}", trained=False), TextPart(f" {value}")]
            between = ", "
    return Example("lookup", tuple(parts))
