"""Learning-rate schedules: factors on the base rate, by step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[int], float]
"""step (counted from 0) -> factor on the base learning rate."""


@dataclass(frozen=True)
class WarmupStableDecay:
    """Linear warm-up from 0, a flat stretch, then a linear fall to `final` at the last step.

    A flat stretch can be prolonged after the fact, and every decay from it is a finished model.
    """

    steps: int
    warmup: int = 0
    decay: int = 0
    final: float = 0.0

    def __call__(self, step: int) -> float:
        """Factor on the base learning rate at `step` (counted from 0)."""
        rise = (step + 1) / self.warmup if step < self.warmup else 1.0
        left = self.steps - step
        fall = left / self.decay if left < self.decay else 1.0
        return min(rise, self.final + (1 - self.final) * fall)


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up from 0, then half a cosine down to `final` (SGDR, arXiv 1608.03983)."""

    steps: int
    warmup: int = 0
    final: float = 0.0

    def __call__(self, step: int) -> float:
        """Factor on the base learning rate at `step` (counted from 0)."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * min(done, 1.0))) / 2


def build_schedule(
    name: str, steps: int, warmup: int = 0, decay: int = 0, final: float = 0.0
) -> Schedule:
    """A schedule by the names in `TrainConfig`.

    Raises:
        ValueError: for an unknown name.
    """
    if name == "constant":
        return WarmupStableDecay(steps, warmup)
    if name == "cosine":
        return Cosine(steps, warmup, final)
    if name == "warmup-stable-decay":
        return WarmupStableDecay(steps, warmup, decay, final)
    raise ValueError(f"unknown schedule '{name}'")
