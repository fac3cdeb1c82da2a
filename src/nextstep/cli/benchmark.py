"""`nextstep eval BENCH generate | score | report`: the same three commands for every benchmark."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextstep.cli import options as o
from nextstep.cli.groups import EditOptions, ModelOptions, with_groups

if TYPE_CHECKING:
    from nextstep.evaluate.benchmarks.base import Benchmark
    from nextstep.evaluate.benchmarks.generation import Run, Settings
    from nextstep.evaluate.judges.protocol import Judge
    from nextstep.pipeline import NextStepPipeline


PRESETS = ("released", "model")

Data = Annotated[
    Path | None, typer.Option(help="The official set, as it was published; default the run's own.")
]
RunFolder = Annotated[Path, typer.Argument(help="Folder of the run.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Items at most, taken evenly over the set.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes that share the set on this machine.")]
Ray = Annotated[
    bool, typer.Option("--ray", help="Place the --workers on the machines of a Ray cluster.")
]
ScoresName = Annotated[
    str | None, typer.Option("--name", help="Of the scores; default the judges' names.")
]


def typer_of(name: str) -> typer.Typer:
    """The commands of one benchmark."""
    app = typer.Typer(help=f"{name}: make its pictures, score them, report.", no_args_is_help=True)
    app.command("generate")(_generate_of(name))
    add_scoring(app, name)
    return app


def add_scoring(app: typer.Typer, name: str) -> None:
    """The commands that every benchmark has alike."""
    app.command("score")(_score_of(name))
    app.command("report")(_report_of(name))


def _generate_of(name: str) -> Callable[..., None]:
    @with_groups
    def generate(
        *,
        data: Annotated[
            Path, typer.Option(help="The official set, as it was published.", show_default=False)
        ],
        out: Annotated[
            Path, typer.Option("--output", "-o", help="Folder of the run; one that was "
                               "interrupted is gone on with, by several processes at once if "
                               "you like.")
        ],
        alias: Annotated[
            str | None, typer.Option(help="Name of the model in folders and reports.")
        ] = None,
        preset: Annotated[
            str, typer.Option(help="released: 256 pixels, guidance 7.5, 28 steps, as the released "
                              "evaluation code; model: what the model recommends.")
        ] = "released",
        size: Annotated[int | None, typer.Option(min=16, help="Side in pixels.")] = None,
        drawing: EditOptions,
        seed: Annotated[int, typer.Option(help="Of the run.")] = 0,
        limit: Limit = None,
        batch_size: o.BatchSize = 8,
        workers: Workers = 1,
        ray: Ray = False,
        chosen: ModelOptions,
        as_json: o.Json = False,
    ) -> None:  # fmt: skip
        """Make the pictures of the set, in the layout that the official scorer reads."""
        if preset not in PRESETS:
            raise ValueError(f"--preset is one of {', '.join(PRESETS)}, not '{preset}'")
        chosen.check()
        benchmark = _benchmark(name)
        benchmark.read(data)
        from nextstep.evaluate.benchmarks import generation

        if ray:
            run_on_ray(workers, chosen.device.startswith("cuda"))
            tell_made(_open(name, out, data, None), as_json)
            return
        pipeline = chosen.load()
        settings = _settings(pipeline, preset, size, seed, batch_size, limit, drawing.settings())
        run = generation.Run.begin(
            out, benchmark, data, pipeline, alias or alias_of(chosen.model), settings,
            weights_of(chosen),
        )  # fmt: skip
        make_pictures(run, pipeline, settings, workers, as_json)

    return generate


def weights_of(named: ModelOptions) -> dict[str, str | None]:
    """The model and its image tokenizer as a manifest names them; folders by their whole path."""
    paths = {"model": named.model, "vae": None if named.vae is None else str(named.vae)}
    return {
        name: str(Path(path).expanduser().resolve())
        if path is not None and Path(path).expanduser().exists()
        else path
        for name, path in paths.items()
    }


def make_pictures(
    run: Run, pipeline: NextStepPipeline, settings: Settings, workers: int, as_json: bool
) -> None:
    """Make what is missing of a run, with other processes beside this one, and tell of it."""
    from nextstep.evaluate.benchmarks.generation import generate

    benchmark = run.benchmark
    if not as_json:
        typer.echo(f"{benchmark.title}: {benchmark.source}; licence: {benchmark.licence}")
        if version := benchmark.version_of(run.manifest["data"]["sha256"]):
            typer.echo(version)
    others = start_others(workers - 1)
    with bar(len(run.items), "items made", quiet=as_json) as told:
        generate(run, pipeline, settings, told)
    failed = [process.wait() for process in others]
    tell_made(run, as_json)
    if any(failed):
        raise RuntimeError(f"{sum(map(bool, failed))} of the other processes failed")


def tell_made(run: Run, as_json: bool) -> None:
    """Say how much of a run is there."""
    missing = len(run.missing())
    told_ = {"run": str(run.folder), "items": len(run.items), "missing": missing}
    if as_json:
        typer.echo(json.dumps(told_))
    elif missing:
        typer.echo(f"{missing} items are still being made by other processes, or were lost "
                   "with one: run the same command again")  # fmt: skip
    else:
        typer.echo(f"{len(run.items)} items in {run.images}")


def _score_of(name: str) -> Callable[..., None]:
    def score(
        run: RunFolder,
        judge: Annotated[
            list[str] | None,
            typer.Option("--judge", "-j", help="transformers:FOLDER, openai:MODEL@URL or ocr; "
                         "ROLE=... for one role alone. Repeat for several.",
                         show_default=False),
        ] = None,
        results: Annotated[
            Path | None,
            typer.Option("--import", help="Take over what the official scorer wrote instead."),
        ] = None,
        name_: ScoresName = None,
        data: Data = None,
        judge_prompt: Annotated[
            Path | None, typer.Option(help="File with the official wording of the question.")
        ] = None,
        concurrency: Annotated[
            int, typer.Option(min=1, help="Questions to an endpoint at the same time.")
        ] = 8,
        judge_dtype: Annotated[
            str | None, typer.Option(help="Of a local judge: float32, bfloat16 or float16.")
        ] = None,
        device: o.Device = "cpu",
        as_json: o.Json = False,
    ) -> None:  # fmt: skip
        """Judge the pictures of a run by the official rule."""
        from nextstep.cli.checks import check_device_name
        from nextstep.evaluate.benchmarks import scoring
        from nextstep.evaluate.judges import load_judge

        check_device_name(device)
        opened = _open(name, run, data, judge_prompt)
        if results is not None:
            chosen = name_ or "official"
            scored = scoring.import_results(opened, results, chosen)
        else:
            judges = opened.benchmark.own_judges(opened.manifest, opened.items) | _judges(
                opened.benchmark, judge or [],
                lambda spec: load_judge(
                    spec, run / "answers", concurrency, device, judge_dtype
                ),
            )  # fmt: skip
            chosen = name_ or scoring.default_name(judges)
            with bar(len(opened.items), "items judged", quiet=as_json) as told:
                scored = scoring.score(opened, judges, chosen, told)
        failed = sum(bool(one.measured.failures) for one in scored)
        told_ = {"run": str(run), "scores": chosen, "items": len(scored), "failures": failed}
        typer.echo(
            json.dumps(told_) if as_json
            else f"{len(scored)} items judged as '{chosen}', {failed} with failures"
        )  # fmt: skip

    return score


def _report_of(name: str) -> Callable[..., None]:
    def report(
        run: RunFolder,
        name_: ScoresName = None,
        compare: Annotated[
            list[Path] | None,
            typer.Option(help="Another run of the benchmark, compared item by item."),
        ] = None,
        data: Data = None,
        as_json: o.Json = False,
    ) -> None:
        """Tell the scores with their intervals beside the published rows."""
        from nextstep.evaluate.benchmarks.report import (
            make_report,
            markdown,
            rows_of,
            write_report,
        )

        opened = _open(name, run, data, None)
        chosen = name_ or _only_name(opened)
        others = {}
        for path in compare or []:
            other = _open(name, path, data, None)
            others[f"{other.model} ({path.name})"] = rows_of(other, name_ or _only_name(other))
        made = make_report(opened, chosen, others)
        written = write_report(made)
        if as_json:
            typer.echo(json.dumps(made.to_dict(), ensure_ascii=False))
        else:
            typer.echo(markdown(made))
            typer.echo("\n".join(str(path) for path in written))

    return report


def _benchmark(name: str, judge_prompt: Path | None = None) -> Benchmark:
    from nextstep.evaluate.benchmarks import benchmark_class

    text = None if judge_prompt is None else judge_prompt.read_text(encoding="utf-8")
    return benchmark_class(name)(text)


def _open(name: str, folder: Path, data: Path | None, judge_prompt: Path | None) -> Run:
    from nextstep.evaluate.benchmarks.generation import Run

    return Run.open(folder, _benchmark(name, judge_prompt), data)


def _only_name(run: Run) -> str:
    from nextstep.evaluate.benchmarks.scoring import names_of_scores

    names = names_of_scores(run)
    if not names:
        raise ValueError(
            f"{run.folder} is not scored; use nextstep eval {run.benchmark.name} score"
        )
    if len(names) > 1:
        raise ValueError(f"{run.folder} has several scores, name one: {', '.join(names)}")
    return names[0]


def alias_of(model: str) -> str:
    """A folder name from a model's path or hub id."""
    return re.sub(r"[^\w.+-]+", "-", model.rstrip("/").split("/")[-1]) or "model"


def _settings(
    pipeline: NextStepPipeline, preset: str, size: int | None, seed: int, batch_size: int,
    limit: int | None, changed: dict[str, Any],
) -> Settings:  # fmt: skip
    from nextstep.evaluate.benchmarks.generation import RELEASED, RELEASED_SIZE, Settings

    base = dict(RELEASED) if preset == "released" else {}
    usual = RELEASED_SIZE if preset == "released" else pipeline.defaults.height
    sampling = base | {name: value for name, value in changed.items() if value is not None}
    if "steps" in sampling and pipeline.defaults.generate.solver == "multistep":
        # A fitted rule has its own number of steps, so others need a solver that takes any.
        sampling.setdefault("solver", "ab2")
    return Settings(size or usual, seed, batch_size, limit, sampling)


def _judges(
    benchmark: Benchmark, specs: list[str], load: Callable[[str], Judge]
) -> dict[str, Judge]:
    """Role -> judge; a specification without a role plays all that have none of their own."""
    named: dict[str, str] = {}
    for spec in specs:
        found = re.match(r"([\w-]+)=(.+)", spec)
        if found:
            named[found.group(1)] = found.group(2)
        else:
            named |= {role: spec for role in benchmark.roles if role not in named}
    loaded: dict[str, Judge] = {}
    for spec in dict.fromkeys(named.values()):
        loaded[spec] = load(spec)
    return {role: loaded[spec] for role, spec in named.items()}


@contextmanager
def bar(total: int, what: str, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error; gives what is told how many more are ready."""
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"), bars.BarColumn(), bars.MofNCompleteColumn(),
        bars.TimeRemainingColumn(),
    )  # fmt: skip
    console = Console(stderr=True, quiet=quiet)
    with bars.Progress(*columns, console=console, transient=True) as bar:
        line = bar.add_task(what, total=total)
        yield lambda count: bar.update(line, advance=count)


ALONE = ("--workers", "1", "--json")
"""Options that each of the processes gets besides."""


def start_others(count: int) -> list[subprocess.Popen[Any]]:
    """The same command in more processes of this machine."""
    command = [sys.executable, "-m", "nextstep", *sys.argv[1:], *ALONE]
    return [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(count)]


def run_on_ray(processes: int, cuda: bool) -> None:
    """The same command in processes that Ray places on its machines; waits for all of them.

    Every machine needs this package, and sees the folders under the same paths.

    Args:
        processes: how many, each with one GPU when `cuda`.
        cuda: whether they compute on GPUs.

    Raises:
        NextStepError: when Ray is not installed.
    """
    from nextstep.train import launch

    arguments = [*(one for one in sys.argv[1:] if one != "--ray"), *ALONE]
    launch.launch_on_ray(run_again, (arguments, str(Path.cwd())), processes, cuda)


def run_again(arguments: Sequence[str], folder: str) -> None:
    """Run a command in this process.

    Args:
        arguments: of `nextstep`.
        folder: that paths among them start from.
    """
    from nextstep.cli.main import command_line

    os.chdir(folder)
    command_line(arguments)(list(arguments), standalone_mode=False)
