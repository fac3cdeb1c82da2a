"""`nextstep generate`: pictures from text."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from nextstep.cli import options as o
from nextstep.cli.groups import GenerateOptions, ModelOptions, SizeOptions, with_groups


@with_groups
def command(
    *,
    context: typer.Context,
    prompts: Annotated[list[str], typer.Argument(help="Prompt; may be empty.")],
    output: o.Output = Path("picture.png"),
    overwrite: o.Overwrite = False,
    chosen: ModelOptions,
    size: SizeOptions,
    num_images: o.NumImages = 1,
    seed: o.Seed = 0,
    drawing: GenerateOptions,
    batch_size: o.BatchSize = 8,
    server: o.Server = None,
    api_key: o.ApiKey = None,
    as_json: o.Json = False,
) -> None:
    """Draw pictures from text.

    Settings of sampling that are not given are the model's own; nextstep info shows them.

    Example: nextstep generate "red apple, noto style, white background" --seed 1 -o apple.png
    """
    from nextstep.cli import checks, report

    paths = report.output_paths(output, len(prompts) * num_images, overwrite)
    sides = size.sides
    settings = drawing.settings()
    if server is not None:
        from nextstep.cli import remote

        chosen.refuse_for_server(context)
        remote.pictures(
            server, api_key, prompts, paths, as_json, n=num_images, size=remote.size(*sides),
            seed=seed, **settings,
        )  # fmt: skip
        return
    checks.check_drawing(
        chosen.check(),
        chosen.vae,
        sides,
        settings,
        seed=seed,
        count=num_images,
        batch_size=batch_size,
    )
    begun = time.monotonic()
    pipeline = chosen.load()
    loaded = time.monotonic()
    with report.progress_bar(len(prompts) * num_images, quiet=as_json) as told:
        results = pipeline.generate(
            prompts, height=sides[0], width=sides[1], num_images=num_images, seed=seed,
            batch_size=batch_size, on_progress=told, on_picture=report.saved(paths), **settings,
        )  # fmt: skip
    times = {"load_s": loaded - begun, "generate_s": time.monotonic() - loaded}
    report.say(results, paths, times, as_json)
