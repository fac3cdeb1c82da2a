"""`nextstep world`: the emoji world: look at it, write it into shards, fetch its full sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from nextstep.cli import options as o

world_app = typer.Typer(
    help="The emoji world: scenes with exact ground truth, drawn from seeds.", no_args_is_help=True
)

Tasks = Annotated[
    list[str] | None,
    typer.Option("--task", "-t", help="Task or group of tasks; repeat for several. Default all."),
]
Split = Annotated[
    str, typer.Option(help="train, seen, held_out_styles, held_out_pairs, held_out_phrasings or "
                      "held_out_words.")
]  # fmt: skip
Seed = Annotated[int, typer.Option(help="Seed of all samples.")]
Size = Annotated[int, typer.Option(help="Side of a picture in pixels, a multiple of 16.")]
Edition = Annotated[
    str, typer.Option(help="Edition of the world: core-48, core-96, core-144 or full.")
]


@world_app.command("show")
def show(
    output: Annotated[Path, typer.Option("--output", "-o", help="Picture file.")] = Path(
        "world.png"
    ),
    overwrite: o.Overwrite = False,
    tasks: Tasks = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Samples per task.")] = 6,
    split: Split = "train",
    seed: Seed = 0,
    size: Size = 128,
    columns: Annotated[int, typer.Option(min=1, help="Samples per row.")] = 6,
    edition: Edition = "full",
    as_json: o.Json = False,
) -> None:
    """Draw a sheet of samples with their texts; tasks without the split are left out.

    Example: nextstep world show -t counting -t story -n 12 -o sheet.png
    """
    from nextstep.cli.report import output_paths, save_sheet
    from nextstep.world.scenes import check_side
    from nextstep.world.sheet import sheet
    from nextstep.world.signs import longest_word_at
    from nextstep.world.tasks import choose_tasks, examples, tasks_with_split

    output_paths(output, 1, overwrite)
    check_side(size, "--size")
    kept = tasks_with_split(choose_tasks(tasks or None, edition), split, edition)
    longest = longest_word_at(size)
    made = [one for task in kept for one in examples(task, split, count, seed, edition, longest)]
    save_sheet(sheet(made, size, columns), output)
    if as_json:
        told = [
            {"task": one.task, "text": one.text, "targets": [one.metadata(t) for t in one.targets]}
            for one in made
        ]
        typer.echo(json.dumps({"path": str(output), "samples": told}, ensure_ascii=False))
    else:
        typer.echo(f"{output}  {len(made)} samples of {len(kept)} tasks")


@world_app.command("build")
def build(
    folder: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Number of samples.")] = 10_000,
    tasks: Tasks = None,
    split: Split = "train",
    seed: Seed = 0,
    size: Size = 128,
    edition: Edition = "full",
    as_json: o.Json = False,
) -> None:
    """Write samples into tar shards, one set for each kind of sample.

    Example: nextstep world build runs/world -t drawing -n 50000
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from nextstep.world.build import build_shards

    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = Console(stderr=True, quiet=as_json)
    with Progress(*columns, console=console, transient=True) as bar:
        line = bar.add_task("", total=count)
        written = build_shards(
            folder,
            count,
            tasks or None,
            split,
            size,
            seed,
            edition,
            on_sample=lambda: bar.advance(line),
        )
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "samples": written}))
    else:
        typer.echo(f"{folder}  {sum(written.values())} samples of {len(written)} tasks")


@world_app.command("fetch")
def fetch(
    styles: Annotated[
        list[str] | None,
        typer.Option("--style", help="Style to download; repeat for several. Default all."),
    ] = None,
) -> None:
    """Download the full emoji sets with npm at their pinned versions.

    The scenes need none of them: their drawings ship with the package.
    """
    from nextstep.errors import NextStepError
    from nextstep.world.sources import NAMES_PACKAGE, STYLE_PACKAGES, fetch_package

    unknown = [style for style in styles or () if style not in STYLE_PACKAGES]
    if unknown:
        raise NextStepError(f"no style '{unknown[0]}'; choose from {', '.join(STYLE_PACKAGES)}")
    sources = {style: STYLE_PACKAGES[style] for style in styles or STYLE_PACKAGES}
    wanted = [("names", *NAMES_PACKAGE, "MIT")]
    wanted += [(style, s.package, s.version, s.licence) for style, s in sources.items()]
    for place, (title, package, version, licence) in enumerate(wanted, 1):
        typer.echo(f"{place}/{len(wanted)} {title}: {package} {version} ({licence})", err=True)
        try:
            where = fetch_package(package, version)
        except RuntimeError as error:
            raise NextStepError(str(error)) from None
        typer.echo(str(where))
