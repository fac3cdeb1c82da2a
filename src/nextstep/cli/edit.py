"""`nextstep edit`: a picture from pictures and an instruction."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from nextstep.cli import options as o
from nextstep.cli.groups import EditOptions, ModelOptions, SizeOptions, with_groups


@with_groups
def command(
    *,
    context: typer.Context,
    instruction: Annotated[str, typer.Argument(help="Instruction; may contain <image> tags.")],
    image: Annotated[
        list[Path], typer.Option("--image", "-i", help="Source picture; repeat for several.")
    ],
    mask: Annotated[
        Path | None,
        typer.Option(
            help="Where the first picture may change: transparent there, or white in a "
            "picture without transparency. All else stays as it is."
        ),
    ] = None,
    output: o.Output = Path("edited.png"),
    overwrite: o.Overwrite = False,
    chosen: ModelOptions,
    size: SizeOptions,
    num_images: o.NumImages = 1,
    seed: o.Seed = 0,
    mask_feather: Annotated[
        int | None,
        typer.Option(
            help="Pixels over which the change grows from the mask's border inwards.",
            rich_help_panel=o.SAMPLING_PANEL,
            show_default=False,
        ),
    ] = None,
    drawing: EditOptions,
    batch_size: o.BatchSize = 8,
    server: o.Server = None,
    api_key: o.ApiKey = None,
    as_json: o.Json = False,
) -> None:
    """Change a picture by an instruction.

    Settings of sampling that are not given are the model's own; nextstep info shows them.

    Example: nextstep edit "make the background blue" -i apple.png -o blue.png
    """
    from nextstep.cli import checks, report
    from nextstep.engine.settings import check_used
    from nextstep.image.masks import read_mask
    from nextstep.image.pictures import open_picture
    from nextstep.text.sequence import editing

    editing(instruction, [(1, 1)] * len(image), (1, 1))  # its tags name the pictures one to one
    paths = report.output_paths(output, num_images, overwrite)
    sides = size.sides
    settings = drawing.settings() | {"mask_feather": mask_feather}
    if mask is None:
        check_used("edit", settings)
    sources = [open_picture(path) for path in image]
    marked = None if mask is None else read_mask(mask)
    if server is not None:
        from nextstep.cli import remote

        chosen.refuse_for_server(context)
        remote.pictures(
            server, api_key, [instruction], paths, as_json, images=image, mask=mask,
            n=num_images, size=remote.size(*sides), seed=seed, **settings,
        )  # fmt: skip
        return
    checks.check_drawing(
        chosen.check(), chosen.vae, sides, settings, edit=True, seed=seed, count=num_images,
        batch_size=batch_size,
    )  # fmt: skip
    begun = time.monotonic()
    pipeline = chosen.load()
    loaded = time.monotonic()
    report.say_read_size(pipeline, image, sources)
    with report.progress_bar(num_images, quiet=as_json) as told:
        results = pipeline.edit(
            sources, instruction, mask=marked, height=sides[0], width=sides[1],
            num_images=num_images, seed=seed, batch_size=batch_size, on_progress=told,
            on_picture=report.saved(paths), **settings,
        )  # fmt: skip
    times = {"load_s": loaded - begun, "generate_s": time.monotonic() - loaded}
    report.say(results, paths, times, as_json)
