"""Preference losses on a linear-Gaussian toy: closed forms, equal pairs, the safe scale."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nextstep.train.objectives.preference import (
    safe_loser_scale,
    scaled_gradient,
    text_dpo_loss,
    velocity_dpo_loss,
    velocity_margin,
)

PAIRS, TOKENS, FEATURES, VALUES = 3, 4, 5, 6


class Toy:
    """Velocities that are linear in their weights, v = f W, for winners and losers."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.weight = normal(FEATURES, VALUES)
        self.reference = self.weight + 0.3 * normal(FEATURES, VALUES)
        self.features = [normal(PAIRS, TOKENS, FEATURES) for _ in range(2)]
        self.targets = [normal(PAIRS, TOKENS, VALUES) for _ in range(2)]

    def errors(self, weight: Tensor) -> list[Tensor]:
        """[Q] of winners and of losers."""
        return [
            (f @ weight - y).square().mean((1, 2))
            for f, y in zip(self.features, self.targets, strict=True)
        ]

    def slopes(self) -> list[Tensor]:
        """d error / d weight in closed form, [Q, F, D]."""
        return [
            2 * f.transpose(1, 2) @ (f @ self.weight - y) / (TOKENS * VALUES)
            for f, y in zip(self.features, self.targets, strict=True)
        ]

    def margin(self, weight: Tensor) -> Tensor:
        with torch.no_grad():
            reference = self.errors(self.reference)
        return velocity_margin(*self.errors(weight), *reference)


@pytest.mark.parametrize("beta", [100.0, 500.0, 2000.0])
def test_gradient_of_the_velocity_loss_is_the_closed_form(beta: float) -> None:
    toy = Toy()
    weight = toy.weight.clone().requires_grad_()
    margin = toy.margin(weight)
    velocity_dpo_loss(margin, beta).sum().backward()
    winner, loser = toy.slopes()
    factor = beta / 2 * torch.sigmoid(-beta / 2 * margin.detach())
    expected = (factor[:, None, None] * (winner - loser)).sum(0)
    assert weight.grad is not None
    assert torch.allclose(weight.grad, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", [velocity_dpo_loss, text_dpo_loss])
def test_gradients_agree_with_finite_differences(loss) -> None:
    margin = torch.tensor([-2.0, -0.1, 0.0, 0.3, 4.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: loss(m, 0.7), margin)


def test_equal_pairs_give_no_gradient_at_all() -> None:
    toy = Toy()
    toy.features[1], toy.targets[1] = toy.features[0], toy.targets[0]
    weight = toy.weight.clone().requires_grad_()
    loss = velocity_dpo_loss(toy.margin(weight), 500.0)
    loss.sum().backward()
    assert torch.equal(loss.detach(), torch.full_like(loss, math.log(2)))
    assert weight.grad is not None
    assert not bool(weight.grad.any())


def test_at_the_reference_a_step_lowers_the_winner_against_the_loser() -> None:
    toy = Toy()
    toy.reference = toy.weight
    weight = toy.weight.clone().requires_grad_()
    velocity_dpo_loss(toy.margin(weight), 100.0).sum().backward()
    assert weight.grad is not None
    after = toy.margin(weight.detach() - 1e-4 * weight.grad)
    assert float(after.sum()) > 0


def test_the_safe_scale_keeps_the_winner_from_rising() -> None:
    """Loser gradients along the winner's and larger would raise the winner's error."""
    generator = torch.Generator().manual_seed(1)
    winner = torch.randn(4, 30, generator=generator, dtype=torch.float64)
    loser = 3 * winner + 0.5 * torch.randn(4, 30, generator=generator, dtype=torch.float64)
    square, along = winner.square().sum(1), (winner * loser).sum(1)
    scale = safe_loser_scale(square, along, 1.0)
    assert bool((scale < 1).all())

    def rise(s: Tensor) -> Tensor:
        """First-order change of the winner's error by a step of the pair's loss."""
        return -(winner * (winner - s[:, None] * loser)).sum(1)

    assert bool((rise(torch.ones(4)) > 0).all())
    assert bool((rise(scale) <= 1e-12).all())
    assert torch.allclose(safe_loser_scale(square, along, 0.5), scale / 2)


def test_losers_that_point_away_count_whole() -> None:
    square, along = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([-2.0, 0.0, 0.0])
    assert torch.equal(safe_loser_scale(square, along, 1.0), torch.ones(3))


def test_a_scaled_gradient_leaves_the_value() -> None:
    x = torch.tensor([2.0, 3.0], requires_grad=True)
    out = scaled_gradient(x.square(), torch.tensor([0.25, 1.0]))
    out.sum().backward()
    assert torch.equal(out.detach(), torch.tensor([4.0, 9.0]))
    assert x.grad is not None
    assert torch.equal(x.grad, torch.tensor([1.0, 6.0]))
