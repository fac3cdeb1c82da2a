"""Flow maps on Gaussian data, where the true map is known: every target is a fixed point there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nextstep.train.objectives.flow_map import (
    adaptive_weight,
    jump,
    meanflow_target,
    shortcut_target,
)

MEAN, STD = torch.tensor([0.7, -1.2, 0.0], dtype=torch.float64), 0.4


def std_at(t: Tensor) -> Tensor:
    """Of x_t when data are N(MEAN, STD^2) and noise N(0, 1)."""
    return (t.square() * STD**2 + (1 - t).square()).sqrt()


def true_velocity(x: Tensor, t: Tensor) -> Tensor:
    """E[data - noise | x_t] in closed form."""
    t = t[:, None]
    slope = (t * STD**2 - (1 - t)) / std_at(t).square()
    return MEAN + slope * (x - t * MEAN)


def true_map(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Where the flow carries x from t to s."""
    t, s = t[:, None], s[:, None]
    return s * MEAN + std_at(s) / std_at(t) * (x - t * MEAN)


def true_mean_velocity(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    span = (s - t)[:, None]
    return (true_map(x, t, s) - x) / span


@pytest.fixture
def points() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    ends = torch.rand(2, 40, generator=generator, dtype=torch.float64).sort(0).values
    return x, ends[0], ends[1]


def test_the_true_map_is_what_meanflow_asks_for(points) -> None:
    x, t, s = points
    target = meanflow_target(true_mean_velocity, x, t, s, true_velocity(x, t))
    assert torch.allclose(target, true_mean_velocity(x, t, s), rtol=1e-8, atol=1e-8)


def test_the_true_map_is_what_a_shortcut_asks_for(points) -> None:
    x, t, s = points
    target = shortcut_target(true_mean_velocity, x, t, s)
    assert torch.allclose(target, true_mean_velocity(x, t, s), rtol=1e-8, atol=1e-8)


def test_an_empty_span_asks_for_the_velocity(points) -> None:
    x, t, _ = points
    target = meanflow_target(lambda x, t, s: x * t[:, None] + s[:, None], x, t, t, 3 * x)
    assert torch.equal(target, 3 * x)


def test_the_change_along_the_path_is_the_finite_difference(points) -> None:
    x, t, s = points

    def u(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return torch.tanh(x * t[:, None]) + (t * s)[:, None] ** 2

    v, h = true_velocity(x, t), 1e-6
    change = (u(x + h * v, t + h, s) - u(x - h * v, t - h, s)) / (2 * h)
    expected = v + (s - t)[:, None] * change
    assert torch.allclose(meanflow_target(u, x, t, s, v), expected, atol=1e-8)


def test_one_jump_goes_the_whole_way() -> None:
    noise = torch.randn(2000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    zero, one = torch.zeros(2000, dtype=torch.float64), torch.ones(2000, dtype=torch.float64)
    data = jump(true_mean_velocity, noise, zero, one)
    assert torch.allclose(data, MEAN + STD * noise)


def test_adaptive_weights_have_no_gradient() -> None:
    error = torch.tensor([0.0, 1.0], requires_grad=True)
    weight = adaptive_weight(error, 1.0)
    assert not weight.requires_grad
    assert weight.tolist() == pytest.approx([1000.0, 1 / 1.001])
    assert adaptive_weight(error, 0.0).tolist() == [1.0, 1.0]
