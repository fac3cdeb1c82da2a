"""The detector of the scorer: pictures in, detections out.

A detector that was trained on all of the world, held-out combinations included, finds where objects
are and what they might be. The background is the one whose pixels fit best. What stands in a box is
then the drawing of the world that is both likely by the detector and near to the pixels. Signs are
read by a network of their own.

Legend: H W pixels, N pictures of side SIDE, h w places of the detector's maps, C classes, K boxes
(left, top, right, bottom in pixels).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nextstep.errors import ModelFileError
from nextstep.evaluate.world.background import background_of, column_of
from nextstep.evaluate.world.boxes import (
    CLEAR_DIFFERENCE,
    DIFFERENCE,
    PixelGroup,
    area,
    foreground,
    groups,
    outside,
    shared,
    tightened,
    without_others,
)
from nextstep.evaluate.world.candidates import (
    OVERLAP,
    FoundObject,
    Maps,
    found_objects,
    log_prior,
    looks_like_sign,
)
from nextstep.evaluate.world.grid_signs import read_grid_sign
from nextstep.evaluate.world.network import (
    SIDE,
    STRIDE,
    DetectorNetwork,
    SignReader,
    labels,
    sign_cuts,
    spelled,
)
from nextstep.evaluate.world.templates import TemplateMatch, match
from nextstep.image.pictures import to_pixels
from nextstep.world.editions import editions
from nextstep.world.spec import Detection, Detections

WEIGHTS = Path(__file__).parents[2] / "weights" / "world-scorer" / "scorer.safetensors"

TRUST = 0.0005
"""Mean squared difference (values 0..1) that weighs as much as a factor of e in probability."""

ANOTHER_STYLE = 10.0
"""By how many such units an object must fit another style better to spoil that of its picture."""

ANOTHER_THING = 8.0
"""Sum of squared pixel differences by which a further object must explain a picture better."""

EXPLAINED = 0.02
"""Mean squared difference up to which a drawing explains all that lies in its box."""

NOTHING = 0.08
"""Mean squared difference from which an object is none of those in the world."""

UNKNOWN = "something"
"""Name of what is none of the objects in the world."""

BATCH = 32


class Detector:
    """Sees pictures of the world.

    Args:
        detector: finds objects.
        reader: reads signs.
        edition: of the world; what stands in a picture is taken for one of its objects.
    """

    def __init__(
        self, detector: DetectorNetwork, reader: SignReader, edition: str = "full"
    ) -> None:
        self.detector, self.reader = detector.eval(), reader.eval()
        self.edition = edition

    @classmethod
    def open(cls, path: Path = WEIGHTS, edition: str = "full") -> Detector:
        """The detector that ships with the package, or one of another file.

        Raises:
            ModelFileError: when the file is missing, damaged or knows other objects.
        """
        from safetensors import SafetensorError, safe_open

        detector, reader = DetectorNetwork(), SignReader()
        try:
            with safe_open(path, "pt") as file:
                told = file.metadata() or {}
                known = told.get("objects", told.get("things", ""))  # earlier files say things
                weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
            if known != "; ".join(labels()):
                raise ModelFileError(f"{path} knows other objects than this version of the world")
            for part, network in (("detector.", detector), ("reader.", reader)):
                mine = {k.removeprefix(part): v for k, v in weights.items() if k.startswith(part)}
                network.load_state_dict(mine)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise ModelFileError(f"{path} cannot be read as the scorer: {error}") from None
        return cls(detector, reader, edition)

    @torch.inference_mode()
    def detect(self, pictures: Sequence[np.ndarray | Image.Image]) -> list[Detections]:
        """What each picture shows.

        Args:
            pictures: RGB, uint8 where they are arrays; of any size, judged at `SIDE` pixels.
        """
        sized = [_sized(picture) for picture in pictures]
        detections = []
        for start in range(0, len(sized), BATCH):
            part = sized[start : start + BATCH]
            pixels = to_pixels(part).contiguous(memory_format=torch.channels_last)
            maps = {name: values.float() for name, values in self.detector(pixels).items()}
            found = found_objects(maps)
            looks = [
                _Search.at(picture, found[row], {k: v[row] for k, v in maps.items()}, self.edition)
                for row, picture in enumerate(part)
            ]
            texts = self._read(pixels, [one.sign for one in looks])
            detections += [
                detect.detections(detect.text or text)
                for detect, text in zip(looks, texts, strict=True)
            ]
        return detections

    def _read(self, pixels: Tensor, signs: list[np.ndarray | None]) -> list[str | None]:
        """What the sign of each picture says, None where there is none."""
        rows = [row for row, box in enumerate(signs) if box is not None]
        texts: list[str | None] = [None] * len(signs)
        if rows:
            boxes = torch.tensor(np.stack([box for box in signs if box is not None]))
            words = spelled(self.reader(sign_cuts(pixels[rows], boxes)))
            for row, word in zip(rows, words, strict=True):
                texts[row] = word
        return texts


@functools.cache
def shipped_detector(edition: str = "full") -> Detector:
    """The detector that ships with the package, read once for each edition of the world."""
    return Detector.open(edition=edition)


def _sized(picture: np.ndarray | Image.Image) -> np.ndarray:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    if image.size != (SIDE, SIDE):
        image = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(image.convert("RGB"))


Fits = dict[str, TemplateMatch]
"""Style -> its best drawing for one object."""


def _best(fits: Fits) -> TemplateMatch:
    return min(fits.values(), key=lambda fit: fit.cost)


@dataclass(frozen=True)
class _Search:
    """One picture while it is made out.

    Attributes:
        picture, behind: uint8 [SIDE, SIDE, 3], with objects and without.
        background: its colour names.
        apart: where and how far picture and background differ, the sign left out.
        guesses: boxes [K, 4] where the detector sees objects.
        sign: box of the surest sign.
        maps: of the detector, logits [C, h, w].
        edition: of the world.
        text: of a sign on the grid.
    """

    picture: np.ndarray
    behind: np.ndarray
    background: tuple[str, ...]
    apart: np.ndarray
    guesses: np.ndarray
    sign: np.ndarray | None
    maps: Maps
    edition: str
    text: str | None

    @classmethod
    def at(cls, picture: np.ndarray, found: list[FoundObject], maps: Maps, edition: str) -> _Search:
        """Begin with the background and the sign."""
        on_grid = read_grid_sign(picture) if editions()[edition].on_grid else None
        if on_grid is not None:
            found = [one for one in found if shared(np.array(one.box), on_grid[0]) < OVERLAP]
        around: list[Sequence[float]] = [one.box for one in found]
        background = background_of(
            picture, around if on_grid is None else [*around, on_grid[0].tolist()]
        )
        behind = np.broadcast_to(column_of(picture, background)[:, None], picture.shape)
        apart = foreground(picture, behind)
        signs, guesses = list[np.ndarray](), list[np.ndarray]()
        boxes = np.array([one.box for one in found], float).reshape(-1, 4)
        for row, one in enumerate(found):
            mask = without_others(apart >= DIFFERENCE, boxes, row)
            # Signs are wide, so the detector knows their sides less well than their height.
            wider = boxes[row] + 0.12 * (one.box[2] - one.box[0]) * np.array([-1, 0, 1, 0])
            tight = tightened(mask, wider, share=0.04)
            if one.is_sign and looks_like_sign(picture, tight):
                signs.append(tight)
            else:
                guesses.append(boxes[row])
        if on_grid is not None:
            signs = [on_grid[0]]
        apart = outside(apart, signs)
        sign = signs[0] if signs else None
        things_here = np.array(guesses, float).reshape(-1, 4)
        return cls(
            picture,
            behind,
            background,
            apart,
            things_here,
            sign,
            maps,
            edition,
            on_grid and on_grid[1],
        )

    def detections(self, text: str | None) -> Detections:
        """What is in it, its sign's text given."""
        matches = [fits for group in groups(self.apart, self.guesses) for fits in self.told(group)]
        rest = outside(self.apart, [_best(fits).box for fits in matches])
        others = groups(rest, self.guesses[:0], CLEAR_DIFFERENCE)
        matches = _unexplained([*matches, *(self.matched([group.box]) for group in others)])
        style = _common_style(matches)
        seen = []
        for fits in matches:
            best = fits[style] if style else _best(fits)
            left, top, right, bottom = (float(edge) / SIDE for edge in best.box)
            name = best.drawn.name if best.apart < NOTHING else UNKNOWN
            seen.append(
                Detection(name, (left, top, right, bottom), best.drawn.colour, best.drawn.tone)
            )
        return Detections(tuple(seen), self.background, style, text)

    def matched(self, boxes: list[np.ndarray]) -> Fits:
        """The drawings for one object, the first box being where the detector is asked."""
        prior = log_prior(_at(self.maps, boxes[0]), self.edition)
        return match(self.picture, self.behind, boxes, prior, TRUST, self.edition)

    def told(self, group: PixelGroup) -> list[Fits]:
        """Connected pixels as one object or as several, whichever leaves less unexplained."""
        mine = self.guesses[group.members]
        tight = [
            tightened(without_others(group.mask, mine, row), box) for row, box in enumerate(mine)
        ]
        if len(mine) < 2:
            return [self.matched([*mine, *tight, group.box])]
        whole = self.matched([group.box])
        parts = _apart([self.matched([a, b]) for a, b in zip(mine, tight, strict=True)])
        rest = outside(self.apart * group.mask, [_best(fits).box for fits in parts])
        unexplained = float(np.square(rest / 255.0).sum())
        of_parts = unexplained + sum(_best(f).apart * area(_best(f).box) for f in parts)
        of_whole = _best(whole).apart * area(group.box)
        return [whole] if of_whole <= of_parts + ANOTHER_THING * (len(parts) - 1) else parts


def _unexplained(matches: list[Fits]) -> list[Fits]:
    """Those that are no part of a larger object which fits well, such as the sparks of a wand."""
    best = [_best(fits) for fits in matches]
    return [
        fits
        for fits, one in zip(matches, best, strict=True)
        if not any(
            other.apart < EXPLAINED
            and area(one.box) < 0.7 * area(other.box)
            and shared(one.box, other.box) > 0.8
            for other in best
        )
    ]


def _apart(parts: list[Fits]) -> list[Fits]:
    """Those that lie apart from one another, the better one of two in one place."""
    kept: list[Fits] = []
    for fits in sorted(parts, key=lambda fits: _best(fits).cost):
        if all(shared(_best(fits).box, _best(other).box) <= OVERLAP for other in kept):
            kept.append(fits)
    return kept


def _at(maps: Maps, box: np.ndarray) -> Maps:
    """The detector's logits in the middle of a box."""
    x, y = (int(np.clip((box[i] + box[i + 2]) / 2 / STRIDE, 0, SIDE // STRIDE - 1)) for i in (0, 1))
    return {name: values[:, y, x] for name, values in maps.items()}


def _common_style(matches: list[Fits]) -> str | None:
    """The style that all objects together fit best; None where one clearly fits another."""
    if not matches:
        return None
    totals = {style: sum(fits[style].cost for fits in matches) for style in matches[0]}
    best = min(totals, key=lambda style: totals[style])
    for fits in matches:
        if fits[best].cost - min(fit.cost for fit in fits.values()) > ANOTHER_STYLE:
            return None
    return best
