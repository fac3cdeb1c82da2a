"""Reinforcement learning of a flow head and of text: advantages, forward-process and policy losses.

Two families. DiffusionNFT (arXiv 2509.16117) needs no log-probabilities: with the velocity v_old of
the policy that drew the samples,

    v+ = b v + (1-b) v_old,   v- = (1+b) v_old - b v,
    L = r |v+ - target|^2 + (1-r) |v- - target|^2,

r from 0 to 1 being how good the sample was among those of its prompt. Policy gradient (Flow-GRPO,
arXiv 2505.05470) clips the ratio of Gaussian step probabilities; on the path that keeps the
variance (Flow-CPS, arXiv 2509.05952) its log-probability is -(x' - mean)^2 without constants.

Legend: G groups (prompts), n samples of each, T items, D values per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Scale = Literal["group", "global", "none"]
LEAST_SPREAD = 1e-6
"""Rewards closer than this are equal."""


def advantages(rewards: Tensor, scale: Scale = "global", limit: float = 5.0) -> Tensor:
    """How much better each sample was than its group's mean, in standard deviations.

    Args:
        rewards: [G, n].
        scale: see `deviations`.
        limit: largest absolute value.

    Returns:
        [G, n]; 0 where all are equal.
    """
    return in_deviations(rewards - rewards.mean(1, keepdim=True), deviations(rewards, scale), limit)


def deviations(rewards: Tensor, scale: Scale = "global") -> Tensor:
    """What advantages of each group are divided by.

    Args:
        rewards: [G, n].
        scale: the standard deviation of the "group", of all samples ("global", as Flow-GRPO does),
            or 1 ("none").

    Returns:
        [G, 1].
    """
    if scale == "group":
        return rewards.var(1, keepdim=True, unbiased=False).sqrt()
    if scale == "global":
        return rewards.var(unbiased=False).sqrt().expand(len(rewards), 1)
    return rewards.new_ones(len(rewards), 1)


def in_deviations(centred: Tensor, deviation: Tensor, limit: float) -> Tensor:
    """Differences in standard deviations, at most `limit`; 0 where the deviation is 0."""
    # clamp beside where: the branch that is not taken must not divide by 0, or its gradient is nan.
    divided = centred / deviation.clamp(min=LEAST_SPREAD)
    return torch.where(deviation > LEAST_SPREAD, divided, 0.0).clamp(-limit, limit)


def prefix_baselines(rewards: Tensor, texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """What to expect of a sample at each id of its text, from those that began as it did.

    The mean reward of all samples of the group with the same ids so far, itself among them. Where
    none of the others shares them any more, that of the last place where one did. A baseline that
    depends only on what stands before does not bias the policy gradient (the sample's own reward in
    the mean makes it smaller), and ids that all wrote alike get none. TEMPO (arXiv 2509.18314)
    takes values of the same tree.

    Args:
        rewards: [n] of one group.
        texts: n times ids.

    Returns:
        n tensors [P + 1] for P ids; the last value is of what follows the whole text, and there a
        sample without its like is only compared with itself.
    """
    found = []
    for text in texts:
        alike, mean, means = list(range(len(texts))), rewards.mean(), list[Tensor]()
        for place, id_ in enumerate(text):
            means.append(mean)
            alike = [i for i in alike if len(texts[i]) > place and texts[i][place] == id_]
            if len(alike) > 1:
                mean = rewards[alike].mean()
        same = [i for i in alike if len(texts[i]) == len(text)]
        found.append(torch.stack([*means, rewards[same].mean()]))
    return found


def accepted_groups(rewards: Tensor, least_spread: float, most_mean: float) -> Tensor:
    """Which groups teach something: neither all alike nor solved already (NextStep-1.1).

    Args:
        rewards: [G, n].
        least_spread: smallest standard deviation within a group.
        most_mean: largest mean of a group.

    Returns:
        [G] bool.
    """
    spread = rewards.std(1, unbiased=False)
    return (spread >= max(least_spread, LEAST_SPREAD)) & (rewards.mean(1) <= most_mean)


def optimality(advantage: Tensor, limit: float = 5.0) -> Tensor:
    """r of DiffusionNFT from advantages: 1/2 at the mean, 0 and 1 at minus and plus `limit`."""
    return 0.5 + 0.5 * (advantage / limit).clamp(-1, 1)


def nft_loss(
    velocity: Tensor, old: Tensor, target: Tensor, optimality: Tensor, beta: float
) -> Tensor:
    """DiffusionNFT's loss of every item, the mean over values.

    Args:
        velocity: [T, D] of the model.
        old: [T, D] of the policy that drew the samples.
        target: [T, D], data - noise.
        optimality: [T] r.
        beta: b; its gradient is that of the plain loss times b where r = 1 and velocity = old.

    Returns:
        [T].
    """
    positive = beta * velocity + (1 - beta) * old - target
    negative = (1 + beta) * old - beta * velocity - target
    r = optimality
    # Small r pushes away from the sample through the mirrored velocity, without a negative weight.
    return r * positive.square().mean(-1) + (1 - r) * negative.square().mean(-1)


def step_log_prob(after: Tensor, mean: Tensor, std: float | None = None) -> Tensor:
    """Log-probability of a Gaussian step, the mean over values and without constants.

    Args:
        after: [T, D] where the step went.
        mean: [T, D].
        std: of the step; None leaves the variance out, as Flow-CPS does.

    Returns:
        [T].
    """
    # A mean, not a sum: a ratio over the sum of 64 values would leave any clip range at once.
    error = -(after - mean).square().mean(-1)
    return error if std is None else error / (2 * std * std)


def clipped_policy_loss(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip: float
) -> Tensor:
    """PPO's clipped surrogate of every item (arXiv 1707.06347); its ratio is 1 on policy.

    Args:
        log_prob: [T] with gradient.
        old_log_prob: [T] when the sample was drawn.
        advantage: [T].
        clip: how far the ratio may move from 1 before its gradient stops.

    Returns:
        [T], to be minimised.
    """
    ratio = (log_prob - old_log_prob).exp()
    held = ratio.clamp(1 - clip, 1 + clip)
    # The larger loss of the two: clipping may remove an improvement, never a deterioration.
    return torch.maximum(-advantage * ratio, -advantage * held)


def text_divergence(reference: Tensor, log_prob: Tensor) -> Tensor:
    """Estimate of KL(policy, reference) from ids that the policy drew, never negative.

    Half the square of the log-ratio (Schulman's k2). Its expected gradient is that of the
    divergence. That of k3, exp(gap) - gap - 1, is another one, and grows with exp(gap): a single id
    that the policy has come to find unlikely undoes a run (arXiv 2510.01555 compares them).

    Args:
        reference: [P] log-probabilities of the reference.
        log_prob: [P] of the policy, with gradient.

    Returns:
        [P].
    """
    return (reference - log_prob).square() / 2


def trained_count(tokens: int, share: float) -> int:
    """How many of a picture's tokens a share is; at least one."""
    return max(1, round(share * tokens))


def most_uncertain(spread: Tensor, owner: Tensor, share: float) -> Tensor:
    """The tokens of each picture that the head is least sure of (MAR-GRPO, arXiv 2604.06966).

    Args:
        spread: [T] standard deviation of the token over trajectories of the head.
        owner: [T] number of the picture each token is of.
        share: of a picture's tokens that are kept, at least one.

    Returns:
        [T] bool.
    """
    kept = torch.zeros_like(spread, dtype=torch.bool)
    for picture in owner.unique():
        places = (owner == picture).nonzero().flatten()
        count = trained_count(len(places), share)
        kept[places[spread[places].topk(count).indices]] = True
    return kept
