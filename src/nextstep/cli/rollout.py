"""`nextstep rollout`: a model's own samples, judged, for training on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextstep.cli import options as o

if TYPE_CHECKING:
    from nextstep.rollout.prompts import PromptStream
    from nextstep.rollout.rewards import Reward
    from nextstep.text.tokenizer import TextTokenizer


def command(
    out: Annotated[
        Path, typer.Option("--output", "-o", "--out", help="Folder of shards; one that was "
                           "interrupted is gone on with.")
    ],
    model: o.Model = "nano",
    prompts: Annotated[
        Path | None, typer.Option(help="File of prompts: one a line, or .jsonl with an object a "
                                  "line that has 'prompt' and what rewards want to know.")
    ] = None,
    world: Annotated[
        list[str] | None,
        typer.Option(help="Prompts of the emoji world: an option of the live source as KEY=VALUE, "
                     "such as tasks=[two_objects]; repeat for several."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Prompts.")] = 64,
    samples: Annotated[int, typer.Option("--samples", "-n", min=1, help="Of every prompt.")] = 8,
    reward: Annotated[
        list[str] | None,
        typer.Option(help="KIND, KIND:ARGUMENT, and =WEIGHT behind it: world, python:FILE.py:NAME, "
                     "ocr=0.5 ...; repeat for several. Default world."),
    ] = None,
    watch: Annotated[
        list[str] | None, typer.Option(help="A reward that is written down and not summed.")
    ] = None,
    reasoning: Annotated[
        bool, typer.Option(help="Let the model write a line before it draws.")
    ] = False,
    temperature: o.Temperature = 1.0,
    height: o.Height = None,
    width: o.Width = None,
    guidance: o.Guidance = None,
    image_guidance: o.ImageGuidance = None,
    solver: o.Solver = None,
    steps: o.Steps = None,
    noise_level: o.NoiseLevel = None,
    seed: o.Seed = 0,
    per_shard: Annotated[
        int, typer.Option(min=1, help="Prompts of a shard, drawn together.")
    ] = 8,
    adapter: o.Adapter = None,
    adapter_scale: o.AdapterScale = 1.0,
    vae: o.Vae = None,
    dtype: o.Dtype = None,
    quantize: o.Quantize = None,
    device: o.Device = "cpu",
    as_json: o.Json = False,
) -> None:  # fmt: skip
    """Draw several samples of every prompt and judge them, as data for sft, dpo and distill.

    Example: nextstep rollout -m nano --world tasks=[two_objects] -n 16 -o runs/rollouts
    """
    from nextstep.cli import checks, report
    from nextstep.engine.engine import Engine
    from nextstep.errors import NextStepError
    from nextstep.rollout.rewards import Rewards, means
    from nextstep.rollout.run import make_rollouts
    from nextstep.rollout.sampler import Sampler, SamplingOptions
    from nextstep.rollout.samples import RolloutGroup
    from nextstep.rollout.store import RolloutStore

    if (prompts is None) == (not world):
        raise NextStepError(
            "say where prompts come from: either --prompts FILE or --world KEY=VALUE"
        )
    weighed = [_reward(told) for told in reward or ["world"]]
    rewards = Rewards(weighed, [_reward(told)[0] for told in watch or []])
    settings = {
        name: value
        for name, value in (
            ("guidance", guidance), ("image_guidance", image_guidance), ("solver", solver),
            ("steps", steps), ("noise_level", noise_level),
        )
        if value is not None
    }  # fmt: skip
    chosen = checks.ModelOptions(model, dtype, device, vae, adapter, adapter_scale, quantize)
    pipeline = chosen.load()
    engine = Engine(
        pipeline.model, pipeline.text_tokenizer, pipeline.image_tokenizer, pipeline.defaults,
        model_hash=pipeline.model_hash, adapter=pipeline.adapter,
    )  # fmt: skip
    stream = _stream(
        prompts, world or [], pipeline.text_tokenizer, width or pipeline.defaults.width, seed
    )
    options = SamplingOptions(samples, height, width, settings, reasoning, temperature)
    identity = {
        "model": pipeline.model_hash, **pipeline.adapter, "prompts": str(prompts or ""),
        "world": list(world or []), "samples": samples, "settings": settings,
        "reasoning": reasoning, "temperature": temperature, "size": [height, width], "seed": seed,
        "rewards": [*(reward or ["world"]), *(watch or [])], "per_shard": per_shard,
        "quantize": quantize or "", "dtype": dtype or "",
    }  # fmt: skip
    store = RolloutStore(out, identity)
    seen: list[RolloutGroup] = []
    with report.counting("prompts", as_json, count) as told:

        def shard(groups: list[RolloutGroup]) -> None:
            seen.extend(groups)
            for _ in groups:
                told()

        make_rollouts(
            store, stream, Sampler(engine, options), rewards, count, seed, per_shard, shard
        )
    figures = {name: round(value, 4) for name, value in means(seen).items()}
    best = sum(max(s.reward for s in group.samples) for group in seen) / len(seen)
    figures = {"prompts": len(seen), "samples": samples, "best": round(best, 4)} | figures
    typer.echo(
        json.dumps(figures | {"written": str(out)}) if as_json else
        "\n".join(f"{name:<24}{value}" for name, value in figures.items()) + f"\nwrote {out}"
    )  # fmt: skip


def _reward(told: str) -> tuple[Reward, float]:
    """A reward and its weight from "KIND:ARGUMENT=WEIGHT"."""
    from nextstep.errors import NextStepError
    from nextstep.rollout.reward_kinds import open_reward

    name, equals, weight = told.rpartition("=")
    if not equals:
        name, weight = told, "1"
    kind, _, argument = name.partition(":")
    try:
        number = float(weight)
    except ValueError:
        raise NextStepError(f"the weight of the reward '{told}' is no number") from None
    return open_reward(kind, argument), number


def _stream(
    file: Path | None, world: list[str], tokenizer: TextTokenizer, side: int, seed: int
) -> PromptStream:
    from nextstep.errors import NextStepError
    from nextstep.recipe.load import apply_override
    from nextstep.rollout.prompts import ListedPrompts, LivePrompts, read_prompts
    from nextstep.world.live import WorldSource

    if file is not None:
        return ListedPrompts(read_prompts(file), None)
    options: dict[str, Any] = {}
    for one in world:
        apply_override(options, one)
    try:
        source = WorldSource(tokenizer, **{"pixels": side, **options})
    except TypeError as error:
        raise NextStepError(f"--world: {error}") from None
    return LivePrompts(source, source.pixels, seed)
