"""`nextstep lab`: published studies, run anew at small scale and equal compute."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from nextstep.lab.study import Scale, Study, StudyUnit

LIST = "list"


def command(
    name: Annotated[
        str, typer.Argument(help="Name of a study, or 'list' for all of them.", show_default=False)
    ],
    changes: Annotated[
        list[str] | None,
        typer.Argument(help="key.path=value on the recipe of every arm, as for `nextstep train`."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the study; an interrupted study is "
                     "resumed, also by several processes at once. Default runs/lab/NAME."),
    ] = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="A run of seconds that only tests whether everything "
                                          "works.")
    ] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Training runs per arm.")] = 2,
    count: Annotated[
        int, typer.Option("--count", "-n", min=1, help="Items per task of the world.")
    ] = 200,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe to use instead of the study's own, for larger "
                                      "models.")
    ] = None,
    cost_only: Annotated[
        bool, typer.Option("--cost", help="Print the cost and exit.")
    ] = False,
) -> None:  # fmt: skip
    """Run a study from data to plots and a verdict.

    Example: nextstep lab scaling -o runs/lab/scaling
    """
    from nextstep.lab.study import STUDIES, study

    if name == LIST:
        for one in STUDIES:
            typer.echo(f"{one:<14}{study(one).title}")
        return
    from nextstep.lab.study import Scale
    from nextstep.recipe import host

    chosen = study(name)
    scale = Scale(seeds, count, tiny, recipe, tuple(changes or ()))
    _say_cost(chosen, scale)
    if cost_only:
        return
    host.settle()
    from nextstep.lab.run import run_study

    folder = output or Path("runs") / "lab" / name
    conclusion = run_study(chosen, folder, scale, _say)
    if conclusion is None:
        typer.echo("stopped; the same command goes on")
        return
    if tiny:
        typer.echo(f"{folder / 'card.md'}  (a tiny run says nothing about the claim)")
    else:
        typer.echo(f"{conclusion.verdict}: {conclusion.reason}\n{folder / 'card.md'}")


def _say_cost(chosen: Study, scale: Scale) -> None:
    from rich.console import Console
    from rich.table import Table

    from nextstep.lab.run import cost_rows, total_hours

    table = Table(title=f"{chosen.title}: one seed of each arm")
    for head in ("arm", "parameters", "positions", "FLOPs", "hours of one core"):
        table.add_column(head, justify="left" if head == "arm" else "right")
    for row in cost_rows(chosen, scale):
        table.add_row(*row)
    console = Console()
    console.print(table)
    hours = total_hours(chosen, scale)
    console.print(
        f"{scale.seeds} seeds: {hours:.1f} hours of one core with AMX, measuring included; a "
        "second process in the same folder takes half of the units."
    )


def _say(what: str, unit: StudyUnit) -> None:
    if os.environ.get("RANK", "0") == "0":
        typer.echo(f"{what} {unit.arm.name}, seed {unit.seed}", err=True)
