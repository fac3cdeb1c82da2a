"""Editions of the world: how much of it a model is asked to learn, named in every score.

The `core` editions are small enough to be mastered: few objects in few styles on plain backgrounds,
everything on the grid of image tokens, and one answer to whatever a caption leaves open. `full` is
the whole world: 300 objects in five styles, anywhere and of any size.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from nextstep.errors import NextStepError
from nextstep.world.vocabulary import COLOURS, OBJECTS, STYLES

_CORE_48 = """
    dog face; cat face; lion; panda; fox; frog; pig face; rabbit face; penguin; owl; elephant;
    octopus; butterfly; unicorn; robot; ghost;
    sun; star; crescent moon; rainbow; airplane; rocket;
    banana; strawberry; pineapple; carrot; pizza; hamburger; doughnut; watermelon; red apple;
    sunflower; cactus; palm tree; mushroom;
    house; bus; sailboat; guitar; soccer ball; umbrella; key; crown; light bulb; skull; red heart;
    bell; wrapped gift
"""
_MORE_96 = """
    bear; koala; tiger face; monkey face; cow face; horse face; chicken; duck; turtle; snail; crab;
    whale; honeybee; spider; alien; snake;
    cloud; snowflake; balloon; helicopter;
    lemon; grapes; cherries; avocado; ear of corn; cheese wedge; french fries; ice cream;
    birthday cake; hot dog; lollipop; eggplant;
    evergreen tree; rose; maple leaf; four leaf clover;
    castle; automobile; bicycle; alarm clock; camera; trophy; game die; snowman; scissors; hammer;
    top hat; fire
"""
_CORE_BACKGROUNDS = ("white", "gray", "yellow", "green", "blue", "pink", "orange", "purple")


@dataclass(frozen=True)
class Edition:
    """What a world is made of.

    Attributes:
        name: in options and scores.
        objects: labels of what can be in its scenes.
        styles: drawing styles; the first is drawn where a caption names none.
        backgrounds: names of plain colours; the first is drawn where a caption names none.
        gradients: share of backgrounds that fade from one colour into another.
        on_grid: whether objects stand on the grid of image tokens, in places and sizes that
            follow from the caption; else anywhere and of any size.
        longest_word: letters of a sign at most.
        holds_out_styles: whether some objects in some styles are kept out of training.
    """

    name: str
    objects: tuple[str, ...]
    styles: tuple[str, ...] = STYLES
    backgrounds: tuple[str, ...] = tuple(COLOURS)
    gradients: float = 0.0
    on_grid: bool = True
    longest_word: int = 4
    holds_out_styles: bool = False


def _labels(text: str) -> tuple[str, ...]:
    return tuple(label.strip() for label in text.split(";"))


@functools.cache
def editions() -> dict[str, Edition]:
    """Every edition by name, smallest first."""
    from nextstep.world.lexicon import world_objects

    core = _labels(_CORE_48)
    more = (*core, *_labels(_MORE_96))
    return {
        "core-48": Edition("core-48", core, ("noto", "mono"), _CORE_BACKGROUNDS),
        "core-96": Edition("core-96", more, ("noto", "mono", "3d"), _CORE_BACKGROUNDS),
        "core-144": Edition("core-144", OBJECTS, STYLES, _CORE_BACKGROUNDS),
        "full": Edition(
            "full", tuple(world_objects()), gradients=0.15, on_grid=False, longest_word=8,
            holds_out_styles=True,
        ),
    }  # fmt: skip


def edition(name: str) -> Edition:
    """The edition of a name.

    Raises:
        NextStepError: when there is none.
    """
    if name not in editions():
        raise NextStepError(
            f"the world has no edition '{name}'; choose from {', '.join(editions())}"
        )
    return editions()[name]
