"""Steps of online reinforcement learning: draw, judge, weigh; everything kept beside the run.

    RUN/rollouts/step-00000012/shard-00003.safetensors    group 3 of the rollout at step 12

A group is written whole as soon as it is judged. A run that is killed takes up the groups that the
same weights drew, and draws the rest: the very same ones, since a sample depends on weights,
prompt, settings and noise alone.

Legend: G prompts, n samples of each; N tokens of a picture, D values per token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nextstep.data.documents import derived_seed
from nextstep.data.steps import Step
from nextstep.engine.engine import Engine
from nextstep.errors import ModelFileError, NextStepError
from nextstep.flow.noise import KeyedNoise
from nextstep.flow.solvers import STEP_RULES, SolverSettings
from nextstep.rollout.batches import Row
from nextstep.rollout.prompts import PromptStream, RolloutPrompt
from nextstep.rollout.rewards import Rewards, means
from nextstep.rollout.sampler import Sampler, SamplingOptions
from nextstep.rollout.samples import RolloutGroup, RolloutSample, weighed_document
from nextstep.rollout.store import SHARD, read_shard, write_shard
from nextstep.text.sequence import IGNORE
from nextstep.text.tokenizer import TextTokenizer
from nextstep.train.ema import copied, fingerprint
from nextstep.train.objectives.policy import (
    Scale,
    accepted_groups,
    deviations,
    in_deviations,
    prefix_baselines,
)
from nextstep.train.stages.rl import Experience, PolicyStage

if TYPE_CHECKING:
    from nextstep.train.trainer import Trainer

FOLDER = "rollouts"
END = -1
"""Stands for the id that ends a text, which is another one before a picture."""
AT_ONCE = 8
"""Prompts whose samples are drawn together before they are written."""


@dataclass(frozen=True)
class OnlineOptions:
    """What a step is made of.

    Attributes:
        prompts: of a step, over all ranks.
        micro: samples of a micro-batch at most.
        advantage_scale: see `objectives.policy.advantages`.
        advantage_limit: largest absolute advantage.
        least_spread, most_mean: of a group's rewards; others are left out.
        window: stochastic steps of the solver, for `grpo`; 0 makes all of them stochastic.
        slide_every: rollouts after which the window moves on by one.
        updates: optimizer steps on the samples of a rollout.
        minibatches: parts of a rollout, each with some samples of every prompt; a step takes one.
        seed: of prompts and noise.
    """

    prompts: int
    micro: int = 8
    advantage_scale: Scale = "global"
    advantage_limit: float = 5.0
    least_spread: float = 0.0
    most_mean: float = math.inf
    window: int = 0
    slide_every: int = 25
    updates: int = 1
    minibatches: int = 1
    seed: int = 0


@dataclass(frozen=True)
class _Rollout:
    """Judged samples that steps are made of.

    Attributes:
        groups: of this rank, by number.
        worth: n a group, without their draws.
        accepted: [G] which groups teach something.
    """

    groups: dict[int, RolloutGroup]
    worth: dict[int, list[Experience]]
    accepted: Tensor


class OnlineBatches:
    """A `BatchSource` of the model's own samples; `attach` it to the trainer before the first step.

    Args:
        prompts: of the run.
        rewards: that judge.
        sampling: how groups are drawn.
        options: see `OnlineOptions`.
        stage: that trains on them.
        engine_of: whole weights -> an engine that samples with them.
        tokenizer: of the text.
        folder: of the run.
        rank, world: this process among all.

    Raises:
        NextStepError: when prompts cannot be dealt out, or `grpo` has no solver with steps to
            train.
    """

    def __init__(
        self,
        prompts: PromptStream,
        rewards: Rewards,
        sampling: SamplingOptions,
        options: OnlineOptions,
        stage: PolicyStage,
        engine_of: Callable[[dict[str, Tensor]], Engine],
        tokenizer: TextTokenizer,
        folder: Path,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if options.prompts % world:
            raise NextStepError(
                f"{options.prompts} prompts a step cannot be dealt out to {world} ranks alike"
            )
        self.prompts, self.rewards, self.sampling, self.options = (
            prompts, rewards, sampling, options,
        )  # fmt: skip
        self.stage, self.engine_of, self.tokenizer = stage, engine_of, tokenizer
        self.folder, self.rank, self.world = folder / FOLDER, rank, world
        self.step = 0
        self.rollout: _Rollout | None = None
        self.trainer: Trainer | None = None

    def attach(self, trainer: Trainer) -> None:
        """Take samples from this trainer's weights from now on."""
        self.trainer = trainer

    def next_step(self) -> Step:
        """A step on samples of the weights as they were when this rollout began; all ranks ask.

        Raises:
            NextStepError: when a sample cannot be drawn or judged.
        """
        updates = self.options.updates
        if self.rollout is None or self.step % updates == 0:
            self.rollout = self._draw()
        rollout, first_group = self.rollout, next(iter(self.rollout.groups.values()))
        solver, trained = self._solver(first_group)
        parts = self.options.minibatches
        rows = [
            self._row(group, sample, rollout.worth[number][place], solver)
            for number, group in rollout.groups.items()
            if rollout.accepted[number]
            for place, sample in enumerate(group.samples)
            if place % parts == self.step % parts
        ]
        # Rows of a micro-batch are as long as its longest.
        rows.sort(key=lambda row: sum(len(document) for document, _ in row))
        counts = bool(rows)
        if not rows:
            sample = first_group.samples[0]
            nothing = Experience(torch.zeros(len(sample.written) + 1), 0.0)
            rows = [self._row(first_group, sample, nothing, solver)]
        micro = self.options.micro
        batches = [
            self.stage.batch_of(rows[first : first + micro], solver, trained, counts)
            for first in range(0, len(rows), micro)
        ]
        self.step += 1
        keys = [document.key for row in rows for document, _ in row]
        tokens = sum(len(document) for row in rows for document, _ in row) if counts else 0
        return Step(batches, keys, tokens, self.state_dict(), self.step % updates == 0)

    def state_dict(self) -> dict[str, Any]:
        """The number of the next step."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved step."""
        self.step = int(state["step"])

    def close(self) -> None:
        """Nothing runs beside it."""

    def _draw(self) -> _Rollout:
        """Samples of the present weights, and what they are worth among those of all ranks."""
        assert self.trainer is not None
        options = self.options
        if options.updates > 1:
            self.stage.old = self._present()
        numbers = list(range(self.rank, options.prompts, self.world))
        groups = self._groups(numbers)
        everyone = self._everyones_rewards(groups)
        accepted = accepted_groups(everyone, options.least_spread, options.most_mean)
        deviation = deviations(everyone, options.advantage_scale)
        worth = {
            number: _experiences(group, deviation[number], options.advantage_limit)
            for number, group in zip(numbers, groups, strict=True)
        }
        self._log(groups, everyone, accepted)
        return _Rollout(dict(zip(numbers, groups, strict=True)), worth, accepted)

    def _present(self) -> dict[str, Tensor]:
        """A copy of the weights that draw now, laid out as the model's."""
        assert self.trainer is not None
        stepper = self.trainer.stepper
        if self.stage.samples_with_average and stepper.ema:
            return {name: mean.clone() for name, mean in stepper.ema.shadow.items()}
        return copied(stepper.model)

    @property
    def number(self) -> int:
        """Of the rollout that the next step takes."""
        return self.step // self.options.updates

    def _groups(self, numbers: list[int]) -> list[RolloutGroup]:
        """This rank's groups of the rollout, read where they are and drawn where they are not."""
        assert self.trainer is not None
        weights = self.trainer.weights_everywhere(self.stage.samples_with_average)
        policy = fingerprint(weights)
        folder = self.folder / f"step-{self.step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        options = self._sampling()
        found: dict[int, RolloutGroup] = {}
        missing: list[int] = []
        for number in numbers:
            kept = _kept(folder / SHARD.format(number), policy)
            if kept is None:
                missing.append(number)
            else:
                found[number] = kept
        sampler = Sampler(self.engine_of(weights), options) if missing else None
        for first in range(0, len(missing), AT_ONCE):
            part = missing[first : first + AT_ONCE]
            asked = [self._asked(number) for number in part]
            assert sampler is not None
            drawn = self.rewards.judge([prompt for prompt, _ in asked], sampler.draw(asked))
            for number, group in zip(part, drawn, strict=True):
                found[number] = replace(group, policy=policy)
                write_shard(folder / SHARD.format(number), [found[number]])
        return [found[number] for number in numbers]

    def _asked(self, number: int) -> tuple[RolloutPrompt, int]:
        """Prompt `number` of this rollout and the seed of its noise."""
        prompt = self.prompts.prompt(self.number * self.options.prompts + number)
        return prompt, derived_seed(self.options.seed, "rollout", self.number, number)

    def _sampling(self) -> SamplingOptions:
        """Options of this rollout: the window of stochastic steps moves along."""
        if self.stage.settings.method != "grpo" or not self.options.window:
            return self.sampling
        settings = dict(self.sampling.settings)
        first = self._window_start(int(settings["steps"]), str(settings["solver"]))
        settings |= {"noise_from": first, "noise_steps": self.options.window}
        return replace(self.sampling, settings=settings)

    def _window_start(self, steps: int, solver: str) -> int:
        # The last step of `cps` draws no noise.
        places = steps - self.options.window + 1 - (solver == "cps")
        if places < 1:
            raise NextStepError(
                f"a window of {self.options.window} stochastic steps does not fit into the "
                f"{steps} steps of the solver"
            )
        return (self.number // self.options.slide_every) % places

    def _solver(self, group: RolloutGroup) -> tuple[SolverSettings | None, int]:
        """Solver of the samples, and which of its steps is trained; None for `nft`."""
        if self.stage.settings.method != "grpo":
            return None, 0
        solver = group.settings.solver_settings
        if solver.name not in STEP_RULES:
            raise NextStepError(
                f"grpo needs steps with a density: choose solver {' or '.join(STEP_RULES)}, "
                f"not '{solver.name}'"
            )
        open_steps = [
            step
            for step in range(solver.steps - (solver.name == "cps"))
            if solver.is_stochastic(step)
        ]
        if not open_steps:
            raise NextStepError(f"a '{solver.name}' of {solver.steps} step(s) has none to train")
        return solver, open_steps[self.step % len(open_steps)]

    def _row(
        self,
        group: RolloutGroup,
        sample: RolloutSample,
        experience: Experience,
        solver: SolverSettings | None,
    ) -> Row:
        seed = derived_seed(self.options.seed, "draws", self.step, group.key, sample.index)
        document = weighed_document(group, sample, self.tokenizer, seed)
        pictures, draws = group.pictures(sample), None
        if group.draws and not self.stage.settings.image:
            # Nothing is asked of the picture that follows what was written.
            document = replace(
                document, sequence=document.sequence.prompt(), images=document.images[:-1]
            )
            pictures = pictures[:-1]
        elif solver is not None and sample.tokens is not None:
            (*_, drawn) = document.sequence.images
            draws = _path_noise(group, sample, solver)[:, drawn.learned]
        asked = sum(label != IGNORE for label in document.sequence.labels)
        experience = replace(experience, text=experience.text[:asked], draws=draws)
        return [(replace(document, payload=experience), pictures)]

    def _everyones_rewards(self, groups: list[RolloutGroup]) -> Tensor:
        """Rewards of all ranks' groups in order of their numbers, fp64 [G, n]."""
        assert self.trainer is not None
        own = [sample.reward for group in groups for sample in group.samples]
        table = self.trainer.peers.table(own).view(self.world, len(groups), -1)
        return table.transpose(0, 1).reshape(self.world * len(groups), -1)

    def _log(self, groups: list[RolloutGroup], everyone: Tensor, accepted: Tensor) -> None:
        """Figures of the step; parts of rewards are those of the leading rank's groups."""
        assert self.trainer is not None
        figures: Mapping[str, Any] = means(groups) | {
            "reward": float(everyone.mean()),
            "spread": float(everyone.std(1, unbiased=False).mean()),
            "accepted": float(accepted.double().mean()),
        }
        self.trainer.note("rollout", **figures)


def _path_noise(group: RolloutGroup, sample: RolloutSample, solver: SolverSettings) -> Tensor:
    """The noise of a picture's tokens, given ones included, [draws, N, D]."""
    assert sample.tokens is not None
    count, size = sample.tokens.shape
    noise = KeyedNoise([(group.seed, sample.index)], solver.draws, size)
    return torch.stack([noise.token(index)[:, 0] for index in range(count)], dim=1)


def _experiences(group: RolloutGroup, deviation: Tensor, limit: float) -> list[Experience]:
    """What every sample of a group is worth, in `deviation` [1]."""
    rewards = torch.tensor([one.reward for one in group.samples], dtype=torch.float64)
    texts = [(*one.written, END) if one.ended else one.written for one in group.samples]
    found = []
    for reward, baseline in zip(rewards, prefix_baselines(rewards, texts), strict=True):
        worth = in_deviations(reward - baseline, deviation, limit).float()
        found.append(Experience(worth[:-1], float(worth[-1])))
    return found


def _kept(path: Path, policy: str) -> RolloutGroup | None:
    """A group that lies there already, if the same weights drew it."""
    if not path.exists():
        return None
    try:
        (group,) = read_shard(path)
    except (ModelFileError, ValueError):
        return None
    return group if group.policy == policy else None
