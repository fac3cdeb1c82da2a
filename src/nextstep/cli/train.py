"""`nextstep train`: run a recipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def command(
    recipe: Annotated[
        Path, typer.Argument(help="YAML file, or a recipe that ships, such as pretrain-nano.")
    ],
    changes: Annotated[
        list[str] | None, typer.Argument(help="key.path=value, e.g. data.sources[1].weight=2.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            "--folder",
            help="Folder of the run; default runs/NAME-OF-THE-RECIPE.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--fresh",
            help="Resume from the newest checkpoint, or rename the old run and start again.",
        ),
    ] = True,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; default cuda where there is one.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress line.")] = False,
) -> None:
    """Train a recipe, alone or as one of the processes of torchrun.

    Example: nextstep train pretrain-nano steps=500 -o runs/try
    """
    from nextstep.cli import checks
    from nextstep.recipe import host
    from nextstep.recipe.load import load_recipe, recipe_file

    if device is not None:
        checks.check_device_name(device)
    file = recipe_file(recipe)
    loaded = load_recipe(file, changes or [])
    run = folder or Path("runs") / file.stem
    host.settle()
    from nextstep.recipe.run import run_recipe

    outcome = run_recipe(
        loaded, run, where=str(file), resume=resume, device=device, progress=not quiet
    )
    if os.environ.get("RANK", "0") != "0":
        return
    if outcome.model:
        typer.echo(f"{outcome.model}  after {outcome.step:,} steps")
    else:
        typer.echo(
            f"stopped after {outcome.step:,} of {loaded.steps:,} steps; the same command goes on"
        )
