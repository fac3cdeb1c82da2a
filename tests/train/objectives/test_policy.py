"""Policy losses: closed forms, and a bandit of continuous tokens whose reward must rise."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from nextstep.flow.path import interpolate, target_velocity, uniform_grid
from nextstep.flow.solvers import STEP_RULES, SolverSettings, solve
from nextstep.model.flow_head import FlowHead
from nextstep.train.objectives.policy import (
    accepted_groups,
    advantages,
    clipped_policy_loss,
    most_uncertain,
    nft_loss,
    optimality,
    prefix_baselines,
    step_log_prob,
    text_divergence,
)
from tests.conftest import TINY


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_advantages_are_centred_and_scaled() -> None:
    rewards = torch.tensor([[0.0, 1.0], [4.0, 6.0], [2.0, 2.0]], dtype=torch.float64)
    whole = (rewards - rewards.mean()).square().mean().sqrt()
    centred = torch.tensor([[-0.5, 0.5], [-1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(advantages(rewards, "global"), centred / whole)
    assert torch.allclose(advantages(rewards, "none"), centred)
    signs = torch.tensor([[-1.0, 1.0], [-1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(advantages(rewards, "group"), signs)
    assert float(advantages(100 * rewards, "none", limit=3.0).abs().max()) == 3.0


def test_an_id_is_compared_with_what_others_wrote_after_the_same_beginning() -> None:
    rewards = torch.tensor([0.0, 1.0, 4.0, 7.0])
    texts = [(5, 6, 9), (5, 6, 9), (5, 7), (8, 6, 9)]
    found = [own.tolist() for own in prefix_baselines(rewards, texts)]
    # The third is alone from its second id on, the fourth from its first; pictures of both are only
    # compared with themselves, those of the first two with each other.
    root, five, both = 3.0, pytest.approx(5 / 3), 0.5
    assert found == [
        [root, five, both, both], [root, five, both, both], [root, five, 4.0], [root] * 3 + [7.0]
    ]  # fmt: skip


def test_without_text_pictures_are_compared_with_all() -> None:
    assert prefix_baselines(torch.tensor([1.0, 3.0]), [(), ()]) == [2.0, 2.0]


def test_only_the_id_that_decides_gets_a_gradient() -> None:
    """All texts of three bits, worth their second bit: gradients of equal ids add up."""
    texts = list(product((0, 1), repeat=3))
    rewards = torch.tensor([float(text[1]) for text in texts])
    gradient = dict[tuple[int, ...], float]()
    for text, reward, expected in zip(
        texts, rewards, prefix_baselines(rewards, texts), strict=True
    ):
        for place in range(3):
            known = text[: place + 1]
            gradient[known] = gradient.get(known, 0.0) + float(reward - expected[place])
    for known, total in gradient.items():
        assert total == pytest.approx((known[1] * 2 - 1) if len(known) == 2 else 0.0)


def test_groups_that_teach_nothing_are_rejected() -> None:
    rewards = torch.tensor([[0.5, 0.5], [0.0, 1.0], [0.95, 1.0], [0.4, 0.42]])
    assert accepted_groups(rewards, 0.05, 0.9).tolist() == [False, True, False, False]
    assert accepted_groups(rewards, 0.0, 1.0).tolist() == [False, True, True, True]


def test_optimality_is_a_half_at_the_mean() -> None:
    found = optimality(torch.tensor([-9.0, -5.0, 0.0, 2.5, 5.0]), 5.0)
    assert found.tolist() == [0.0, 0.0, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_the_least_nft_loss_lies_along_the_improvement(beta: float) -> None:
    """v* = v_old + (2r - 1)/b (target - v_old): its gradient vanishes there and nowhere else."""
    old, target, r = normal(7, 5), normal(7, 5, seed=1), torch.rand(7, dtype=torch.float64)
    best = old + ((2 * r - 1) / beta)[:, None] * (target - old)
    velocity = best.clone().requires_grad_()
    nft_loss(velocity, old, target, r, beta).sum().backward()
    assert velocity.grad is not None
    assert float(velocity.grad.abs().max()) < 1e-12
    assert torch.autograd.gradcheck(
        lambda v: nft_loss(v, old, target, r, beta), normal(7, 5, seed=2).requires_grad_()
    )


def test_nft_on_policy_is_the_weighted_flow_loss() -> None:
    """At v = v_old its gradient is b (2r - 1) times that of |v - target|^2."""
    old, target, r = normal(7, 5), normal(7, 5, seed=1), torch.rand(7, dtype=torch.float64)
    velocity = old.clone().requires_grad_()
    nft_loss(velocity, old, target, r, 0.3).sum().backward()
    expected = 0.3 * (2 * r - 1)[:, None] * 2 * (old - target) / 5
    assert velocity.grad is not None
    assert torch.allclose(velocity.grad, expected, rtol=1e-12)


@pytest.mark.parametrize("std", [None, 0.4])
def test_policy_gradient_is_the_closed_form(std: float | None) -> None:
    """On policy: -A d log p / d mean = -A 2 (x' - mean) / D (over 2 std^2)."""
    after, advantage = normal(6, 4), normal(6, seed=3)
    mean = normal(6, 4, seed=1).requires_grad_()
    log_prob = step_log_prob(after, mean, std)
    loss = clipped_policy_loss(log_prob, log_prob.detach(), advantage, 0.1)
    assert torch.equal((log_prob - log_prob.detach()).exp(), torch.ones(6, dtype=torch.float64))
    assert torch.equal(loss.detach(), -advantage)
    loss.sum().backward()
    expected = -advantage[:, None] * 2 * (after - mean.detach()) / 4
    assert mean.grad is not None
    assert torch.allclose(mean.grad, expected / (1 if std is None else 2 * std**2), rtol=1e-12)


def test_clipping_stops_confident_samples() -> None:
    log_prob = torch.tensor([0.5, 0.5, -0.5, -0.5, 0.05], requires_grad=True)
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    clipped_policy_loss(log_prob, torch.zeros(5), advantage, 0.1).sum().backward()
    assert log_prob.grad is not None
    # Held back: good ones that are likelier already, bad ones that are less likely already.
    assert (log_prob.grad != 0).tolist() == [False, True, True, False, True]


def test_the_most_uncertain_tokens_of_each_picture() -> None:
    spread = torch.tensor([0.1, 0.9, 0.5, 0.2, 3.0, 4.0])
    owner = torch.tensor([0, 0, 0, 0, 1, 1])
    assert most_uncertain(spread, owner, 0.5).tolist() == [False, True, True, False, False, True]
    assert int(most_uncertain(spread, owner, 0.01).sum()) == 2
    assert bool(most_uncertain(spread, owner, 1.0).all())


# --- a bandit: one hidden state, a token is drawn, its reward is how near it lies to a goal ---

DRAWN, SOLVER = 64, SolverSettings("cps", 4, noise_level=0.8)


class Bandit:
    """A flow head that has learned N(0, I) tokens, and a goal away from their middle."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.config = TINY.with_values(latent_channels=1, hidden_size=8)
        self.head = FlowHead(self.config)
        self.head.reset_parameters()
        for parameter in self.head.parameters():
            if not bool(parameter.any()):
                torch.nn.init.normal_(parameter, std=0.02)
        self.hidden = torch.zeros(DRAWN, 8)
        self.goal = torch.tensor([1.0, -1.0, 0.5, 0.0])
        self.generator = torch.Generator().manual_seed(7)
        optimizer = torch.optim.Adam(self.head.parameters(), 3e-3)
        for _ in range(150):
            data, noise = self.draw(), self.draw()
            t = torch.rand(DRAWN, generator=self.generator)
            velocity = self.velocity(interpolate(data, noise, t[:, None]), t)
            loss = (velocity - target_velocity(data, noise)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def draw(self) -> Tensor:
        return torch.randn(DRAWN, 4, generator=self.generator)

    def velocity(self, x: Tensor, t: Tensor | float) -> Tensor:
        times = t if isinstance(t, Tensor) else torch.full((len(x),), t)
        return self.head(x, times, self.hidden)

    def reward(self, tokens: Tensor) -> Tensor:
        return -(tokens - self.goal).square().mean(-1)

    @torch.no_grad()
    def mean_reward(self) -> float:
        settings = replace(SOLVER, name="ode")
        return float(
            torch.stack(
                [self.reward(solve(self.velocity, self.draw, settings)) for _ in range(8)]
            ).mean()
        )


def test_nft_raises_the_reward_of_a_bandit() -> None:
    bandit = Bandit()
    before = bandit.mean_reward()
    optimizer = torch.optim.Adam(bandit.head.parameters(), 2e-3)
    for _ in range(60):
        with torch.no_grad():
            tokens = solve(bandit.velocity, bandit.draw, replace(SOLVER, name="ode"))
        r = optimality(advantages(bandit.reward(tokens)[None])[0], 2.0)
        noise, t = bandit.draw(), torch.rand(DRAWN, generator=bandit.generator)
        x = interpolate(tokens, noise, t[:, None])
        velocity = bandit.velocity(x, t)
        target = target_velocity(tokens, noise)
        loss = nft_loss(velocity, velocity.detach(), target, r, 1.0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert bandit.mean_reward() > before + 0.3


@pytest.mark.parametrize("name", ["cps", "sde"])
def test_policy_gradient_raises_the_reward_of_a_bandit(name: str) -> None:
    bandit = Bandit()
    settings = replace(SOLVER, name=name, noise_steps=2)
    before = bandit.mean_reward()
    optimizer = torch.optim.Adam(bandit.head.parameters(), 2e-3)
    times = list(pairwise(uniform_grid(settings.steps)))
    for turn in range(60):
        visited: list[Tensor] = []

        def seen(x: Tensor, t: float, visited: list[Tensor] = visited) -> Tensor:
            visited.append(x)
            return bandit.velocity(x, t)

        with torch.no_grad():
            tokens = solve(seen, bandit.draw, settings)
        number = turn % settings.noise_steps
        t, after = times[number]
        velocity = bandit.velocity(visited[number], t)
        mean, _ = STEP_RULES[name](visited[number], velocity, t, after, settings)
        log_prob = step_log_prob(visited[number + 1], mean)
        advantage = advantages(bandit.reward(tokens)[None])[0]
        loss = clipped_policy_loss(log_prob, log_prob.detach(), advantage, 1e-3).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert bandit.mean_reward() > before + 0.3


def test_text_divergence_has_the_gradient_of_the_true_one() -> None:
    logits, reference = normal(3, 7, seed=1), normal(3, 7, seed=2).log_softmax(-1)

    def gradient(divergence_of) -> Tensor:
        asked = logits.clone().requires_grad_()
        divergence_of(asked.log_softmax(-1)).sum().backward()
        assert asked.grad is not None
        return asked.grad

    true = gradient(lambda log_prob: log_prob.exp() * (log_prob - reference))
    # What ids drawn from the policy give in the mean: it is known how often each comes.
    share = logits.softmax(-1)
    estimated = gradient(lambda log_prob: share * text_divergence(reference, log_prob))
    assert torch.allclose(estimated, true)
    assert bool((text_divergence(reference, logits.log_softmax(-1)) >= 0).all())


def test_an_unlikely_id_does_not_outweigh_all_others() -> None:
    log_prob = torch.tensor([-12.0, -0.1], requires_grad=True)
    text_divergence(torch.tensor([-0.1, -0.2]), log_prob).sum().backward()
    assert log_prob.grad is not None and float(log_prob.grad.abs().max()) < 12
