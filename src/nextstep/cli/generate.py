"""`nextstep generate`: pictures from text."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

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
    device: o.Device = "cpu",
    height: o.Height = None,
    width: o.Width = None,
    num_images: o.NumImages = 1,
    seed: o.Seed = 0,
    guidance: o.Guidance = None,
    schedule: o.Schedule = None,
    solver: o.Solver = None,
    steps: o.Steps = None,
    shift: o.Shift = None,
    noise_level: o.NoiseLevel = None,
    token_norm: o.TokenNorm = None,
    positive: o.Positive = None,
    negative: o.Negative = None,
    batch_size: o.BatchSize = 8,
    as_json: o.Json = False,
) -> None:
    """Draw pictures from text.

    Example: nextstep generate "red apple, noto style, white background" --seed 1 -o apple.png
    """
    from nextstep.cli import report

    paths = report.output_paths(output, len(prompts) * num_images)
    begun = time.monotonic()
    pipeline = o.load_pipeline(model, dtype, device, vae, adapter, adapter_scale)
    loaded = time.monotonic()
    with report.progress_bar(len(prompts) * num_images, quiet=as_json) as told:
        results = pipeline.generate(
            prompts, height=height, width=width, num_images=num_images, seed=seed,
            batch_size=batch_size, on_progress=told, guidance=guidance, schedule=schedule,
            solver=solver, steps=steps, shift=shift, noise_level=noise_level,
            token_norm=token_norm, positive_prompt=positive, negative_prompt=negative,
        )  # fmt: skip
    times = {"load_s": loaded - begun, "generate_s": time.monotonic() - loaded}
    report.save_and_say(results, paths, times, as_json)
