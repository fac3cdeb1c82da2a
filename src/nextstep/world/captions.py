"""What is said about a picture, and how a change is asked for."""

from __future__ import annotations

import random

from nextstep.world.lexicon import Word, with_right_articles
from nextstep.world.splits import Phrasings

CAPTIONS: tuple[tuple[str, float], ...] = (
    ("{name}, {style} style, {colour} background", 0.55),
    ("a {name} in {style} style on a {colour} background", 0.15),
    ("{style} style {name}, {colour} background", 0.1),
    ("{name}, drawn in {style} style on a {colour} background", 0.1),
    ("{name}", 0.05),
    ("{name}, {style} style", 0.05),
)
"""Caption forms with their shares; the first is the one that galleries use."""

BACKGROUND_EDITS = Phrasings("""
    make the background {bg}
    change the background to {bg}
    put it on {bg.a} background
    set the background to {bg}
    the background should be {bg}
    turn the background {bg}
    use {bg.a} background
    give it {bg.a} background
    show it on {bg.a} background
    draw it on {bg.a} background
    let it stand on {bg.a} background
    put in {bg.a} background instead
    let the background be {bg}
    paint the background {bg}
    i want {bg.a} background
    {bg.a} background instead
    put it in front of {bg.a} background
    put another background there, {bg}
""")
STYLE_EDITS = Phrasings("""
    make it {style} style
    change the style to {style}
    redraw it in {style} style
    convert it to {style} style
    draw it in {style} style instead
    use the {style} style
    the same picture in {style} style
    change it to {style} style
    set the style to {style}
    the style should be {style}
    let the style be {style}
    turn it into {style} style
    now in {style} style
    change the picture into {style} style
    change how it is drawn to {style} style
    change it into the {style} style
    now change to {style} style
    make the style {style}
""")


def caption(rng: random.Random, name: str, style: str, colour: str, one: str | None = None) -> str:
    """One phrasing of a single-object picture.

    Args:
        rng: chooses.
        name, style, colour: of the picture.
        one: the name with what stands before it, e.g. "a pair of scissors"; None for an article.
    """
    forms, shares = zip(*CAPTIONS, strict=True)
    form: str = rng.choices(forms, shares)[0]
    if one is not None:
        form = form.replace("a {name}", one)
    return with_right_articles(form.format(name=name, style=style, colour=colour))


def default_caption(name: str, style: str, colour: str) -> str:
    """The phrasing that galleries and examples use."""
    return CAPTIONS[0][0].format(name=name, style=style, colour=colour)


def style_edit(rng: random.Random, style: str) -> str:
    """One phrasing of a change of style."""
    return rng.choice(STYLE_EDITS.trained).format(style=style)


def background_edit(rng: random.Random, colour: str) -> str:
    """One phrasing of a change of background."""
    return rng.choice(BACKGROUND_EDITS.trained).format(bg=Word(colour))
