"""What a reward is, and weighted sums of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from PIL import Image

from nextstep.errors import NextStepError
from nextstep.rollout.prompts import RolloutPrompt
from nextstep.rollout.samples import RolloutGroup, RolloutSample
from nextstep.text.reasoning import answer_in

TOTAL = "reward"


@dataclass(frozen=True)
class Candidate:
    """What is judged.

    Attributes:
        prompt: that was asked.
        image: that was drawn; None where text was asked for.
        line: what was written: before the picture, or the answer without the line before it.
    """

    prompt: RolloutPrompt
    image: Image.Image | None
    line: str = ""


@dataclass(frozen=True)
class Score:
    """What a candidate is worth.

    Attributes:
        value: higher is better.
        parts: figures that the log shows beside it.
    """

    value: float
    parts: dict[str, float] = field(default_factory=dict)


class Reward(Protocol):
    """Somebody who judges; the same candidate always gets the same score."""

    name: str

    def score(self, candidates: Sequence[Candidate]) -> list[Score]:
        """Scores in the order of the candidates."""


class Rewards:
    """A weighted sum of rewards, and others that are only watched.

    Args:
        weighted: rewards with their weights, names that differ.
        watched: rewards that nothing is trained by, so that they show when the others are gamed.

    Raises:
        NextStepError: when there is none, or two have one name.
    """

    def __init__(
        self, weighted: Sequence[tuple[Reward, float]], watched: Sequence[Reward] = ()
    ) -> None:
        names = [reward.name for reward, _ in weighted] + [f"watch/{r.name}" for r in watched]
        if not weighted or len(set(names)) < len(names):
            raise NextStepError("samples need at least one reward, and each reward its own name")
        self.weighted, self.watched = list(weighted), list(watched)

    def judge(
        self, prompts: Sequence[RolloutPrompt], groups: Sequence[RolloutGroup]
    ) -> list[RolloutGroup]:
        """The groups with rewards: the sum as "reward", each as NAME and its parts as NAME/PART."""
        candidates = [
            Candidate(prompt, sample.image, sample.line if prompt.draws else answer_in(sample.line))
            for prompt, group in zip(prompts, groups, strict=True)
            for sample in group.samples
        ]
        found: list[dict[str, float]] = [{TOTAL: 0.0} for _ in candidates]
        for reward, weight in self.weighted:
            for told, score in zip(found, reward.score(candidates), strict=True):
                told[TOTAL] += weight * score.value
                _add(told, reward.name, score)
        for reward in self.watched:
            for told, score in zip(found, reward.score(candidates), strict=True):
                _add(told, f"watch/{reward.name}", score)
        stream = iter(found)
        return [
            replace(group, samples=tuple(_judged(one, next(stream)) for one in group.samples))
            for group in groups
        ]


def _judged(sample: RolloutSample, rewards: dict[str, float]) -> RolloutSample:
    """A sample with its rewards; its picture is not needed any more."""
    return replace(sample, rewards=rewards, image=None)


def _add(told: dict[str, float], name: str, score: Score) -> None:
    told[name] = score.value
    for part, value in score.parts.items():
        told[f"{name}/{part}"] = value


def means(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Mean of every reward and part over all samples that have it, and the spread in groups."""
    values: dict[str, list[float]] = {}
    spreads = []
    for group in groups:
        own = [sample.reward for sample in group.samples]
        middle = sum(own) / len(own)
        spreads.append((sum((one - middle) ** 2 for one in own) / len(own)) ** 0.5)
        for sample in group.samples:
            for name, value in sample.rewards.items():
                values.setdefault(name, []).append(value)
    found = {name: sum(own) / len(own) for name, own in sorted(values.items())}
    return found | {"spread": sum(spreads) / max(1, len(spreads))}
