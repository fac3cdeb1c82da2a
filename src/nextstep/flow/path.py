"""The straight path between noise and data.

t = 0 is noise, t = 1 is data; x_t = t*data + (1-t)*noise; velocity = data - noise. Every function
takes tensors of one shape [..., D] and t as a float or a tensor that broadcasts against them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


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
