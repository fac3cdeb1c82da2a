"""`nextstep predict`: the next pictures of a scene, one for every action."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from nextstep.cli import options as o


def command(
    image: Annotated[Path, typer.Argument(help="The scene as it is.")],
    action: Annotated[
        list[str], typer.Option("--action", "-a", help="What happens; repeat for several steps.")
    ],
    output: o.Output = Path("next.png"),
    model: o.Model = "nano",
    vae: o.Vae = None,
    dtype: o.Dtype = None,
    quantize: o.Quantize = None,
    device: o.Device = "cpu",
    seed: o.Seed = 0,
    guidance: o.Guidance = None,
    image_guidance: o.ImageGuidance = None,
    schedule: o.Schedule = None,
    solver: o.Solver = None,
    steps: o.Steps = None,
    as_json: o.Json = False,
) -> None:
    """Draw what a scene looks like after each action.

    Example: nextstep predict scene.png -a "the cat moves right" -a "the cat moves back"
    """
    from nextstep.cli import report
    from nextstep.image.pictures import open_picture

    paths = report.output_paths(output, len(action))
    scene = open_picture(image)
    begun = time.monotonic()
    pipeline = o.load_pipeline(model, dtype, device, vae, quantize=quantize)
    loaded = time.monotonic()
    report.say_read_size(pipeline, [image], [scene])
    turns = pipeline.conversation(
        seed, guidance=guidance, image_guidance=image_guidance, schedule=schedule,
        solver=solver, steps=steps,
    )  # fmt: skip
    turns.read(scene)
    results = []
    with report.progress_bar(len(action), quiet=as_json) as told:
        for step in action:
            turns.read(step)
            results.append(turns.draw(on_progress=told))
    times = {"load_s": loaded - begun, "generate_s": time.monotonic() - loaded}
    report.save_and_say(results, paths, times, as_json)
