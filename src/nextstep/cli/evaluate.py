"""`nextstep eval`: what a model can do, measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextstep.cli import benchmark, reconstruction
from nextstep.cli import options as o
from nextstep.cli.groups import ModelOptions
from nextstep.evaluate.benchmarks import BENCHMARKS

if TYPE_CHECKING:
    from nextstep.evaluate.world.run import Plan, Results

eval_app = typer.Typer(help="What a model can do, measured.", no_args_is_help=True)

for _name in BENCHMARKS:
    eval_app.add_typer(benchmark.typer_of(_name), name=_name)
eval_app.command("reconstruction")(reconstruction.command)

WHO = ("model", "decoded", "drawn")


@eval_app.callback()
def options() -> None:
    """What a model can do, measured."""


@eval_app.command("world")
def world(
    output: Annotated[
        Path, typer.Option("--output", "-o", "--out", help="Folder of answers and results; one "
                           "that was interrupted is gone on with.")
    ],
    model: o.Model = "nano",
    tasks: Annotated[
        list[str] | None,
        typer.Option("--task", "-t", "--tasks", help="Task or group; repeat for several. "
                     "Default all."),
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(help="seen, held_out_styles, held_out_pairs, held_out_phrasings or "
                     "held_out_words; repeat for several. Default all that a task has."),
    ] = None,
    count: Annotated[
        int, typer.Option("--count", "-n", "--n", min=1, help="Items of each task and split.")
    ] = 50,
    seed: Annotated[int, typer.Option(help="Of the items and of what the model draws.")] = 0,
    compare: Annotated[
        str | None,
        typer.Option(help="Another model, or the folder of an earlier evaluation, to compare."),
    ] = None,
    answers: Annotated[
        str, typer.Option(help="Who answers: model, or the truth: drawn, or decoded by the "
                          "model's image tokenizer. The truth shows the ceiling.")
    ] = "model",
    edition: Annotated[
        str, typer.Option(help="How much of the world: core-48, core-96, core-144 or full.")
    ] = "full",
    sheets: Annotated[
        int, typer.Option(min=0, help="Also show this many answers of every task and split, right "
                          "or wrong, as sheets/TASK-SPLIT.png.")
    ] = 0,
    batch_size: o.BatchSize = 8,
    vae: o.Vae = None,
    adapter: o.Adapter = None,
    adapter_scale: o.AdapterScale = 1.0,
    dtype: o.Dtype = None,
    quantize: o.Quantize = None,
    device: o.Device = "cpu",
    as_json: o.Json = False,
) -> None:  # fmt: skip
    """Score a model on fixed scenes of the emoji world.

    Example: nextstep eval world -m nano -t drawing -n 200 -o runs/eval-nano
    """
    chosen = ModelOptions(model, vae, adapter, adapter_scale, dtype, quantize, device)
    chosen.check()
    if answers not in WHO:
        raise ValueError(f"answers come from {', '.join(WHO)}, not from '{answers}'")
    from nextstep.evaluate.world.card import card, comparison
    from nextstep.evaluate.world.run import read_scores, write_verdicts
    from nextstep.evaluate.world.sheets import write_answers, write_failures
    from nextstep.utils.files import write_json

    # A folder without verdicts is a model's; asking it comes after the first model.
    earlier = None if compare is None else Path(compare).expanduser() / "verdicts.jsonl"
    other = read_scores(earlier) if earlier is not None and earlier.exists() else None

    def ask(name: str, folder: Path) -> tuple[Results, dict[str, Any]]:
        # The image tokenizer and the adapter that were named belong to the first model alone.
        own = (
            chosen
            if name == model
            else ModelOptions(name, dtype=dtype, quantize=quantize, device=device)
        )
        pipeline = own.load()
        pipeline.vocabulary = None  # questions are put as they stand
        plan, about = _plan(pipeline, tasks, split, count, seed, edition, name, answers)
        results = _answered(pipeline, plan, folder, about, batch_size, answers, quiet=as_json)
        write_verdicts(folder / "verdicts.jsonl", results)
        return results, card(results, about)

    results, told = ask(model, output)
    if compare is not None:
        if other is None:
            other = ask(compare, output / "other")[0].scores()
        told["compared_with"] = compare
        told["differences"] = comparison(results.scores(), other)
    write_failures(output / "failures.png", results)
    if sheets:
        write_answers(output, results, sheets)
    write_json(output / "card.json", told)
    _say(told, output, as_json)


def _plan(
    pipeline: Any, tasks: list[str] | None, split: list[str] | None, n: int, seed: int,
    edition: str, name: str, answers: str,
) -> tuple[Plan, dict[str, Any]]:  # fmt: skip
    from dataclasses import asdict

    from nextstep.errors import NextStepError
    from nextstep.evaluate.world.run import Plan

    defaults = pipeline.defaults
    if defaults.height != defaults.width:
        raise NextStepError("the world's pictures are square; this model's are not by default")
    settings = {"generate": asdict(defaults.generate), "edit": asdict(defaults.edit)}
    about = {
        "model": name,
        "model_hash": pipeline.model_hash,
        "answers": answers,
        "settings": settings,
    }
    return Plan.of(tasks, split, n, seed, defaults.height, edition), about


def _answered(
    pipeline: Any, plan: Plan, folder: Path, about: dict[str, Any], batch_size: int, answers: str,
    quiet: bool,
) -> Results:  # fmt: skip
    from nextstep.evaluate.world.answering import Answerer, ModelAnswerer, Truth, round_trip
    from nextstep.evaluate.world.detector import shipped_detector
    from nextstep.evaluate.world.run import evaluate
    from nextstep.evaluate.world.scoring import Scorer

    tokenizer = pipeline.image_tokenizer
    who: Answerer = ModelAnswerer(pipeline, plan.size, batch_size)
    if answers != "model":
        who = Truth(plan.size, tokenizer if answers == "decoded" else None)
    scorer = Scorer(
        shipped_detector(plan.edition), plan.size, lambda picture: round_trip(picture, tokenizer)
    )
    settings = json.dumps(about["settings"], sort_keys=True)
    told_by = hashlib.sha256(settings.encode()).hexdigest()[:12]
    identity = f"{about['answers']} {about['model_hash']} {told_by}"
    with _bar(len(plan.pairs) * plan.count, quiet) as told:
        return evaluate(plan, who, scorer, folder, identity, told)


@contextmanager
def _bar(total: int, quiet: bool) -> Iterator[Callable[[str, str, int], None]]:
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"), bars.BarColumn(), bars.MofNCompleteColumn(),
        bars.TimeRemainingColumn(),
    )  # fmt: skip
    console = Console(stderr=True, quiet=quiet)
    with bars.Progress(*columns, console=console, transient=True) as bar:
        line = bar.add_task("", total=total)

        def told(task: str, split: str, count: int) -> None:
            bar.update(line, description=f"{task}, {split}", advance=count)

        yield told


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
