"""Phrasings that several tasks share: where objects are, style and background around a phrase."""

from __future__ import annotations

from nextstep.world.draw import Draw
from nextstep.world.lexicon import Word, WorldObject
from nextstep.world.scenes import Background
from nextstep.world.spec import Spec
from nextstep.world.splits import Phrasings

FRAMES = Phrasings("""
    {p}, {style} style, {bg} background
    {p} in {style} style on {bg.a} background
    {p} on {bg.a} background, {style} style
    {p}, drawn in {style} style on {bg.a} background
    {style} style picture of {p}, {bg} background
    {bg.a} background with {p}, {style} style
    {p} in front of {bg.a} background, in {style} style
    {style.a} style drawing of {p}, the background is {bg}
    {p}, {bg} background, {style} style
    {p} on {bg.a} background, drawn in {style} style
    {bg.a} background and {p}, {style} style
    {bg} background, {style} style, {p}
    {style} style: {p} on {bg.a} background
    in {style} style: {p}, {bg} background
    draw {p} in {style} style on {bg.a} background
    draw {p}, {style} style, {bg} background
    a picture of {p}, {style} style, {bg} background
    {p}; {style} style; {bg} background
""")
STYLE_FRAMES = Phrasings("""
    {p}, {style} style
    {p} in {style} style
    {p}, drawn in {style} style
    {style} style picture of {p}
    {style.a} style drawing of {p}
    {p}, the way the {style} style draws it
    as the {style} style draws it, {p}
    {p}, and the {style} style draws it
    {p}, drawn the {style} way
    {p}, drawn the way of the {style} style
    {p} in the way of the {style} style
    the way the {style} style shows {p}
    in {style} style, {p}
    {p} drawn in the {style} style
    {p}, the style is {style}
    draw {p} in {style} style
    a picture of {p} in {style} style
    {style} style draws {p} this way
    {p}, and it is drawn in {style} style
    {p}, it is in the way of the {style} style
""")
BACKGROUND_FRAMES = Phrasings("""
    {p}, {bg} background
    {p} on {bg.a} background
    {bg.a} background with {p}
    {p} in front of {bg.a} background
    picture of {p}, {bg} background
    {p}, the background is {bg}
    {p}, on {bg.a} background
    {p} with {bg.a} background
    {bg.a} background and {p}
    {bg} background, {p}
    the background is {bg}, with {p}
    the background is {bg}, in front of it {p}
    a picture of {p}, and its background is {bg}
    a picture of {p} on {bg.a} background
    draw {p} on {bg.a} background
    draw {p}, {bg} background
    the background is {bg} and on it {p}
""")

LEFT = Phrasings("""
    {a} to the left of {b}
    {a} left of {b}
    {a} on the left and {b} on the right
    {b} with {a} on its left
    {b} on the right and {a} on the left
    {a} on the left side of {b}
    {a} and to its right {b}
    {b} to the right of {a}
    {a} at the left of {b}
    on the left {a}, on the right {b}
    left {a}, right {b}
    {a} placed left of {b}
    {b} right of {a}
    {b} on the right side of {a}
    {b} and to its left {a}
    {a} on the left and on the right side {b}
    on the left side {a}, {b} on the right side
    {b} with {a} on its left side
""")
RIGHT = Phrasings("""
    {a} to the right of {b}
    {a} right of {b}
    {a} on the right and {b} on the left
    {b} with {a} on its right
    {b} on the left and {a} on the right
    {a} on the right side of {b}
    {a} and to its left {b}
    {b} to the left of {a}
    {a} at the right of {b}
    on the right {a}, on the left {b}
    right {a}, left {b}
    {a} placed right of {b}
    {b} on the left side, {a} on the right side
    {b} and to its right {a}
    {b}, to its right {a}
    {b} with {a} to its right
    {a} with {b} on its left
    {a} with {b} to its left
    {b} and {a} to its right
""")
ABOVE = Phrasings("""
    {a} above {b}
    {a} over {b}
    {a} at the top and {b} at the bottom
    {b} with {a} above it
    {b} underneath {a}
    {a} higher up than {b}
    {a} and under it {b}
    {b} below {a}
    {a} on top, {b} below
    at the top {a}, at the bottom {b}
    {b} under {a}
    {a} placed above {b}
    {b} lower than {a}
    {b} and above it {a}
    {b} beneath {a}
    {a} with {b} below it
    {a} with {b} under it
    {a}, and {b} below it
    {a} with {b} beneath it
    {b}, with {a} over it
""")
BELOW = Phrasings("""
    {a} below {b}
    {a} under {b}
    {a} at the bottom and {b} at the top
    {b} with {a} below it
    {b} over {a}
    {a} lower down than {b}
    {a} and above it {b}
    {b} above {a}
    {a} underneath {b}
    at the bottom {a}, at the top {b}
    {a} beneath {b}
    {a} placed below {b}
    {b} higher up than {a}
    {b} and below it {a}
    {b} on top, {a} below
    {b} with {a} lower down
    {b}, and lower down {a}
    {b} higher than {a}
    higher up {b}, lower down {a}
    {b} higher up, {a} lower down
    {b} at a higher place than {a}
""")
RELATION_PHRASINGS = {"left of": LEFT, "right of": RIGHT, "above": ABOVE, "below": BELOW}

AT: dict[str, tuple[str, ...]] = {
    "top left": (
        "in the top left corner", "at the top left", "in the upper left corner", "on the top left",
        "at the upper left", "in the top left part",
    ),
    "top": (
        "at the top", "at the top in the middle", "in the top middle", "at the top edge",
        "in the top part", "on the top side",
    ),
    "top right": (
        "in the top right corner", "at the top right", "in the upper right corner",
        "on the top right", "at the upper right", "in the top right part",
    ),
    "left": (
        "on the left", "on the left side", "at the left edge", "at the left", "at the left side",
        "in the left part",
    ),
    "middle": (
        "in the middle", "in the centre", "at the centre", "at the middle", "in the middle part",
        "in the centre part",
    ),
    "right": (
        "on the right", "on the right side", "at the right edge", "at the right",
        "at the right side", "in the right part",
    ),
    "bottom left": (
        "in the bottom left corner", "at the bottom left", "in the lower left corner",
        "on the bottom left", "at the lower left", "in the bottom left part",
    ),
    "bottom": (
        "at the bottom", "at the bottom in the middle", "in the bottom middle",
        "at the bottom edge", "in the bottom part", "on the bottom side",
    ),
    "bottom right": (
        "in the bottom right corner", "at the bottom right", "in the lower right corner",
        "on the bottom right", "at the lower right", "in the bottom right part",
    ),
}  # fmt: skip
"""Region -> ways to say that something is there."""

TO: dict[str, tuple[str, ...]] = {
    "top left": (
        "to the top left corner", "to the top left", "into the upper left corner",
        "into the top left corner", "to the upper left", "up to the upper left corner",
    ),
    "top": (
        "to the top", "to the top middle", "up to the top edge", "up to the top", "to the top edge",
        "to the top in the middle",
    ),
    "top right": (
        "to the top right corner", "to the top right", "into the upper right corner",
        "into the top right corner", "to the upper right", "up to the upper right corner",
    ),
    "left": (
        "to the left", "to the left side", "over to the left edge", "over to the left",
        "over to the left side", "to the left edge",
    ),
    "middle": (
        "to the middle", "to the centre", "into the middle", "into the centre",
        "over to the middle", "over to the centre",
    ),
    "right": (
        "to the right", "to the right side", "over to the right edge", "over to the right",
        "over to the right side", "to the right edge",
    ),
    "bottom left": (
        "to the bottom left corner", "to the bottom left", "into the lower left corner",
        "into the bottom left corner", "to the lower left", "down to the lower left corner",
    ),
    "bottom": (
        "to the bottom", "to the bottom middle", "down to the bottom edge", "down to the bottom",
        "to the bottom edge", "to the bottom in the middle",
    ),
    "bottom right": (
        "to the bottom right corner", "to the bottom right", "into the lower right corner",
        "into the bottom right corner", "to the lower right", "down to the lower right corner",
    ),
}  # fmt: skip
"""Region -> ways to say that something goes there."""

BIG_WORDS, SMALL_WORDS = ("big", "large", "huge"), ("small", "little", "tiny")


def tells(
    draw: Draw, style: str, background: Background, says_style: bool, says_background: bool
) -> bool:
    """Whether a caption tells enough: on the grid what it leaves open has one answer."""
    edition = draw.edition
    return not edition.on_grid or (
        (says_style or style == edition.styles[0])
        and (says_background or background.words == edition.backgrounds[0])
    )


def framed(draw: Draw, phrase: str, style: str | None, background: Background) -> tuple[str, Spec]:
    """A phrase with style and background around it, one of them left out at times.

    Args:
        draw: choices.
        phrase: a noun phrase.
        style: None where it means nothing.
        background: of the picture.

    Returns:
        The caption, and a spec of the style and background it names.
    """
    kind = draw.rng.random()
    bg = Word(background.words)
    if style is None or (kind < 0.1 and tells(draw, style, background, False, True)):
        return draw.say(BACKGROUND_FRAMES, p=phrase, bg=bg), Spec(background=background.colours)
    if 0.1 <= kind < 0.15 and tells(draw, style, background, True, False):
        return draw.say(STYLE_FRAMES, p=phrase, style=Word(style)), Spec(style=style)
    caption = draw.say(FRAMES, p=phrase, style=Word(style), bg=bg)
    return caption, Spec(style=style, background=background.colours)


def is_or_are(obj: WorldObject) -> str:
    """The verb that the object's word takes."""
    return "are" if obj.is_plural_word else "is"
