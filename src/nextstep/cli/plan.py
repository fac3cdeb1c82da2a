"""`nextstep plan`: what a recipe will take, before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nextstep.cli import options as o

if TYPE_CHECKING:
    from nextstep.estimate.plan import PlanTotals, RunPlan

PAPER = "paper"
UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))


def command(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="YAML file, or a recipe that ships, such as pretrain-14b; or a benchmark, or "
            "'paper' for all of the paper's."
        ),
    ],
    changes: Annotated[
        list[str] | None, typer.Argument(help="key.path=value, as for `nextstep train`.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="h100, a100, rtx4090 ... or cpu; default by size.")
    ] = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="Number of processes; default that of the recipe.")
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Predict parameters, memory, tokens, FLOPs, hours and disk; refuse what cannot fit."""
    from nextstep.errors import NextStepError
    from nextstep.estimate.printed import check_name
    from nextstep.evaluate.benchmarks import BENCHMARKS
    from nextstep.recipe.load import load_recipe, recipe_file

    if str(recipe) in (*BENCHMARKS, PAPER) and not recipe.exists():
        _benchmarks(str(recipe), changes or [], device or "h100", ranks or 1, as_json)
        return
    file = recipe_file(recipe)
    load_recipe(file, changes or [])
    check_name(device or "cpu")
    # What imports torch comes after the recipe is known to be right.
    from nextstep.estimate.devices import find_device
    from nextstep.estimate.plan import make_plan

    chosen = find_device(device or ("cpu" if "nano" in file.stem else "h100"))
    plan = make_plan(file, chosen, ranks, changes or [])
    typer.echo(json.dumps(plan.to_dict()) if as_json else "\n".join(lines(plan)))
    if not plan.fits:
        raise NextStepError(plan.refusal())


def _benchmarks(name: str, changes: list[str], device: str, devices: int, as_json: bool) -> None:
    """Hours and judge's money of one benchmark or of all in the paper."""
    from nextstep.config import NextStepConfig
    from nextstep.errors import NextStepError
    from nextstep.estimate.devices import find_device
    from nextstep.evaluate.benchmarks import cost

    chosen = {"model": "14b", "size": "", "steps": "28", "batch": "8"}
    for change in changes:
        key, _, value = change.partition("=")
        if key not in chosen:
            raise NextStepError(f"a benchmark's plan has no '{key}': {', '.join(chosen)}")
        if key != "model" and not (value.isdigit() and int(value)):
            raise NextStepError(f"{key} is a whole number above 0, not '{value}'")
        chosen[key] = value
    config, found = NextStepConfig.named(chosen["model"]), find_device(device)
    steps, batch = int(chosen["steps"]), int(chosen["batch"])
    size = int(chosen["size"]) if chosen["size"] else None
    costs = [
        cost.cost_of(one, config, found, size, steps, batch, devices)
        for one in (cost.PAPER if name == PAPER else (name,))
    ]
    if as_json:
        typer.echo(json.dumps([one.to_dict() for one in costs]))
        return
    typer.echo(
        f"{chosen['model']} on {devices} x {found.name}: {steps} steps, {batch} pictures together\n"
        f"  {'benchmark':<16}{'pictures':>9}{'pixels':>8}{'hours':>8}{'judge calls':>13}"
        f"{'dollars':>9}  judge"
    )
    for one in costs:
        money = "own" if one.dollars is None else f"{one.dollars:.2f}"
        typer.echo(
            f"  {one.benchmark:<16}{one.pictures:>9,}{one.side:>8}{one.hours:>8.2f}"
            f"{one.calls or '-':>13}{money:>9}  {one.judge}"
        )
    paid = sum(one.dollars or 0 for one in costs)
    pictures = sum(one.pictures for one in costs)
    hours = sum(one.hours for one in costs)
    typer.echo(f"  {'all':<16}{pictures:>9,}{'':>8}{hours:>8.2f}{'':>13}{paid:>9.2f}")


def lines(plan: RunPlan) -> list[str]:
    """The plan in words."""
    device = plan.device
    out = [f"{plan.recipe}  (stage {plan.stage}, {plan.ranks} x {device.name})", "parameters"]
    out += [f"  {name:<34}{count:>20,}" for name, count in plan.parameters.items()]
    out.append("memory of a rank")
    out += [f"  {name:<34}{size / 1e9:>17.3f} GB" for name, size in plan.memory.items() if size]
    out.append(f"  {'total':<34}{plan.memory_total / 1e9:>17.3f} GB")
    out.append(f"  {'usable on ' + device.name:<34}{plan.memory_usable / 1e9:>17.3f} GB")
    flops, unit = (device.flops / 1e9, "G") if device.is_cpu else (device.flops / 1e12, "T")
    rate = f"{device.efficiency:.0%} of {flops:,.1f} {unit}FLOP/s in {device.precision}"
    out += [
        "work",
        f"  {'tokens a step':<34}{plan.tokens_per_step:>20,.0f}",
        f"  {'tokens in all':<34}{short(plan.tokens):>20}",
        f"  {'FLOPs a step':<34}{plan.flops_per_step:>20.3g}",
        f"  {'hours':<34}{plan.hours:>20,.1f}",
        f"  at {rate} ({device.source})",
        "disk",
    ]
    out += [f"  {name:<34}{size / 1e9:>17,.1f} GB" for name, size in plan.disk.items()]
    return [*out, *totals(plan.published)]


def totals(stages: list[PlanTotals]) -> list[str]:
    """The row of stages as a table, computed beside published."""
    if not stages:
        return []
    head = (
        f"{'recipe':<24}{'steps':>9}{'ranks':>7}{'tokens/rank':>13}{'tokens':>12}{'published':>12}"
    )
    out = ["tokens of this stage and of those that follow", f"  {head}"]
    for stage in stages:
        agreed = {True: "  agrees", False: "  DIFFERS", None: ""}[stage.agree]
        per_rank = f"{stage.tokens_per_rank:,.0f}"
        out.append(
            f"  {stage.recipe:<24}{stage.steps:>9,}{stage.ranks:>7}{per_rank:>13}"
            f"{short(stage.tokens):>12}{stage.published or '-':>12}{agreed}"
        )
    return out


def short(value: float) -> str:
    """A large number with K, M, B or T and four digits."""
    for size, unit in UNITS:
        if value >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"
