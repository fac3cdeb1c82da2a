"""`nextstep eval`: what a model can do, measured."""

from __future__ import annotations

import typer

from nextstep.cli import benchmark, evaluate_world, reconstruction
from nextstep.evaluate.benchmarks import BENCHMARKS

eval_app = typer.Typer(help="What a model can do, measured.", no_args_is_help=True)

for _name in BENCHMARKS:
    _app = evaluate_world.world_app if _name == "world" else benchmark.typer_of(_name)
    eval_app.add_typer(_app, name=_name)
eval_app.command("reconstruction")(reconstruction.command)


@eval_app.callback()
def options() -> None:
    """What a model can do, measured."""
