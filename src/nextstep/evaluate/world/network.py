"""The networks that judge pictures of the emoji world: one finds objects, one reads signs.

Plain convolutions, far from the transformer they judge. Batch norms of the training are folded into
them before they are stored.

Legend: B pictures, C channels, H W pixels, h w places of a map, K classes.
"""

from __future__ import annotations

import functools
from string import ascii_uppercase
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextstep.world.colours import COLOUR_WORDS
from nextstep.world.lexicon import world_objects
from nextstep.world.vocabulary import STYLES, TONES

SIDE = 128
"""Pictures are judged at this many pixels a side."""

STRIDE = 8
"""Pixels a side of one place of the detector's maps."""

STYLE_NAMES = STYLES
COLOUR_NAMES = (*COLOUR_WORDS, None)
TONE_NAMES = (None, *TONES)
ANY = -1
"""Class of what does not matter, for training."""

THINGS = 300
SIGN = THINGS
"""Class of a sign; those below are objects in the order of `labels`."""

SIGN_HEIGHT, SIGN_WIDTH = 48, 128
"""Pixels of a cut-out sign, at its own scale with a border of the mean colour."""

ALPHABET = ascii_uppercase
BLANK = 0
"""What the sign reader says between letters; letter i of the alphabet is i + 1."""


@functools.cache
def labels() -> tuple[str, ...]:
    """Labels of the objects in the order of their classes."""
    return tuple(world_objects())


class ConvUnit(nn.Module):
    """Convolution, batch norm while training, ReLU if wanted."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, act: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
        self.norm: nn.Module = nn.Identity()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, h, w] -> [B, outputs, h / stride, w / stride]."""
        y: Tensor = self.norm(self.conv(x))
        return F.relu(y) if self.act else y


class ConvBlock(nn.Module):
    """Two convolutions around which the input passes by."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvUnit(channels, channels)
        self.second = ConvUnit(channels, channels, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> the same shape."""
        y: Tensor = F.relu(x + self.second(self.first(x)))
        return y


class DetectorNetwork(nn.Module):
    """Finds objects: one map of centres, and at every place what would be there.

    Outputs of `forward`, each [B, _, SIDE / STRIDE, SIDE / STRIDE]:
        centre [1]: logits that an object's middle lies here;
        box [4]: offset of the middle from that of the place, in places; log of width and height,
            in places;
        name [THINGS + 1], style, colour, tone: logits of `labels`, `STYLE_NAMES`, `COLOUR_NAMES`,
            `TONE_NAMES`.
    """

    PARTS: ClassVar[dict[str, int]] = {
        "centre": 1, "box": 4, "style": len(STYLE_NAMES), "colour": len(COLOUR_NAMES),
        "tone": len(TONE_NAMES),
    }  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        # One wide step to a quarter of the sides: maps of half of them would cost the most time.
        self.quarter = nn.Sequential(ConvUnit(3, 64, kernel=7, stride=4), ConvBlock(64))
        self.eighth = nn.Sequential(
            ConvUnit(64, 128, stride=2), ConvBlock(128), ConvBlock(128), ConvBlock(128)
        )
        self.sixteenth = nn.Sequential(ConvUnit(128, 160, stride=2), ConvBlock(160), ConvBlock(160))
        self.across = ConvUnit(160, 128, kernel=1, act=False)
        self.joined = nn.Sequential(ConvBlock(128), ConvUnit(128, 192))
        self.parts = nn.Conv2d(192, sum(self.PARTS.values()), 1)
        self.name = nn.Conv2d(192, THINGS + 1, 1)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Pixels [B, 3, SIDE, SIDE] in [-1, 1] -> maps by name."""
        fine = self.eighth(self.quarter(pixels))
        coarse = self.across(self.sixteenth(fine))
        joined = self.joined(F.relu(fine + F.interpolate(coarse, scale_factor=2.0)))
        found = dict(
            zip(self.PARTS, self.parts(joined).split(list(self.PARTS.values()), 1), strict=True)
        )
        return {**found, "name": self.name(joined)}


class SignReader(nn.Module):
    """Reads capital letters in a cut-out sign, left to right, with connectionist classification."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvUnit(1, 32, stride=2), ConvUnit(32, 64), ConvUnit(64, 64, stride=2), ConvBlock(64),
            ConvBlock(64),
            ConvUnit(64, 96), nn.MaxPool2d((2, 1)), ConvBlock(96),
        )  # fmt: skip
        self.column = nn.Conv2d(96, 160, (SIGN_HEIGHT // 8, 3), padding=(0, 1))
        self.letter = nn.Conv1d(160, len(ALPHABET) + 1, 3, padding=1)

    def forward(self, grey: Tensor) -> Tensor:
        """Grey signs [B, 1, SIGN_HEIGHT, SIGN_WIDTH] in [-1, 1] -> logits [B, 27, columns]."""
        columns = F.relu(self.column(self.body(grey)))[:, :, 0]
        logits: Tensor = self.letter(columns)
        return logits


def with_norms(network: nn.Module) -> None:
    """Give every unit the batch norm it is trained with."""
    for unit in network.modules():
        if isinstance(unit, ConvUnit):
            unit.norm = nn.BatchNorm2d(unit.conv.out_channels)


@torch.no_grad()
def fold_norms(network: nn.Module) -> None:
    """Put every unit's batch norm into its convolution, as it stands after training."""
    for unit in network.modules():
        if isinstance(unit, ConvUnit) and isinstance(unit.norm, nn.BatchNorm2d):
            norm, conv = unit.norm, unit.conv
            assert norm.running_var is not None and norm.running_mean is not None
            assert conv.bias is not None
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            conv.weight.mul_(scale.view(-1, 1, 1, 1))
            conv.bias.copy_((conv.bias - norm.running_mean) * scale + norm.bias)
            unit.norm = nn.Identity()


def sign_cuts(pixels: Tensor, boxes: Tensor) -> Tensor:
    """Signs cut out of pictures at their own scale, in the middle of what the reader sees.

    Args:
        pixels: [B, 3, SIDE, SIDE] in [-1, 1].
        boxes: [B, 4] of one sign each: left, top, right, bottom in pixels.

    Returns:
        Grey [B, 1, SIGN_HEIGHT, SIGN_WIDTH]; what lies outside the box is left grey (0).
    """
    weights = pixels.new_tensor((0.299, 0.587, 0.114)).view(1, 3, 1, 1)
    grey = (pixels * weights).sum(1)
    cuts = grey.new_zeros(len(grey), 1, SIGN_HEIGHT, SIGN_WIDTH)
    for row, box in enumerate(boxes.round().long().tolist()):
        left, right = max(0, box[0]), min(SIDE, box[2])
        top, bottom = max(0, box[1]), min(SIDE, box[3])
        bottom = min(bottom, top + SIGN_HEIGHT)
        if right > left and bottom > top:
            down, across = (SIGN_HEIGHT - bottom + top) // 2, (SIGN_WIDTH - right + left) // 2
            cuts[row, 0, down : down + bottom - top, across : across + right - left] = grey[
                row, top:bottom, left:right
            ]
    return cuts


def spelled(logits: Tensor) -> list[str]:
    """The likeliest path through logits [B, 27, columns], repeats and blanks left out."""
    words = []
    for path in logits.argmax(1).tolist():
        kept = [now for now, before in zip(path, [BLANK, *path], strict=False) if now != before]
        words.append("".join(ALPHABET[letter - 1] for letter in kept if letter != BLANK))
    return words
