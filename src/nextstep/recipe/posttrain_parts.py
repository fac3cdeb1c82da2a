"""The stages dpo and rl of a recipe: the model's own samples become steps of the loop.

Legend: weights of any shape by their names.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nextstep.data.documents import derived_seed
from nextstep.engine.engine import Engine
from nextstep.engine.scheduler import EngineLimits
from nextstep.errors import NextStepError
from nextstep.kernels import formats
from nextstep.model.quantization import pack_model
from nextstep.recipe.live import open_live
from nextstep.recipe.load import RecipeError
from nextstep.recipe.posttrain_schema import Distillation, Policy, Preference
from nextstep.recipe.samples import defaults_of
from nextstep.recipe.sequence_parts import SequenceParts
from nextstep.rollout.batches import NumberedBatches, Row
from nextstep.rollout.online import OnlineBatches, OnlineOptions
from nextstep.rollout.pairs import Pairs
from nextstep.rollout.prompts import (
    ListedPrompts,
    LivePrompts,
    PromptStream,
    RolloutPrompt,
    read_prompts,
)
from nextstep.rollout.reference import reference_figures, reference_folder
from nextstep.rollout.reward_kinds import open_reward
from nextstep.rollout.rewards import Rewards
from nextstep.rollout.sampler import SamplingOptions
from nextstep.rollout.store import read_rollouts
from nextstep.rollout.teacher import TeacherOptions, TeacherTokens, make_parts
from nextstep.train.ema import copied
from nextstep.train.optimizer import freeze
from nextstep.train.parallel import is_sharded, let_go, run_gathered
from nextstep.train.stages.distill import DistillSettings, DistillStage, frozen_names
from nextstep.train.stages.dpo import DpoStage, PreferenceSettings
from nextstep.train.stages.rl import PolicySettings, PolicyStage

if TYPE_CHECKING:
    from nextstep.recipe.posttrain_schema import RewardSource
    from nextstep.recipe.schema import Recipe
    from nextstep.text.tokenizer import TextTokenizer
    from nextstep.train.trainer import Trainer


class DpoParts(SequenceParts):
    """A run of dpo; see `SequenceParts`."""

    def _open(self, folder: Path, where: str) -> None:
        recipe, data = self.recipe, self.recipe.data
        asked = recipe.preference or Preference()
        freeze(self.model, recipe.model.freeze if recipe.model else ())
        groups = [
            group
            for source in data.sources
            if source.rollouts
            for group in read_rollouts(Path(source.rollouts))
        ]
        pairs = Pairs(groups, self.text_tokenizer, asked.winners, asked.draws, recipe.seed)
        settings = PreferenceSettings(
            asked.beta, asked.image, asked.text, asked.text_beta, asked.sft, asked.safety,
            asked.levels,
        )  # fmt: skip
        self.stage = DpoStage(self.config, settings)
        pairs.reference = self._reference(pairs, asked, folder)
        self.batches = NumberedBatches(
            pairs.row, self.stage.batch_of, data.rows, data.micro_batch_rows, self.ranks.rank,
            self.ranks.world,
        )  # fmt: skip

    def _reference(self, pairs: Pairs, asked: Preference, folder: Path) -> Tensor:
        """What the weights that the run starts from say of all pairs that it meets."""
        recipe = self.recipe
        micro = 2 * recipe.data.micro_batch_rows

        @torch.no_grad()
        def figures(rows: Sequence[Row]) -> Tensor:
            found = []
            for first in range(0, len(rows), micro):
                batch = self.stage.prepare(
                    self.stage.batch_of(rows[first : first + micro]), self.device
                )
                with self.autocast():
                    found.append(run_gathered(self.model, self.stage.figures, batch).float().cpu())
            return torch.cat(found)

        place = reference_folder(
            Path(asked.reference) if asked.reference else folder / "reference", self.model, pairs,
            asked.levels, bool(asked.text), recipe.precision,
        )  # fmt: skip
        epochs = -(-recipe.steps * recipe.data.rows // len(pairs))
        draws = min(asked.draws, epochs)
        found = reference_figures(figures, pairs, draws, place, self.ranks.rank, self.ranks.world)
        if is_sharded(self.model):
            let_go(self.model)
        return found


class RlParts(SequenceParts):
    """A run of rl; see `SequenceParts`."""

    batches: OnlineBatches

    def _open(self, folder: Path, where: str) -> None:
        recipe, asked = self.recipe, self.recipe.policy or Policy()
        drawn = recipe.rollouts
        assert drawn is not None
        freeze(self.model, recipe.model.freeze if recipe.model else ())
        settings = PolicySettings(
            asked.method, asked.beta, asked.advantage_limit, asked.clip, asked.text_clip,
            asked.image, asked.text, asked.bad_text, drawn.temperature, asked.distances,
            asked.token_share, asked.levels,
        )  # fmt: skip
        reference = copied(self.model) if asked.needs_reference else None
        self.stage = PolicyStage(self.config, settings, reference)
        # A model may recommend guidance by source pictures, which a policy gradient must not have.
        plain = {"image_guidance": 1.0} if asked.method == "grpo" else {}
        sampling = SamplingOptions(
            drawn.samples, drawn.height, drawn.width, {**drawn.settings, **plain}, drawn.reasoning,
            drawn.temperature,
        )  # fmt: skip
        most_mean = math.inf if drawn.most_mean is None else drawn.most_mean
        options = OnlineOptions(
            drawn.prompts, recipe.data.micro_batch_rows, drawn.advantage_scale,
            asked.advantage_limit, drawn.least_spread, most_mean, asked.window, asked.slide_every,
            drawn.updates, drawn.minibatches, recipe.seed,
        )  # fmt: skip
        self.batches = OnlineBatches(
            self._prompts(where), open_rewards(drawn.rewards, drawn.watch), sampling, options,
            self.stage, self._engine, self.text_tokenizer, folder, self.ranks.rank,
            self.ranks.world,
        )  # fmt: skip

    def attach(self, trainer: Trainer) -> None:
        """Samples come from this trainer's weights."""
        self.batches.attach(trainer)

    def _engine(self, weights: dict[str, Tensor]) -> Engine:
        drawn = self.recipe.rollouts
        assert drawn is not None
        on_gpu = self.device.type != "cpu"
        parts = self._whole(weights, torch.bfloat16 if on_gpu else torch.float32)
        parts.model.to(self.device)
        if drawn.quantize:
            pack_model(parts.model, *formats(drawn.quantize))
        return Engine.of_parts(parts, EngineLimits(cache_bytes=int(drawn.cache_gb * 1e9)))

    def _prompts(self, where: str) -> PromptStream:
        return open_prompts(self.recipe, self.text_tokenizer, where)


class DistillParts(SequenceParts):
    """A run of distill; see `SequenceParts`."""

    def _open(self, folder: Path, where: str) -> None:
        recipe, asked = self.recipe, self.recipe.distillation or Distillation()
        if is_sharded(self.model):
            raise NextStepError(
                "distill trains whole copies of the model; set parallel.replicas to the number of "
                "ranks"
            )
        if not self.config.flow_map:
            raise RecipeError(f"{where}: model.overrides: distill needs flow_map: true")
        teacher = copy.deepcopy(self.model.image_head)
        freeze(self.model, frozen_names(self.model))
        groups = [
            group
            for source in recipe.data.sources
            if source.rollouts
            for group in read_rollouts(Path(source.rollouts))
        ]
        options = TeacherOptions(
            asked.guidance, asked.image_guidance, asked.teacher_steps, recipe.seed
        )
        share = self.ranks.rank, self.ranks.world
        make_parts(self.model.eval(), teacher, groups, self.text_tokenizer, options, folder, share)
        if self.ranks.world > 1:
            torch.distributed.barrier()
        normalised = defaults_of(recipe).generate.token_norm
        settings = DistillSettings(
            asked.method, tuple(asked.calls), asked.spans, asked.power, normalised
        )
        self.stage = DistillStage(settings, teacher)
        self.batches = TeacherTokens(
            folder, asked.batch, asked.batch // self.ranks.world, recipe.seed, *share
        )


class MixedPrompts:
    """Several streams in given shares; which one a number meets is fixed by the seed.

    Args:
        streams: with their weights.
        seed: of the choice.
    """

    def __init__(self, streams: list[tuple[PromptStream, float]], seed: int) -> None:
        self.streams, self.seed = streams, seed

    def prompt(self, number: int) -> RolloutPrompt:
        """Prompt `number` of the run."""
        given, weights = zip(*self.streams, strict=True)
        rng = random.Random(derived_seed(self.seed, "stream", number))
        chosen: PromptStream = rng.choices(given, weights)[0]
        return chosen.prompt(number)


def open_prompts(recipe: Recipe, tokenizer: TextTokenizer, where: str) -> PromptStream:
    """The prompts of a recipe's sources.

    Raises:
        NextStepError: when one cannot be had.
    """
    streams: list[tuple[PromptStream, float]] = []
    reasoning = recipe.rollouts is not None and recipe.rollouts.reasoning
    for place, source in enumerate(recipe.data.sources):
        if not source.weight:
            continue
        if source.prompts:
            listed = ListedPrompts(read_prompts(Path(source.prompts)), recipe.seed)
            streams.append((listed, source.weight))
            continue
        live = open_live(source, tokenizer, f"{where}: data.sources[{place}]")
        side = live.pixels if hasattr(live, "pixels") else max(recipe.data.areas)
        streams.append((LivePrompts(live, side, recipe.seed, reasoning), source.weight))
    return streams[0][0] if len(streams) == 1 else MixedPrompts(streams, recipe.seed)


def open_rewards(weighted: list[RewardSource], watched: list[RewardSource]) -> Rewards:
    """The rewards of a recipe.

    Raises:
        NextStepError: for an unknown one.
    """
    made = [(open_reward(r.kind, r.argument, r.options), r.weight) for r in weighted]
    return Rewards(made, [open_reward(r.kind, r.argument, r.options) for r in watched])
