"""`nextstep predict`: the next pictures of a scene, one for every action."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from nextstep.cli import options as o
from nextstep.cli.groups import ModelOptions, StoryOptions, with_groups


@with_groups
def command(
    *,
    context: typer.Context,
    image: Annotated[Path, typer.Argument(help="Picture of the scene.")],
    action: Annotated[
        list[str], typer.Option("--action", "-a", help="Action; repeat for several steps.")
    ],
    output: o.Output = Path("next.png"),
    overwrite: o.Overwrite = False,
    chosen: ModelOptions,
    seed: o.Seed = 0,
    drawing: StoryOptions,
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
    settings = drawing.settings()
    if server is not None:
        from nextstep.cli import remote

        chosen.refuse_for_server(context)
        remote.predict(server, api_key, image, action, paths, as_json, seed=seed, **settings)
        return
    checks.check_drawing(chosen.check(), chosen.vae, (None, None), settings, edit=True, seed=seed)
    begun = time.monotonic()
    pipeline = chosen.load()
    loaded = time.monotonic()
    report.say_read_size(pipeline, [image], [scene])
    turns = pipeline.conversation(seed, **settings)
    turns.read(scene)
    turns.check_pictures(action)
    results = []
    with report.progress_bar(len(action), quiet=as_json) as told:
        for step, path in zip(action, paths, strict=True):
            turns.read(step)
            results.append(turns.draw(on_progress=told))
            results[-1].save(path)
    times = {"load_s": loaded - begun, "generate_s": time.monotonic() - loaded}
    report.say(results, paths, times, as_json)
