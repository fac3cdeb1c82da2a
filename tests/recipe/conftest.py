"""Prompts, rewards and rollouts of tests that train on them."""

from __future__ import annotations

from pathlib import Path

import pytest

from nextstep.engine.engine import Engine
from nextstep.engine.pretrained import load_parts
from nextstep.rollout.prompts import ListedPrompts, read_prompts
from nextstep.rollout.reward_kinds import open_reward
from nextstep.rollout.rewards import Rewards
from nextstep.rollout.sampler import Sampler, SamplingOptions, make_rollouts
from nextstep.rollout.store import RolloutStore

REWARD = '''
import numpy as np

def red(image, text, line, facts):
    """How much more red than blue; smooth, so that roundings change it little."""
    pixels = np.asarray(image, float) / 255
    return float(pixels[..., 0].mean() - pixels[..., 2].mean())

def bright(image, text, line, facts):
    return float(np.asarray(image, float).mean() / 255)
'''
QUICK = {"guidance": 1.0, "solver": "cps", "steps": 3}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prompts and rewards."""
    folder = tmp_path_factory.mktemp("posttrain")
    (folder / "rewards.py").write_text(REWARD)
    (folder / "prompts.txt").write_text("a red apple\ntwo cats\nmake it blue\n")
    return folder


@pytest.fixture(scope="module")
def rollouts(place: Path, tiny_folder: Path) -> Path:
    """What `nextstep rollout` writes."""
    rewards = Rewards([(open_reward("python", f"{place / 'rewards.py'}:red"), 1.0)])
    sampler = Sampler(Engine.of_parts(load_parts(tiny_folder)), SamplingOptions(6, settings=QUICK))
    store = RolloutStore(place / "rollouts", {"model": "tiny"})
    stream = ListedPrompts(read_prompts(place / "prompts.txt"), None)
    make_rollouts(store, stream, sampler, rewards, 3, per_shard=2)
    return place / "rollouts"
