"""The straight path between noise and data, and the times at which it is asked.

t = 0 is noise, t = 1 is data; x_t = t*data + (1-t)*noise; velocity = data - noise. Every function
takes tensors of one shape [..., D] and t as a float or a tensor that broadcasts against them.

Legend: D values per token after any leading shape; t from 0 (noise) to 1 (data).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

V1_LAST_TIME = 0.96
"""The v1 sampler walks to this time and jumps the rest in one deterministic step."""


def interpolate(data: Tensor, noise: Tensor, t: Tensor | float) -> Tensor:
    """The point x_t on the path."""
    return t * data + (1 - t) * noise


def target_velocity(data: Tensor, noise: Tensor) -> Tensor:
    """dx_t/dt, which the flow head learns."""
    return data - noise


def predicted_noise(x: Tensor, velocity: Tensor, t: Tensor | float) -> Tensor:
    """The noise end of the line through x with this velocity: n = x - t*v."""
    return x - t * velocity


def predicted_data(x: Tensor, velocity: Tensor, t: Tensor | float) -> Tensor:
    """The data end of the line through x with this velocity: d = x + (1-t)*v."""
    return x + (1 - t) * velocity


def logit_normal_time(u: Tensor) -> Tensor:
    """Training times t = sigmoid(u) from standard normal u (arXiv 2508.10711 section 4)."""
    return u.sigmoid()


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
