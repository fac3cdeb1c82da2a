"""Flow maps: a head that jumps from time t to time s along the guided path of its teacher.

The student predicts the mean velocity u over a span, so that x_s = x_t + (s - t) u(x_t, t, s). It
is taught by one of

    regression    u = (x_s - x_t) / (s - t) along the teacher's own trajectory;
    shortcut      a span is the mean of its halves (arXiv 2410.12557), an empty one the teacher's
                  velocity;
    meanflow      u = v + (s - t) du/dt (arXiv 2505.13447), du/dt = (v . grad_x) u + d_t u by a
                  forward-mode derivative. In the convention of this package t = 0 is noise.

Legend: T tokens, D values per token.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MeanVelocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x [T, D], t [T], s [T]) -> mean velocity from t to s, [T, D]."""


def jump(u: MeanVelocity, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """x at time s, [T, D], from x at time t in one call."""
    return x + (s - t)[:, None] * u(x, t, s)


def shortcut_target(u: MeanVelocity, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Mean of the velocities of both halves of a span, [T, D], without gradient."""
    with torch.no_grad():
        middle = (t + s) / 2
        first = u(x, t, middle)
        second = u(x + (middle - t)[:, None] * first, middle, s)
        return (first + second) / 2


def meanflow_target(u: MeanVelocity, x: Tensor, t: Tensor, s: Tensor, velocity: Tensor) -> Tensor:
    """v + (s - t) du/dt, [T, D], without gradient.

    Args:
        u: of the student.
        x: [T, D] points on the path at `t`.
        t, s: [T]; where they are equal the target is the velocity.
        velocity: [T, D] of the teacher at (x, t).
    """
    tangents = velocity, torch.ones_like(t), torch.zeros_like(s)
    change: Tensor = torch.func.jvp(u, (x, t, s), tangents)[1]
    return (velocity + (s - t)[:, None] * change).detach()


def adaptive_weight(error: Tensor, power: float, floor: float = 1e-3) -> Tensor:
    """1 / (error + floor)^power of every item, [T], without gradient (arXiv 2505.13447).

    Args:
        error: [T] mean squares.
        power: 0 weighs all alike, 1 as logarithms do.
        floor: keeps weights finite.
    """
    return (error.detach() + floor).pow(-power)
