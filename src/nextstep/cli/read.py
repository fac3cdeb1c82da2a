"""`nextstep read`: what the model says about pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from nextstep.cli import options as o
from nextstep.cli.groups import ModelOptions, with_groups


@with_groups
def command(
    *,
    context: typer.Context,
    image: Annotated[list[Path], typer.Argument(help="Picture; several are read in order.")],
    question: Annotated[
        str,
        typer.Option(
            "--question", "-q", help="Question about the pictures; default: describe them."
        ),
    ] = "",
    chosen: ModelOptions,
    max_tokens: o.MaxTokens = 64,
    server: o.Server = None,
    api_key: o.ApiKey = None,
    as_json: o.Json = False,
) -> None:
    """Describe a picture, or answer a question about it.

    Example: nextstep read scene.png -q "how many apples are there?"
    """
    from nextstep.cli import report
    from nextstep.image.pictures import open_picture

    pictures = [open_picture(path) for path in image]
    if server is not None:
        from nextstep.cli import remote

        chosen.refuse_for_server(context)
        parts: list[str | Path] = [*image, question] if question else [*image]
        said = remote.story(server, api_key, parts, as_json, max_images=0, max_tokens=max_tokens)
        answer = "".join(part for part in said if isinstance(part, str)).strip()
    else:
        pipeline = chosen.load()
        report.say_read_size(pipeline, image, pictures)
        answer = pipeline.read(pictures, question, max_tokens)
    if as_json:
        told = {"pictures": [str(p) for p in image], "question": question, "answer": answer}
        typer.echo(json.dumps(told, ensure_ascii=False))
    else:
        typer.echo(answer)
