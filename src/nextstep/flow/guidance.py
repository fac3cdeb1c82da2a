"""Classifier-free guidance: which branches run and how their velocities are mixed.

Branches: conditional (text and source pictures), image-only (source pictures and the negative
text), unconditional (the negative text alone). The released rule

    v = v_u + image_guidance*(v_i - v_u) + guidance*(v_c - v_i)

is a weighted sum, so a branch whose weight is 0 for every token need not run at all. That
decides the layout once per request, for any scales: below 1, or image guidance alone. With image
guidance 1, which means none, the release drops text and pictures together, and so do we:

    v = v_u + guidance*(v_c - v_u)

Legend: B pictures, D values per token, branches: conditional, image-only, unconditional.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

CONDITIONAL, IMAGE_ONLY, UNCONDITIONAL = "conditional", "image-only", "unconditional"
MAX_SCALE = 1000.0
SCHEDULES = ("constant", "linear", "linear-rising")


@dataclass(frozen=True)
class GuidanceSettings:
    """Scales and how they change along the picture.

    Attributes:
        guidance: text scale (the released `cfg`); 1 is none.
        image_guidance: source-picture scale (`cfg_img`); ignored without source pictures.
        schedule: `constant`; `linear` falls from the scale towards 1 along the tokens (first
            released code); `linear-rising` climbs from 1, but never below half the scale
            (training release).

    Raises:
        ValueError: for a scale that is not finite or an unknown schedule.
    """

    guidance: float = 1.0
    image_guidance: float = 1.0
    schedule: str = "constant"

    def __post_init__(self) -> None:
        for name in ("guidance", "image_guidance"):
            value = getattr(self, name)
            if not abs(value) <= MAX_SCALE:
                label = name.replace("_", " ")
                raise ValueError(
                    f"{label} must be a finite number of at most {MAX_SCALE:.0f}, not {value}"
                )
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"unknown guidance schedule '{self.schedule}'; choose from {', '.join(SCHEDULES)}"
            )

    def at(self, index: int, count: int) -> tuple[float, float]:
        """(guidance, image_guidance) for token `index` of `count`."""
        return self._scale(self.guidance, index, count), self._scale(
            self.image_guidance, index, count
        )

    def _scale(self, scale: float, index: int, count: int) -> float:
        if self.schedule == "linear":
            return 1 + (scale - 1) * (count - index) / count
        if self.schedule == "linear-rising" and scale != 1:
            # At least half the scale, as in the training release.
            return max(scale / 2, 1 + (scale - 1) * index / count)
        return scale

    def weights(self, index: int, count: int, has_images: bool) -> dict[str, float]:
        """Weight of every branch's velocity for one token; they add up to 1."""
        text, image = self.at(index, count)
        if not has_images or self.image_guidance == 1:
            return {CONDITIONAL: text, UNCONDITIONAL: 1 - text}
        return {CONDITIONAL: text, IMAGE_ONLY: image - text, UNCONDITIONAL: 1 - image}

    def branches(self, count: int, has_images: bool) -> list[str]:
        """The branches that some token needs, in the order their rows stand in a batch.

        The conditional branch always runs, because its rows carry the picture.
        """
        # A constant schedule weighs every token alike, so its first one tells.
        told = range(1 if self.schedule == "constant" else count)
        every = [self.weights(index, count, has_images) for index in told]
        needed = {name for weights in every for name, w in weights.items() if w != 0}
        order = (CONDITIONAL, IMAGE_ONLY, UNCONDITIONAL)
        return [name for name in order if name in needed or name == CONDITIONAL]


def combine(
    velocities: Tensor, branches: list[str], weights: Mapping[str, float | Tensor]
) -> Tensor:
    """Mix branch velocities.

    Args:
        velocities: [branches, B, D].
        branches: names in the order of the first dimension.
        weights: from `GuidanceSettings.weights`; or one [B, 1] tensor a branch.

    Returns:
        [B, D].
    """
    # Added branch after branch: a sum over the dimension may change its order with the shape, and
    # with it the last bits of a picture.
    mixed = velocities[0] * weights[branches[0]]
    for velocity, name in zip(velocities[1:], branches[1:], strict=True):
        mixed = mixed + velocity * weights[name]
    return mixed
