"""`nextstep rollout`: a model's own samples, judged, for training on them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextstep.cli import options as o
from nextstep.cli.groups import ModelOptions, with_groups
from nextstep.errors import NextStepError

if TYPE_CHECKING:
    from nextstep.rollout.prompts import PromptStream
    from nextstep.rollout.rewards import Reward, Rewards
    from nextstep.rollout.samples import RolloutGroup
    from nextstep.text.tokenizer import TextTokenizer


@dataclass(frozen=True)
class PromptOptions:
    """Where prompts come from."""

    prompts: Annotated[
        Path | None,
        typer.Option(
            help="File of prompts: one a line, or .jsonl with an object a "
            "line that has 'prompt' and what rewards want to know."
        ),
    ] = None
    world: Annotated[
        list[str] | None,
        typer.Option(
            help="Prompts of the emoji world: an option of the live source as KEY=VALUE, "
            "such as edition=core-48; repeat for several."
        ),
    ] = None

    def check(self) -> None:
        """Refuse both sources together, and none.

        Raises:
            NextStepError: for either.
        """
        if (self.prompts is None) == (not self.world):
            raise NextStepError(
                "say where prompts come from: either --prompts FILE or --world KEY=VALUE"
            )

    def stream(
        self, tokenizer: TextTokenizer, side: int, seed: int, reasoning: bool
    ) -> PromptStream:
        """The prompts, those of the world for pictures of so many pixels a side."""
        from nextstep.recipe.load import apply_override
        from nextstep.rollout.prompts import ListedPrompts, LivePrompts, read_prompts
        from nextstep.world.live import WorldSource

        if self.prompts is not None:
            return ListedPrompts(read_prompts(self.prompts), None)
        options: dict[str, Any] = {}
        for one in self.world or []:
            apply_override(options, one)
        try:
            source = WorldSource(tokenizer, **{"pixels": side, **options})
        except TypeError as error:
            raise NextStepError(f"--world: {error}") from None
        return LivePrompts(source, source.pixels, seed, reasoning)


@dataclass(frozen=True)
class RewardOptions:
    """How samples are judged."""

    reward: Annotated[
        list[str] | None,
        typer.Option(
            help="KIND, KIND:ARGUMENT, and =WEIGHT behind it: world, python:FILE.py:NAME, "
            "ocr=0.5 ...; repeat for several. Default world."
        ),
    ] = None
    watch: Annotated[
        list[str] | None, typer.Option(help="A reward that is written down and not summed.")
    ] = None

    @property
    def summed(self) -> list[str]:
        """Rewards that are summed."""
        return self.reward or ["world"]

    def rewards(self) -> Rewards:
        """The same, opened."""
        from nextstep.rollout.rewards import Rewards

        watched = [_reward(told)[0] for told in self.watch or []]
        return Rewards([_reward(told) for told in self.summed], watched)


@dataclass(frozen=True)
class DrawingOptions:
    """Settings of sampling; None is the model's own."""

    guidance: o.Guidance = None
    image_guidance: o.ImageGuidance = None
    solver: o.Solver = None
    steps: o.Steps = None
    noise_level: o.NoiseLevel = None

    def settings(self) -> dict[str, Any]:
        """Those that were said."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@with_groups
def command(
    *,
    out: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of shards; one that was interrupted "
                           "is gone on with.")
    ],
    asked: PromptOptions,
    count: Annotated[int, typer.Option(min=1, help="Prompts.")] = 64,
    samples: Annotated[int, typer.Option("--samples", "-n", min=1, help="Of every prompt.")] = 8,
    judging: RewardOptions,
    reasoning: Annotated[
        bool,
        typer.Option(
            help="Let the model write a line before it draws.", rich_help_panel=o.WRITING_PANEL
        ),
    ] = False,
    temperature: o.Temperature = 1.0,
    height: o.Height = None,
    width: o.Width = None,
    drawing: DrawingOptions,
    seed: o.Seed = 0,
    per_shard: Annotated[
        int, typer.Option(min=1, help="Prompts of a shard, drawn together.")
    ] = 8,
    chosen: ModelOptions,
    as_json: o.Json = False,
) -> None:  # fmt: skip
    """Draw several samples of every prompt and judge them, as data for sft, dpo and distill.

    Example: nextstep rollout -m nano --world edition=core-48 -n 16 -o runs/rollouts
    """
    from nextstep.cli import report
    from nextstep.engine.engine import Engine
    from nextstep.rollout.sampler import Sampler, SamplingOptions, make_rollouts
    from nextstep.rollout.store import RolloutStore

    asked.check()
    rewards = judging.rewards()
    settings = drawing.settings()
    pipeline = chosen.load()
    engine = Engine(
        pipeline.model, pipeline.text_tokenizer, pipeline.image_tokenizer, pipeline.defaults,
        model_hash=pipeline.model_hash, adapter=pipeline.adapter,
    )  # fmt: skip
    tokenizer, side = pipeline.text_tokenizer, width or pipeline.defaults.width
    stream = asked.stream(tokenizer, side, seed, reasoning)
    options = SamplingOptions(samples, height, width, settings, reasoning, temperature)
    identity = {
        "model": pipeline.model_hash, **pipeline.adapter, "prompts": str(asked.prompts or ""),
        "world": list(asked.world or []), "samples": samples, "settings": settings,
        "reasoning": reasoning, "temperature": temperature, "size": [height, width], "seed": seed,
        "rewards": [*judging.summed, *(judging.watch or [])], "per_shard": per_shard,
        "quantize": chosen.quantize or "", "dtype": chosen.dtype or "",
    }  # fmt: skip
    seen: list[RolloutGroup] = []
    with report.counting("prompts", as_json, count) as told:

        def shard(groups: list[RolloutGroup]) -> None:
            seen.extend(groups)
            for _ in groups:
                told()

        make_rollouts(
            RolloutStore(out, identity), stream, Sampler(engine, options), rewards, count, seed,
            per_shard, shard,
        )  # fmt: skip
    _say(seen, samples, out, as_json)


def _say(seen: list[RolloutGroup], samples: int, out: Path, as_json: bool) -> None:
    """Tell the mean rewards, and the mean of the best sample of each prompt."""
    from nextstep.rollout.rewards import means

    best = sum(max(s.reward for s in group.samples) for group in seen) / len(seen)
    figures = {"prompts": len(seen), "samples": samples, "best": round(best, 4)}
    figures |= {name: round(value, 4) for name, value in means(seen).items()}
    typer.echo(
        json.dumps(figures | {"written": str(out)}) if as_json else
        "\n".join(f"{name:<24}{value}" for name, value in figures.items()) + f"\nwrote {out}"
    )  # fmt: skip


def _reward(told: str) -> tuple[Reward, float]:
    """A reward and its weight from "KIND:ARGUMENT=WEIGHT"."""
    from nextstep.rollout.reward_kinds import open_reward

    name, equals, weight = told.rpartition("=")
    if not equals:
        name, weight = told, "1"
    kind, _, argument = name.partition(":")
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise NextStepError(f"the weight of the reward '{told}' is no finite number")
    return open_reward(kind, argument), number
