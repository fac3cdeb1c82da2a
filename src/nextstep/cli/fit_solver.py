"""`nextstep fit-solver`: a solver of few steps for one model."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nextstep.cli import checks, report
from nextstep.cli import options as o
from nextstep.cli.groups import ModelOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from nextstep.engine.settings import ModelDefaults
    from nextstep.engine.solver_fitting import TokenSamples
    from nextstep.flow.multistep import Table
    from nextstep.pipeline import NextStepPipeline


def command(
    model: Annotated[
        str, typer.Argument(help="Model folder, whose generation.json gets it; or with --output "
                                 "'nano' or a hub id.")
    ],
    steps: Annotated[int, typer.Option(help="Evaluations of the flow head per token.")] = 5,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file, a prompt a line, of pictures to fit to; "
                                  "default scenes of the emoji world.")
    ] = None,
    pictures: Annotated[int, typer.Option(min=1, help="Number of pictures; prompts are repeated "
                                                      "if necessary.")] = 24,
    iterations: Annotated[int, typer.Option(min=1, help="Steps of the optimizer.")] = 300,
    batch_size: o.BatchSize = 8,
    seed: o.Seed = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the settings to this file instead "
                                                         "of the model folder.",
                                  rich_help_panel=o.OUTPUT_PANEL)
    ] = None,
    overwrite: o.Overwrite = False,
    vae: o.Vae = None,
    as_json: o.Json = False,
) -> None:  # fmt: skip
    """Fit a solver of few steps to one of many, and make it the model's own for drawing.

    Pictures are drawn with 100 evaluations a token; then times and sums of a multistep rule are
    found that make the same tokens of the same noise. Edits can use it too (--solver multistep).

    Example: nextstep fit-solver runs/world/model --steps 4
    """
    from nextstep.engine.settings import FILE, ModelDefaults, check_count
    from nextstep.errors import NextStepError
    from nextstep.flow.multistep import check_fit
    from nextstep.model.folder import size_limits
    from nextstep.utils.files import write_json

    check_count(pictures, batch_size)
    folder = ModelOptions(model, vae=vae).check()
    if output is None and not Path(model).expanduser().is_dir():
        raise NextStepError(f"'{model}' is no folder of yours; say with --output where to write")
    path = output or folder / FILE
    # The model's own file is what the command is there to change.
    report.check_file(path, overwrite or output is None, _is_settings)
    usual = ModelDefaults.of_folder(folder)
    grid = size_limits(folder, vae).grid(usual.height, usual.width)
    check_fit(steps, pictures * math.prod(grid))
    texts = _prompts(prompts, pictures, seed)
    from nextstep.engine.pretrained import load_parts
    from nextstep.engine.solver_fitting import fit
    from nextstep.model.quantization import pack_for_sampling
    from nextstep.pipeline import NextStepPipeline

    parts = load_parts(folder, checks.parse_dtype("fp32"), vae=vae)
    head = copy.deepcopy(parts.model.image_head).requires_grad_(False)
    pipeline, own = NextStepPipeline(*parts), parts.defaults
    pack_for_sampling(parts.model)
    with report.counting("pictures", as_json, pictures) as told:
        samples = _drawn(pipeline, texts, batch_size, seed, told)
    with report.counting("iterations", as_json, iterations) as told:
        found = fit(
            head, parts.model.image_condition, samples, steps, iterations, seed=seed,
            on_iteration=lambda number, error: told(),
        )  # fmt: skip
    if found.after >= found.before:
        raise NextStepError(
            f"the fit came no nearer ({found.before:.4f} before, {found.after:.4f} after), so "
            "nothing was written; give it more pictures or iterations"
        )
    write_json(path, _with_table(own, found.table).to_dict())
    figures = {
        "steps": steps, "tokens": len(samples), "before": round(found.before, 5),
        "after": round(found.after, 5), "table": list(found.table), "written": str(path),
    }  # fmt: skip
    typer.echo(
        json.dumps(figures) if as_json else
        f"distance of a token to that of 100 evaluations: {found.before:.4f} with {steps} steps of "
        f"Adams-Bashforth, {found.after:.4f} with the fitted rule\nwrote {path}"
    )  # fmt: skip


def _with_table(own: ModelDefaults, table: Table) -> ModelDefaults:
    """A model's settings with a fitted rule, which drawing takes and edits may."""
    drawing = own.generate.with_values(solver="multistep", table=table, final_token_steps=0)
    falling = 0 if own.edit.solver == "multistep" else None
    return replace(
        own, generate=drawing, edit=own.edit.with_values(table=table, final_token_steps=falling)
    )


def _prompts(file: Path | None, count: int, seed: int) -> list[str]:
    """So many prompts, those of the file in turn.

    Raises:
        NextStepError: when it holds none or cannot be read as text.
    """
    import random
    from itertools import cycle, islice

    from nextstep.errors import NextStepError
    from nextstep.world.captions import default_caption
    from nextstep.world.singles_source import trained_scenes

    if file is None:
        scenes = trained_scenes()
        random.Random(seed).shuffle(scenes)
        return [default_caption(*scene) for scene in islice(cycle(scenes), count)]
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError:
        raise NextStepError(f"{file} is no text in UTF-8") from None
    if not any(lines):
        raise NextStepError(f"{file} holds no prompts")
    return list(islice(cycle(filter(None, lines)), count))


def _drawn(
    pipeline: NextStepPipeline, texts: list[str], together: int, seed: int, told: Callable[[], None]
) -> TokenSamples:
    """Tokens of a picture of every prompt."""
    from nextstep.engine.request import Request
    from nextstep.engine.solver_fitting import TEACHER, TokenSamples, record

    own, config = pipeline.defaults, pipeline.model.config
    grid = pipeline.engine().grid(None, None)
    settings = own.generate.with_values(
        solver=TEACHER.name,
        steps=TEACHER.steps,
        shift=TEACHER.shift,
        final_token_steps=0,
        jacobi_window=1,
    )
    made = []
    for start in range(0, len(texts), together):
        requests = [
            Request(text, grid, settings, seed, start + place)
            for place, text in enumerate(texts[start : start + together])
        ]
        limit = config.max_position_embeddings
        jobs = [request.sequence(pipeline.text_tokenizer, limit) for request in requests]
        made.append(record(pipeline.model, jobs))
        for _ in requests:
            told()
    return TokenSamples.together(made)


def _is_settings(path: Path) -> bool:
    """Whether a file holds a model's settings, as this command writes them."""
    from nextstep.utils.files import read_json

    try:
        return {"generate", "edit"} <= read_json(path).keys()
    except ValueError:
        return False
