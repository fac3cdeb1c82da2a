"""Learning-rate schedules: factors on the base rate, by step."""

from __future__ import annotations

import math
import time
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


class Clock:
    """How much of a run's time is over.

    Args:
        minutes: of the whole run; 0 when only its steps count.
        spent: seconds that it took before it was taken up again.
    """

    def __init__(self, minutes: float, spent: float = 0.0) -> None:
        self.minutes, self.spent, self.begun = minutes, spent, time.monotonic()

    @property
    def seconds(self) -> float:
        """That the run has taken."""
        return self.spent + time.monotonic() - self.begun

    @property
    def passed(self) -> float:
        """Share of the time; 0 when only steps count."""
        return self.seconds / (60 * self.minutes) if self.minutes else 0.0


def by_the_clock(schedule: Schedule, steps: int, step: int, passed: float) -> float:
    """Factor of a run that ends after `steps` steps or when its time is over.

    Args:
        schedule: over all steps.
        steps: of the whole run, at most.
        step: counted from 0; the warm-up goes by it alone.
        passed: share of the time, 0 where only steps count. The fall goes by it where it is ahead
            of the steps, so that it ends with the time.
    """
    ahead = min(int(passed * steps), steps)
    return min(schedule(step), schedule(max(step, ahead)))


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
