"""`nextstep generate`: pictures from text."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from nextstep.cli import options as o


def command(
    context: typer.Context,
    prompts: Annotated[list[str], typer.Argument(help="What to draw; may be empty text.")],
    output: o.Output = Path("picture.png"),
    overwrite: o.Overwrite = False,
    model: o.Model = "nano",
    vae: o.Vae = None,
    adapter: o.Adapter = None,
    adapter_scale: o.AdapterScale = 1.0,
    dtype: o.Dtype = None,
    quantize: o.Quantize = None,
    device: o.Device = "cpu",
    size: o.Size = None,
    height: o.Height = None,
    width: o.Width = None,
    num_images: o.NumImages = 1,
    seed: o.Seed = 0,
    guidance: o.Guidance = None,
    schedule: o.Schedule = None,
    solver: o.Solver = None,
    steps: o.Steps = None,
    final_token_steps: o.FinalTokenSteps = None,
    shift: o.Shift = None,
    noise_level: o.NoiseLevel = None,
    noise_scale: o.NoiseScale = None,
    token_norm: o.TokenNorm = None,
    reasoning: o.Reasoning = None,
    jacobi_window: o.JacobiWindow = None,
    jacobi_tolerance: o.JacobiTolerance = None,
    positive: o.Positive = None,
    negative: o.Negative = None,
    batch_size: o.BatchSize = 8,
    server: o.Server = None,
    api_key: o.ApiKey = None,
    as_json: o.Json = False,
) -> None:
    """Draw pictures from text.

    Example: nextstep generate "red apple, noto style, white background" --seed 1 -o apple.png
    """
    from nextstep.cli import checks, report

    paths = report.output_paths(output, len(prompts) * num_images, overwrite)
    sides = checks.parse_sides(size, height, width)
    settings: dict[str, Any] = {
        "guidance": guidance, "schedule": schedule, "solver": solver, "steps": steps,
        "final_token_steps": final_token_steps, "shift": shift, "noise_level": noise_level,
        "noise_scale": noise_scale, "token_norm": token_norm, "reasoning": reasoning,
        "jacobi_window": jacobi_window, "jacobi_tolerance": jacobi_tolerance,
        "positive_prompt": positive, "negative_prompt": negative,
    }  # fmt: skip
    chosen = checks.ModelOptions(model, dtype, device, vae, adapter, adapter_scale, quantize)
    if server is not None:
        from nextstep.cli import remote

        chosen.refuse_for_server(context)
        remote.pictures(
            server, api_key, prompts, paths, as_json, n=num_images, size=remote.size(*sides),
            seed=seed, **settings,
        )  # fmt: skip
        return
    checks.check_drawing(
        chosen.check(), vae, sides, settings, seed=seed, count=num_images, batch_size=batch_size
    )
    begun = time.monotonic()
    pipeline = chosen.load()
    loaded = time.monotonic()
    with report.progress_bar(len(prompts) * num_images, quiet=as_json) as told:
        results = pipeline.generate(
            prompts, height=sides[0], width=sides[1], num_images=num_images, seed=seed,
            batch_size=batch_size, on_progress=told, **settings,
        )  # fmt: skip
    times = {"load_s": loaded - begun, "generate_s": time.monotonic() - loaded}
    report.save_and_say(results, paths, times, as_json)
