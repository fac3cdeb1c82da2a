"""`nextstep story`: text and pictures in, text and pictures out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextstep.cli import options as o
from nextstep.cli.groups import ModelOptions, StoryOptions, with_groups

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nextstep.client import Part
    from nextstep.engine.results import GeneratedPicture


@with_groups
def command(
    *,
    context: typer.Context,
    text: Annotated[
        str,
        typer.Argument(
            help="Beginning of the story; <image> tags mark the places of the pictures given with "
            "-i."
        ),
    ],
    image: Annotated[
        list[Path] | None, typer.Option("--image", "-i", help="Picture; repeat for several.")
    ] = None,
    output: o.Output = Path("story.png"),
    overwrite: o.Overwrite = False,
    chosen: ModelOptions,
    max_pictures: Annotated[
        int,
        typer.Option(
            min=1, help="Maximum number of pictures to draw.", rich_help_panel=o.WRITING_PANEL
        ),
    ] = 4,
    max_tokens: o.MaxTokens = 64,
    temperature: o.Temperature = 0.0,
    seed: o.Seed = 0,
    drawing: StoryOptions,
    server: o.Server = None,
    api_key: o.ApiKey = None,
    as_json: o.Json = False,
) -> None:
    """Continue a story; pictures are written to OUTPUT with -0, -1 ... before the ending.

    Example: nextstep story "A cat finds an apple." -o story.png
    """
    from nextstep.cli import checks, report
    from nextstep.image.pictures import open_picture
    from nextstep.text.sequence import Text, interleaved

    paths = report.numbered_paths(output, max_pictures)
    for path in paths:
        report.check_picture(path, overwrite)
    files = image or []
    pictures = [open_picture(path) for path in files]
    tagged = text if "<image" in text else "<image>" * len(pictures) + text
    # The grammar checks tags against pictures; the grids only say which picture stands where.
    order = interleaved(tagged, [(1, number + 1) for number in range(len(pictures))])
    settings = drawing.settings()
    asked: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        **settings,
    }
    if server is not None:
        from nextstep.cli import remote

        chosen.refuse_for_server(context)
        sent = [p.text if isinstance(p, Text) else files[p.grid[1] - 1] for p in order]
        told_by_service = remote.story(
            server, api_key, sent, as_json, max_images=max_pictures, **asked
        )
        drawn = [part for part in told_by_service if not isinstance(part, str)]
        for part, path in zip(drawn, paths, strict=False):  # it may draw fewer than asked for
            remote.save(part, path)
        _say(told_by_service, paths, as_json)
        return
    checks.check_drawing(
        chosen.check(), chosen.vae, (None, None), settings, edit=bool(files), seed=seed
    )
    parts = [p.text if isinstance(p, Text) else pictures[p.grid[1] - 1] for p in order]
    pipeline = chosen.load()
    report.say_read_size(pipeline, files, pictures)
    with report.progress_bar(max_pictures, quiet=as_json) as told:
        made = pipeline.story(
            *parts, max_pictures=max_pictures, on_progress=told,
            on_picture=report.saved(paths), **asked,
        )  # fmt: skip
    _say(made, paths, as_json)


def _say(
    made: Sequence[str | GeneratedPicture | Part], paths: Sequence[Path], as_json: bool
) -> None:
    """Tell the story in order; its pictures are written already."""
    names = iter(paths)
    told = [
        {"text": part} if isinstance(part, str) else {"picture": str(next(names))} for part in made
    ]
    if as_json:
        typer.echo(json.dumps({"story": told}, ensure_ascii=False))
        return
    for entry in told:
        typer.echo(entry.get("text") or f"[{entry['picture']}]")
