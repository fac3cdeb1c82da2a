"""Time grids: where between noise (0) and data (1) the velocity is asked."""

from __future__ import annotations

V1_LAST_TIME = 0.96
"""The v1 sampler walks to this time and jumps the rest in one deterministic step."""


def shift_time(t: float, shift: float) -> float:
    """t' = t / (s - (s-1)*t): s = 1 is identity, s > 1 moves points towards noise."""
    return t / (shift - (shift - 1) * t)


def uniform_grid(steps: int, shift: float = 1.0) -> list[float]:
    """steps+1 times from 0 to exactly 1; all but the last are shifted."""
    return [shift_time(i / steps, shift) for i in range(steps)] + [1.0]


def v1_grid(steps: int, shift: float = 1.0) -> list[float]:
    """`steps` times from 0 to 0.96, shifted: the grid of the first released code.

    Under a shift other than 1 the last time is no longer 0.96, so the final step of 0.04 does not
    reach 1. That is how the released code behaves, and v1 reproduces it.
    """
    return [shift_time(V1_LAST_TIME * i / (steps - 1), shift) for i in range(steps)]
