"""`nextstep generate`: pictures from text."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from nextstep.cli import options as o


def command(
    prompts: Annotated[list[str], typer.Argument(help="What to draw; may be empty text.")],
    output: o.Output = Path("picture.png"),
    model: o.Model = "nano",
    vae: o.Vae = None,
    adapter: o.Adapter = None,
    adapter_scale: o.AdapterScale = 1.0,
    dtype: o.Dtype = None,
    quantize: o.Quantize = None,
    device: o.Device = "cpu",
    height: o.Height = None,
    width: o.Width = None,
    num_images: o.NumImages = 1,
    seed: o.Seed = 0,
    guidance: o.Guidance = None,
    schedule: o.Schedule = None,
    solver: o.Solver = None,
    steps: o.Steps = None,
    last_steps: o.LastSteps = None,
    shift: o.Shift = None,
    noise_level: o.NoiseLevel = None,
    noise_scale: o.NoiseScale = None,
    token_norm: o.TokenNorm = None,
    think: o.Think = None,
    lookahead: o.Lookahead = None,
    tolerance: o.Tolerance = None,
    positive: o.Positive = None,
    negative: o.Negative = None,
    batch_size: o.BatchSize = 8,
    server: Annotated[
        str | None, typer.Option(help="Ask a service at this address (nextstep serve) instead of "
                                 "loading a model.", rich_help_panel=o.MODEL_PANEL)
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="Of the service.", envvar="NEXTSTEP_API_KEY",
                                 rich_help_panel=o.MODEL_PANEL)
    ] = None,
    as_json: o.Json = False,
) -> None:  # fmt: skip
    """Draw pictures from text.

    Example: nextstep generate "red apple, noto style, white background" --seed 1 -o apple.png
    """
    from nextstep.cli import report

    paths = report.output_paths(output, len(prompts) * num_images)
    settings: dict[str, Any] = {
        "guidance": guidance, "schedule": schedule, "solver": solver, "steps": steps,
        "last_steps": last_steps, "shift": shift, "noise_level": noise_level,
        "noise_scale": noise_scale, "token_norm": token_norm, "think": think,
        "lookahead": lookahead, "tolerance": tolerance, "positive_prompt": positive,
        "negative_prompt": negative,
    }  # fmt: skip
    if server is not None:
        from nextstep.cli import remote

        if vae or adapter or dtype or quantize:
            raise ValueError(
                "a service has its own model: leave out --vae, --adapter, --dtype and --quantize"
            )
        size = remote.size(height, width)
        remote.generate(
            server, api_key, prompts, paths, as_json, n=num_images, size=size, seed=seed, **settings
        )
        return
    begun = time.monotonic()
    pipeline = o.load_pipeline(model, dtype, device, vae, adapter, adapter_scale, quantize)
    loaded = time.monotonic()
    with report.progress_bar(len(prompts) * num_images, quiet=as_json) as told:
        results = pipeline.generate(
            prompts, height=height, width=width, num_images=num_images, seed=seed,
            batch_size=batch_size, on_progress=told, **settings,
        )  # fmt: skip
    times = {"load_s": loaded - begun, "generate_s": time.monotonic() - loaded}
    report.save_and_say(results, paths, times, as_json)
