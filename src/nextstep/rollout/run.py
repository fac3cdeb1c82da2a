"""Rollouts of a fixed model into a folder, whole shards at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nextstep.data.documents import derived_seed
from nextstep.rollout.prompts import PromptStream
from nextstep.rollout.rewards import Rewards
from nextstep.rollout.sampler import Sampler
from nextstep.rollout.samples import RolloutGroup
from nextstep.rollout.store import RolloutStore


def make_rollouts(
    store: RolloutStore,
    prompts: PromptStream,
    sampler: Sampler,
    rewards: Rewards,
    count: int,
    seed: int = 0,
    per_shard: int = 8,
    on_shard: Callable[[list[RolloutGroup]], None] | None = None,
) -> None:
    """Draw and judge samples of the first `count` prompts; shards that are there are left alone.

    Args:
        store: where they go.
        prompts, sampler, rewards: what is drawn, how, and what it is worth.
        count: of prompts.
        seed: of the noise.
        per_shard: prompts of a shard, whose samples are drawn together.
        on_shard: told the groups of every shard, new or there already.

    Raises:
        NextStepError: when a sample cannot be drawn or judged.
    """
    policy = sampler.engine.fingerprint.model
    for shard, first in enumerate(range(0, count, per_shard)):
        if not store.has(shard):
            numbers = range(first, min(first + per_shard, count))
            asked = [
                (prompts.prompt(number), derived_seed(seed, "rollout", number))
                for number in numbers
            ]
            groups = rewards.judge([prompt for prompt, _ in asked], sampler.draw(asked))
            store.write(shard, [replace(group, policy=policy) for group in groups])
        if on_shard is not None:
            on_shard(store.read(shard))
