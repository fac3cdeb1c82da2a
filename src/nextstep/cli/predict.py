"""`nextstep predict`: the next pictures of a scene, one for every action."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from nextstep.cli import options as o


def command(
    context: typer.Context,
    image: Annotated[Path, typer.Argument(help="The scene as it is.")],
    action: Annotated[
        list[str], typer.Option("--action", "-a", help="What happens; repeat for several steps.")
    ],
    output: o.Output = Path("next.png"),
    overwrite: o.Overwrite = False,
    model: o.Model = "nano",
    vae: o.Vae = None,
    adapter: o.Adapter = None,
    adapter_scale: o.AdapterScale = 1.0,
    dtype: o.Dtype = None,
    quantize: o.Quantize = None,
    device: o.Device = "cpu",
    seed: o.Seed = 0,
    guidance: o.Guidance = None,
    image_guidance: o.ImageGuidance = None,
    schedule: o.Schedule = None,
    solver: o.Solver = None,
    steps: o.Steps = None,
    server: o.Server = None,
    api_key: o.ApiKey = None,
    as_json: o.Json = False,
) -> None:
    """Draw what a scene looks like after each action.

    Example: nextstep predict scene.png -a "the cat moves right" -a "the cat moves back"
    """
    from nextstep.cli import checks, report
    from nextstep.image.pictures import open_picture

    paths = report.output_paths(output, len(action), overwrite)
    scene = open_picture(image)
    settings = {
        "guidance": guidance, "image_guidance": image_guidance, "schedule": schedule,
        "solver": solver, "steps": steps,
    }  # fmt: skip
    chosen = checks.ModelOptions(model, dtype, device, vae, adapter, adapter_scale, quantize)
    if server is not None:
        from nextstep.cli import remote

        chosen.refuse_for_server(context)
        remote.predict(server, api_key, image, action, paths, as_json, seed=seed, **settings)
        return
    checks.check_drawing(chosen.check(), vae, (None, None), settings, edit=True, seed=seed)
    begun = time.monotonic()
    pipeline = chosen.load()
    loaded = time.monotonic()
    report.say_read_size(pipeline, [image], [scene])
    turns = pipeline.conversation(seed, **settings)
    turns.read(scene)
    results = []
    with report.progress_bar(len(action), quiet=as_json) as told:
        for step in action:
            turns.read(step)
            results.append(turns.draw(on_progress=told))
    times = {"load_s": loaded - begun, "generate_s": time.monotonic() - loaded}
    report.save_and_say(results, paths, times, as_json)
