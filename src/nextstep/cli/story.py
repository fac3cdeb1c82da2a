"""`nextstep story`: text and pictures in, text and pictures out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nextstep.cli import options as o

if TYPE_CHECKING:
    from nextstep.engine.results import GeneratedPicture


def command(
    text: Annotated[
        str, typer.Argument(help="How it begins; <image> tags place the pictures given with -i.")
    ],
    image: Annotated[
        list[Path] | None, typer.Option("--image", "-i", help="Picture; repeat for several.")
    ] = None,
    output: o.Output = Path("story.png"),
    model: o.Model = "nano",
    vae: o.Vae = None,
    dtype: o.Dtype = None,
    quantize: o.Quantize = None,
    device: o.Device = "cpu",
    max_pictures: Annotated[
        int, typer.Option(min=1, help="Most pictures to draw.", rich_help_panel=o.SAMPLING_PANEL)
    ] = 4,
    max_tokens: o.MaxTokens = 64,
    temperature: o.Temperature = 0.0,
    seed: o.Seed = 0,
    guidance: o.Guidance = None,
    image_guidance: o.ImageGuidance = None,
    solver: o.Solver = None,
    steps: o.Steps = None,
    as_json: o.Json = False,
) -> None:
    """Go on with a story; pictures are written to OUTPUT with -0, -1 ... before the ending.

    Example: nextstep story "A cat finds an apple." -o story.png
    """
    from nextstep.cli import report
    from nextstep.image.pictures import open_picture
    from nextstep.text.sequence import Text, interleaved

    paths = report.output_paths(output.with_stem(f"{output.stem}-0"), 1)
    pictures = [open_picture(path) for path in image or []]
    tagged = text if "<image" in text else "<image>" * len(pictures) + text
    # The grammar checks tags against pictures; the grids only say which picture stands where.
    order = interleaved(tagged, [(1, number + 1) for number in range(len(pictures))])
    parts = [p.text if isinstance(p, Text) else pictures[p.grid[1] - 1] for p in order]
    pipeline = o.load_pipeline(model, dtype, device, vae, quantize=quantize)
    report.say_read_size(pipeline, image or [], pictures)
    with report.progress_bar(max_pictures, quiet=as_json) as told:
        made = pipeline.story(
            *parts, max_pictures=max_pictures, max_tokens=max_tokens, temperature=temperature,
            seed=seed, on_progress=told, guidance=guidance, image_guidance=image_guidance,
            solver=solver, steps=steps,
        )  # fmt: skip
    drawn = sum(not isinstance(part, str) for part in made)
    paths = [output.with_stem(f"{output.stem}-{i}") for i in range(drawn)]
    _say(made, paths, as_json)


def _say(made: list[str | GeneratedPicture], paths: list[Path], as_json: bool) -> None:
    """Write the pictures and tell the story in order."""
    told: list[dict[str, str]] = []
    left = iter(paths)
    for part in made:
        if isinstance(part, str):
            told.append({"text": part})
        else:
            path = next(left)
            part.save(path)
            told.append({"picture": str(path)})
    if as_json:
        typer.echo(json.dumps({"story": told}, ensure_ascii=False))
        return
    for entry in told:
        typer.echo(entry.get("text") or f"[{entry['picture']}]")
