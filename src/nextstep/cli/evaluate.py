"""`nextstep eval`: every benchmark, and `eval world`, which also runs without a verb."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextstep.cli import benchmark, reconstruction
from nextstep.cli import options as o
from nextstep.cli.benchmark import run_on_ray
from nextstep.cli.groups import ModelOptions, with_groups
from nextstep.evaluate.benchmarks import BENCHMARKS

if TYPE_CHECKING:
    from nextstep.evaluate.benchmarks.generation import Run
    from nextstep.evaluate.benchmarks.statistics import Row
    from nextstep.evaluate.world.run import Plan

world_app = typer.Typer(
    help="The emoji world: make its answers, score them, report; without a verb all three.",
    invoke_without_command=True,
)
benchmark.add_scoring(world_app, "world")

SCORES = "world-scorer"

Out = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Folder of the run; one that was interrupted is "
                 "gone on with.", show_default=False),
]  # fmt: skip


@dataclass(frozen=True)
class PlanOptions:
    """What is asked, and of whom."""

    tasks: Annotated[
        list[str] | None,
        typer.Option("--task", "-t", "--tasks", help="Task or group; repeat for several. "
                     "Default all."),
    ] = None  # fmt: skip
    split: Annotated[
        list[str] | None,
        typer.Option(help="seen, held_out_styles, held_out_pairs, held_out_phrasings or "
                     "held_out_words; repeat for several. Default all that a task has."),
    ] = None  # fmt: skip
    count: Annotated[
        int, typer.Option("--count", "-n", min=1, help="Items of each task and split.")
    ] = 50
    seed: Annotated[int, typer.Option(help="Of the items and of what the model draws.")] = 0
    answers: Annotated[
        str, typer.Option(help="Who answers: model, or the truth: drawn, or decoded by the "
                          "model's image tokenizer. The truth shows the ceiling.")
    ] = "model"  # fmt: skip
    edition: Annotated[
        str, typer.Option(help="How much of the world: core-48, core-96, core-144 or full.")
    ] = "full"

    def plan(self, size: int = 128) -> Plan:
        """The plan with pictures of a size.

        Raises:
            NextStepError: for an unknown name.
        """
        from nextstep.evaluate.world.run import Plan

        return Plan.of(
            self.tasks, self.split, self.count, self.seed, size, self.edition, self.answers
        )


@world_app.callback()
@with_groups
def world(
    *,
    context: typer.Context,
    output: Out = None,
    asked: PlanOptions,
    compare: Annotated[
        str | None,
        typer.Option(help="Another model, or the folder of an earlier evaluation, to compare."),
    ] = None,
    sheets: Annotated[
        int, typer.Option(min=0, help="Also show this many answers of every task and split, right "
                          "or wrong, as sheets/TASK-SPLIT.png.")
    ] = 0,
    batch_size: o.BatchSize = 8,
    chosen: ModelOptions,
    as_json: o.Json = False,
) -> None:  # fmt: skip
    """Score a model on fixed scenes of the emoji world.

    Example: nextstep eval world -m nano -t drawing -n 200 -o runs/eval-nano
    """
    if context.invoked_subcommand is not None:
        return
    if output is None:
        raise ValueError("--output FOLDER is needed")
    chosen.check()
    asked.plan()
    from nextstep.evaluate.benchmarks.report import make_report, rows_of, write_report
    from nextstep.evaluate.world.sheets import write_answers

    # A folder without verdicts is a model's; it is asked after the first model.
    others = {} if compare is None else {compare: _earlier(Path(compare).expanduser())}
    # The image tokenizer and the adapter that were named belong to the first model alone.
    second = ModelOptions(
        compare or "", dtype=chosen.dtype, quantize=chosen.quantize, device=chosen.device
    )
    if compare is not None and others[compare] is None:
        second.check()
    run = _made(chosen, asked, output, batch_size, as_json)
    if compare is not None and others[compare] is None:
        others[compare] = rows_of(
            _made(second, asked, output / "other", batch_size, as_json), SCORES
        )
    report = make_report(run, SCORES, {name: rows or [] for name, rows in others.items()})
    write_report(report)
    if sheets:
        write_answers(run, report.scored, sheets)
    _say(json.loads((output / "card.json").read_text("utf-8")), output, as_json)


@world_app.command("generate")
@with_groups
def generate(
    *,
    output: Out = None,
    data: Annotated[
        Path | None, typer.Option(help="Plan of an earlier run, its set.json, instead of the "
                                  "options for tasks and items.")
    ] = None,
    alias: Annotated[
        str | None, typer.Option(help="Name of the model in reports.")
    ] = None,
    asked: PlanOptions,
    limit: benchmark.Limit = None,
    batch_size: o.BatchSize = 8,
    workers: benchmark.Workers = 1,
    ray: benchmark.Ray = False,
    chosen: ModelOptions,
    as_json: o.Json = False,
) -> None:  # fmt: skip
    """Make the model's answers, with its default settings."""
    if output is None:
        raise ValueError("--output FOLDER is needed")
    chosen.check()
    asked.plan()
    if ray:
        run_on_ray(workers, chosen.device.startswith("cuda"))
        benchmark.tell_made(_opened(output), as_json)
        return
    pipeline, run, settings = _begun(chosen, asked, output, batch_size, data, alias, limit)
    benchmark.make_pictures(run, pipeline, settings, workers, as_json)


def _begun(
    named: ModelOptions, asked: PlanOptions, folder: Path, batch_size: int,
    data: Path | None = None, alias: str | None = None, limit: int | None = None,
) -> tuple[Any, Run, Any]:  # fmt: skip
    """The pipeline, the run in a folder, and its settings."""
    from nextstep.errors import NextStepError
    from nextstep.evaluate.benchmarks.world import begin
    from nextstep.evaluate.world.run import Plan

    pipeline = named.load()
    size = pipeline.defaults.height
    if size != pipeline.defaults.width:
        raise NextStepError("the world's pictures are square; this model's are not by default")
    plan = asked.plan(size) if data is None else Plan.read(data)
    name, weights = alias or benchmark.alias_of(named.model), benchmark.weights_of(named)
    return pipeline, *begin(plan, folder, pipeline, name, batch_size, limit, weights)


def _made(
    named: ModelOptions, asked: PlanOptions, folder: Path, batch_size: int, quiet: bool
) -> Run:
    """A run that is answered and scored completely."""
    from nextstep.evaluate.benchmarks import generation, scoring

    pipeline, run, settings = _begun(named, asked, folder, batch_size)
    with benchmark.bar(len(run.items), "items made", quiet) as told:
        generation.generate(run, pipeline, settings, told)
    judges = run.benchmark.own_judges(run.manifest, run.items)
    with benchmark.bar(len(run.items), "items judged", quiet) as told:
        scoring.score(run, judges, SCORES, told)
    return run


def _opened(folder: Path) -> Run:
    from nextstep.evaluate.benchmarks.generation import Run
    from nextstep.evaluate.benchmarks.world import World

    return Run.open(folder, World())


def _earlier(folder: Path) -> list[Row] | None:
    """What was measured in an earlier evaluation; None when the folder holds none."""
    from nextstep.evaluate.benchmarks.generation import MANIFEST
    from nextstep.evaluate.benchmarks.report import rows_of
    from nextstep.evaluate.benchmarks.world import earlier_rows

    if (folder / MANIFEST).exists():
        return rows_of(_opened(folder), SCORES)
    verdicts = folder / "verdicts.jsonl"
    return earlier_rows(verdicts) if verdicts.exists() else None


def _say(told: dict[str, Any], out: Path, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(told, ensure_ascii=False))
        return
    from rich.console import Console

    from nextstep.evaluate.world.card import comparison_table, table

    console = Console()
    console.print(table(told))
    if "differences" in told:
        console.print(comparison_table(told["differences"], told["model"], told["compared_with"]))
    console.print(f"{out / 'card.json'}", highlight=False)


eval_app = typer.Typer(help="What a model can do, measured.", no_args_is_help=True)

for _name in BENCHMARKS:
    _app = world_app if _name == "world" else benchmark.typer_of(_name)
    eval_app.add_typer(_app, name=_name)
eval_app.command("reconstruction")(reconstruction.command)


@eval_app.callback()
def options() -> None:
    """What a model can do, measured."""
