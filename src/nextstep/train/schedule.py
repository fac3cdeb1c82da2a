"""Learning-rate schedule: warm-up, stable, decay."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WarmupStableDecay:
    """Linear warm-up from 0, a flat stretch, then a linear fall to 0 at the last step.

    A flat stretch can be prolonged after the fact, and every decay from it is a finished model.
    """

    steps: int
    warmup: int = 0
    decay: int = 0

    def __call__(self, step: int) -> float:
        """Factor on the base learning rate at `step` (counted from 0)."""
        rise = (step + 1) / self.warmup if step < self.warmup else 1.0
        left = self.steps - step
        fall = left / self.decay if left < self.decay else 1.0
        return min(rise, fall)
