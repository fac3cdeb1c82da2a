"""Boards with short words, and the words themselves."""

from __future__ import annotations

import functools
import hashlib
import random
from string import ascii_uppercase

from PIL import Image, ImageDraw, ImageFont

_DETAIL = 4
_INK, _PAPER, _FRAME = (30, 30, 34), (255, 253, 245), (140, 88, 48)

WORDS: tuple[str, ...] = tuple(
    """
    a i am an at go hi in is it me my no of on or so to up we act add air all and ant arm art ask
    bag bat bed bee big box boy bus buy cab can cap car cat cow cup cut day dog dry ear eat egg end
    eye fan far fix fly fox fun gas get gum ham hat hen hop hot hug ice ink jam jar jet job joy key
    kid lap leg let lid lip log low map mix mud net new nut oak odd off oil old one out owl own pan
    pen pet pie pig pin pot put rag ram ran red rib row rug run sad sea see set sit six sky son sun
    tap tea ten tie tin toe top toy two van vet wag war wax way web wet win yes zip zoo able area
    army away baby back ball band bank bath bear bell best bird blue boat body bone book born both
    bowl busy cafe cake call calm camp card care cash city club coat cold come cook cool corn crab
    dark deal deep desk dish door down draw drum duck easy edge exit face fair farm fast film fire
    fish five flag flat flow food foot four free frog full game gate gift girl glad goal goat gold
    good half hall hand hard help here hero high hill home hope huge idea iron jazz join jump just
    keep kind king kiss kite lake lamp land last left lion list long look love luck menu milk mind
    mint moon more name near nest news next nice open oven page park path peak play pool post quiz
    rain read rice ring road rock roof room rose sale salt sand save seat ship shop show snow soap
    soft song soup star stay stop swim taxi team tent time town tree turn walk warm wash west wind
    wolf wood word yard zero zone angel apple beach berry bread brush cabin candy chair clock cloud
    dance dream drink earth eight enter field floor fresh fruit garden ghost grape green happy heart
    hello honey horse hotel house juice laugh lemon light lucky magic maple metro mouse movie museum
    music night ocean olive onion orange paint paper party peace piano pizza place plant queen quick
    quiet radio river robot salad shark sheep silver smile snack space spoon sport start stone storm
    story sugar summer sunny sweet table tiger today tower train ticket tulip vivid water welcome
    wheat white winter world yellow young zebra airport balloon banana bakery bicycle bridge camera
    castle cheese chicken coffee cookie diamond dolphin dragon elephant flower forest holiday island
    kitchen library market monkey morning mountain orchard parking picnic planet rabbit rainbow
    school station sunshine thunder tomorrow umbrella village weekend
    """.upper().split()
)
"""Words for signs; other texts are random letters."""


@functools.lru_cache(maxsize=4096)
def board(text: str, width: int, height: int, pitch: int | None = None) -> Image.Image:
    """A board with `text` on it, RGBA, at most `width` wide and exactly `height` high.

    It is as wide as its text needs; text that would not fit is set smaller. With a `pitch` every
    letter stands in the middle of a place of so many pixels.
    """
    full = height * _DETAIL
    edge = max(_DETAIL, full // 12)
    letters = full - 4 * edge
    limit = width * _DETAIL - 6 * edge
    font = ImageFont.load_default(letters)
    while font.getlength(text) > limit and letters > _DETAIL:
        letters -= _DETAIL
        font = ImageFont.load_default(letters)
    stroke = max(1, letters // 26)
    needed = len(text) * pitch * _DETAIL if pitch else round(font.getlength(text)) + 6 * edge
    wide = min(width * _DETAIL, max(full, needed))
    wide -= wide % _DETAIL
    sheet = Image.new("RGBA", (wide, full), (*_FRAME, 0))
    draw = ImageDraw.Draw(sheet)
    draw.rounded_rectangle((0, 0, wide - 1, full - 1), 3 * edge, (*_PAPER, 255), _FRAME, edge)
    if pitch:
        for place, letter in enumerate(text):
            middle = (place + 0.5) * pitch * _DETAIL, full / 2
            draw.text(middle, letter, _INK, font, "mm", stroke_width=stroke)
    else:
        draw.text((wide / 2, full / 2), text, _INK, font, "mm", stroke_width=stroke)
    small = sheet.convert("RGBa").resize((wide // _DETAIL, height), Image.Resampling.BOX)
    return small.convert("RGBA")


def is_held_out_word(text: str, share: float = 0.1) -> bool:
    """Whether signs with this word are kept out of training; a function of the word alone."""
    digest = hashlib.sha256(f"sign|{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


def longest_word_at(pixels: int) -> int:
    """Letters of a word that can be read on a sign in pictures of this side."""
    return 8 if pixels >= 96 else 4


def sign_text(rng: random.Random, longest: int, held_out: bool = False) -> str:
    """A word for a sign: mostly a real one, else random letters, of at most `longest` letters."""
    length = rng.randint(1 if longest < 3 else 2, longest)
    known = [word for word in WORDS if len(word) == length]
    while True:
        if rng.random() < 0.6:
            text = rng.choice(known)
        else:
            text = "".join(rng.choice(ascii_uppercase) for _ in range(length))
        if is_held_out_word(text) == held_out:
            return text
