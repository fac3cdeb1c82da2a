"""All drawings of the world in all their colours, to compare what was found with.

The world is closed: whatever stands in a true scene is one of some 14,000 drawings, laid on the
background. A cut-out is compared with all of them at a small size, and with the best ones again a
little shifted, so neither blur nor a box that is a pixel off matters much.

Legend: N drawings, K cut-outs, S pixels a side, P = S * S.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from nextstep.world.colours import TINTS, painted
from nextstep.world.drawings import atlas, colour_of, full_drawing
from nextstep.world.editions import editions
from nextstep.world.lexicon import world_objects
from nextstep.world.vocabulary import TONES

SQUARE = 12
"""Pixels a side at which drawings are compared: coarse, so that blur costs little."""

BEST, BEST_OF_STYLE = 30, 4
"""Drawings that are compared again: of all, and of each style."""

SHIFTS: tuple[tuple[float, float, float], ...] = (
    (0.0, 0.0, 0.0), (0.04, 0.0, 0.0), (-0.04, 0.0, 0.0), (0.0, 0.04, 0.0), (0.0, -0.04, 0.0),
    (0.0, 0.0, 0.06), (0.0, 0.0, -0.06),
)  # fmt: skip
"""How a box is moved right and down and made larger, in shares of its sides."""

ASPECT = 0.05
"""What a factor of e between the shapes of box and drawing counts, as a squared difference."""


@dataclass(frozen=True)
class BankDrawing:
    """Which drawing a row of the bank shows.

    Attributes:
        name: label of the object.
        style: of the drawing.
        tint: colour that it is painted in, None for its own.
        tone: skin tone, None for its own.
        colour: its colour word, None where it has no main colour.
    """

    name: str
    style: str
    tint: str | None
    tone: str | None
    colour: str | None


class Bank:
    """The drawings.

    Attributes:
        drawn: what each row shows, N of them.
        pixels: uint8 [N, SQUARE, SQUARE, 4], RGBA, stretched to a square.
        aspect: log of width by height, [N].
    """

    def __init__(self, drawn: list[BankDrawing], pixels: np.ndarray, aspect: np.ndarray) -> None:
        self.drawn, self.pixels, self.aspect = drawn, pixels, aspect
        values = pixels.astype(np.float32) / 255
        cover = values[..., 3:]
        colour = (values[..., :3] * cover).reshape(len(pixels), -1)
        self._colour = colour
        self._cover = cover.reshape(len(pixels), -1)
        self._both = (values[..., :3] * cover**2).reshape(len(pixels), -1)
        self._square = self._cover**2
        self._own = (colour**2).sum(1)

    def distances(self, cuts: np.ndarray, behind: np.ndarray) -> np.ndarray:
        """Mean squared differences of cut-outs and all drawings laid on their backgrounds.

        Args:
            cuts: float32 [K, SQUARE, SQUARE, 3], values 0..1.
            behind: the backgrounds alone, the same shape.

        Returns:
            float32 [K, N].
        """
        K = len(cuts)
        # |(C - B) - a (T - B)|^2 with the drawing's a and a T kept apart from the cut-out's rest.
        apart = (cuts - behind).reshape(K, -1)
        flat = behind.reshape(K, -1)
        crossed = (apart * flat).reshape(K, -1, 3).sum(-1)
        square = (flat**2).reshape(K, -1, 3).sum(-1)
        total = (apart**2).sum(1)[:, None] + self._own
        total = total - 2 * (apart @ self._colour.T + flat @ self._both.T)
        total += 2 * crossed @ self._cover.T + square @ self._square.T
        found: np.ndarray = total / apart.shape[1]
        return found

    def closely(self, rows: np.ndarray, cuts: np.ndarray, behind: np.ndarray) -> np.ndarray:
        """The same for some drawings and several ways to cut: the best way.

        Args:
            rows: which drawings, [n].
            cuts, behind: [ways, SQUARE, SQUARE, 3].

        Returns:
            float32 [n].
        """
        drawings = self.pixels[rows].astype(np.float32) / 255
        cover = drawings[:, None, ..., 3:]
        laid = drawings[:, None, ..., :3] * cover + behind[None] * (1 - cover)
        found: np.ndarray = ((laid - cuts[None]) ** 2).mean((2, 3, 4)).min(1)
        return found


@functools.cache
def bank(edition: str = "full") -> Bank:
    """All objects of an edition in all its styles, in their own colours, all tints and tones."""
    known = editions()[edition]
    drawn, pixels, aspect = [], [], []
    for obj in (world_objects()[label] for label in known.objects):
        for style in known.styles:
            tones = [t for t in TONES if obj.toned and atlas().has(obj.label, style, t)]
            for tone in (None, *tones):
                picture = full_drawing(obj.label, style, tone)
                square = _square(picture)
                shape = float(np.log(picture.width / picture.height))
                own = colour_of(obj.label, style, tone)
                drawn.append(BankDrawing(obj.label, style, None, tone, own))
                pixels.append(square)
                aspect.append(shape)
                if tone is None:
                    drawn += [BankDrawing(obj.label, style, tint, None, tint) for tint in TINTS]
                    pixels += [painted(square, tint) for tint in TINTS]
                    aspect += [shape] * len(TINTS)
    return Bank(drawn, np.stack(pixels), np.array(aspect, np.float32))


def _square(picture: Image.Image) -> np.ndarray:
    small = picture.convert("RGBa").resize((SQUARE, SQUARE), Image.Resampling.BOX)
    return np.asarray(small.convert("RGBA"))


@dataclass(frozen=True)
class TemplateMatch:
    """The best drawing of one style for what is in a box.

    Attributes:
        drawn: that drawing.
        cost: its difference in units of trust, less its prior; the smaller the likelier.
        apart: its mean squared difference from what is there, values 0..1.
        box: the one it was found in.
    """

    drawn: BankDrawing
    cost: float
    apart: float
    box: np.ndarray


def match(
    picture: np.ndarray,
    behind: np.ndarray,
    boxes: Sequence[np.ndarray],
    prior: np.ndarray,
    trust: float,
    edition: str = "full",
) -> dict[str, TemplateMatch]:
    """Which drawing stands in a place, for every style.

    Args:
        picture: uint8 [H, W, 3].
        behind: its background alone, the same shape.
        boxes: one or more guesses: left, top, right, bottom in pixels.
        prior: how likely each drawing is before it is compared, logs [N].
        trust: squared difference that weighs as much as a factor of e in the prior.
        edition: of the world, to which the drawings belong.
    """
    stock, layers = bank(edition), (Image.fromarray(picture), Image.fromarray(behind))
    small = np.stack([_cut(layers, box) for box in boxes])
    small = np.concatenate((small, small[:, :, ::-1]))
    coarse = stock.distances(small[..., :3], small[..., 3:])
    shapes = np.stack([_misshapen(box, stock) for box in boxes])
    coarse += np.concatenate((shapes, shapes))
    rows = _candidates(coarse.min(0) / trust - prior, edition)
    fine = []
    for box, shape in zip(boxes, shapes, strict=True):
        cuts = np.stack([_cut(layers, moved(box, shift)) for shift in SHIFTS])
        cuts = np.concatenate((cuts, cuts[:, :, ::-1]))
        fine.append(stock.closely(rows, cuts[..., :3], cuts[..., 3:]) + shape[rows])
    which = np.stack(fine).argmin(0)
    apart = np.stack(fine).min(0)
    cost = apart / trust - prior[rows]
    found: dict[str, TemplateMatch] = {}
    for place in np.argsort(cost, kind="stable"):
        drawn = stock.drawn[rows[place]]
        if drawn.style not in found:
            box = boxes[which[place]]
            found[drawn.style] = TemplateMatch(drawn, float(cost[place]), float(apart[place]), box)
    return found


def _misshapen(box: np.ndarray, stock: Bank) -> np.ndarray:
    """What every drawing loses by a box of another shape than its own, [N]."""
    shape = np.log(max(box[2] - box[0], 1.0) / max(box[3] - box[1], 1.0))
    lost: np.ndarray = ASPECT * (stock.aspect - shape) ** 2
    return lost


def _candidates(cost: np.ndarray, edition: str) -> np.ndarray:
    """Rows that are compared again: the best of all, and the best of each style."""
    rows = [np.argpartition(cost, BEST)[:BEST]]
    for mine in style_rows(edition).values():
        rows.append(mine[np.argpartition(cost[mine], BEST_OF_STYLE)[:BEST_OF_STYLE]])
    return np.unique(np.concatenate(rows))


@functools.cache
def style_rows(edition: str = "full") -> dict[str, np.ndarray]:
    """Style -> rows of the bank."""
    styles = np.array([one.style for one in bank(edition).drawn])
    return {style: np.flatnonzero(styles == style) for style in editions()[edition].styles}


def moved(box: np.ndarray, shift: tuple[float, float, float]) -> np.ndarray:
    """A box moved and made larger by shares of its sides."""
    wide, high = box[2] - box[0], box[3] - box[1]
    right, down, grow = shift[0] * wide, shift[1] * high, shift[2] / 2
    return np.array(
        [
            box[0] + right - grow * wide,
            box[1] + down - grow * high,
            box[2] + right + grow * wide,
            box[3] + down + grow * high,
        ]
    )


def _cut(layers: Sequence[Image.Image], box: np.ndarray) -> np.ndarray:
    """A box of RGB pictures, one after another, as floats 0..1 [SQUARE, SQUARE, 3 * layers]."""
    width, height = layers[0].size
    left, top = (
        min(max(0.0, float(box[0])), width - 2.0),
        min(max(0.0, float(box[1])), height - 2.0),
    )
    right = min(float(width), max(float(box[2]), left + 2))
    bottom = min(float(height), max(float(box[3]), top + 2))
    place, method = (left, top, right, bottom), Image.Resampling.BOX
    parts = [np.asarray(one.resize((SQUARE, SQUARE), method, place)) for one in layers]
    return np.concatenate(parts, -1).astype(np.float32) / 255
