"""`nextstep replay` and `nextstep verify`: a picture again from the settings it carries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nextstep.cli import options as o
from nextstep.cli.groups import ModelOptions

if TYPE_CHECKING:
    from nextstep.engine.results import GeneratedPicture

File = Annotated[Path, typer.Argument(help="PNG made by nextstep.")]
Sources = Annotated[
    list[Path] | None, typer.Option("--image", "-i", help="Source picture of an edit, in order.")
]
Mask = Annotated[Path | None, typer.Option(help="Mask of an edit inside one.")]


def replay_command(
    file: File,
    output: o.Output = Path("replayed.png"),
    overwrite: o.Overwrite = False,
    image: Sources = None,
    mask: Mask = None,
    model: o.Model = "nano",
    vae: o.Vae = None,
    adapter: o.Adapter = None,
    device: o.Device = "cpu",
) -> None:
    """Make a picture again from the settings it carries.

    Example: nextstep replay apple.png -o again.png
    """
    from nextstep.cli import report

    (path,) = report.output_paths(output, 1, overwrite)
    _made_again(file, image, mask, model, vae, adapter, device).save(path)
    typer.echo(str(path))


def verify_command(
    file: File,
    image: Sources = None,
    mask: Mask = None,
    model: o.Model = "nano",
    vae: o.Vae = None,
    adapter: o.Adapter = None,
    device: o.Device = "cpu",
    as_json: o.Json = False,
) -> None:
    """Make a picture again and say whether it is identical, or where it differs.

    Exit status: 0 identical, 1 different, 2 when it cannot be made again here.
    """
    from dataclasses import asdict

    from PIL import Image

    from nextstep.engine.metadata import read_record
    from nextstep.errors import NextStepError

    read_record(file)  # says what is wrong with the file
    with Image.open(file) as picture:
        if picture.format != "PNG":
            raise NextStepError(
                f"{file} is a {picture.format} file, whose pixels are not exact: only a PNG can "
                "be verified; nextstep replay draws this one again"
            )
    made = _made_again(file, image, mask, model, vae, adapter, device)
    from nextstep.engine.reproduce import compare

    with Image.open(file) as picture:
        difference = compare(picture, made.image)
    identical = difference.box is None
    if as_json:
        typer.echo(json.dumps({"identical": identical, **asdict(difference)}))
    else:
        typer.echo(f"{file}: {difference}")
    if not identical:
        raise typer.Exit(1)


def _made_again(
    file: Path,
    images: list[Path] | None,
    mask: Path | None,
    model: str,
    vae: Path | None,
    adapter: Path | None,
    device: str,
) -> GeneratedPicture:
    from nextstep.engine.metadata import read_record

    record = read_record(file)
    ModelOptions(model, device=device, vae=vae, adapter=adapter).check()
    from nextstep.engine.reproduce import check_record, record_dtype, replay
    from nextstep.pipeline import NextStepPipeline

    check_record(record)
    scale = float(record.get("adapter_scale", 1.0))
    pipeline = NextStepPipeline.from_pretrained(
        model,
        record_dtype(record),
        device,
        vae,
        adapter,
        scale,
        record.get("quantize"),
    )
    return replay(pipeline, record, images or [], mask)
