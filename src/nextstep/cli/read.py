"""`nextstep read`: what the model says about pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from nextstep.cli import options as o


def command(
    image: Annotated[list[Path], typer.Argument(help="Picture; several are read in order.")],
    question: Annotated[
        str, typer.Option("--question", "-q", help="Asked after the pictures; none: describe.")
    ] = "",
    model: o.Model = "nano",
    vae: o.Vae = None,
    dtype: o.Dtype = None,
    quantize: o.Quantize = None,
    device: o.Device = "cpu",
    max_tokens: o.MaxTokens = 64,
    as_json: o.Json = False,
) -> None:
    """Describe a picture, or answer a question about it.

    Example: nextstep read scene.png -q "how many apples are there?"
    """
    from nextstep.cli import report
    from nextstep.image.pictures import open_picture

    pictures = [open_picture(path) for path in image]
    pipeline = o.load_pipeline(model, dtype, device, vae, quantize=quantize)
    report.say_read_size(pipeline, image, pictures)
    answer = pipeline.read(pictures, question, max_tokens)
    if as_json:
        told = {"pictures": [str(p) for p in image], "question": question, "answer": answer}
        typer.echo(json.dumps(told, ensure_ascii=False))
    else:
        typer.echo(answer)
