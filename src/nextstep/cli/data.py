"""`nextstep data`: sets of samples for training: build, check, show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextstep.cli import options as o
from nextstep.cli.report import counting

if TYPE_CHECKING:
    from nextstep.data.prepare.build import BuildReport
    from nextstep.data.prepare.check import CheckReport
    from nextstep.data.shards import ShardSet

data_app = typer.Typer(help="Build, check and show data sets.", no_args_is_help=True)

NAMED = 20
"""Broken samples that a table names; --json names all."""

Kind = Annotated[
    str | None,
    typer.Option("--kind", "-k", help="text, image_text, image_to_image or interleaved."),
]
Threads = Annotated[int, typer.Option(min=1, help="Pictures that are decoded in parallel.")]
Decode = Annotated[
    bool,
    typer.Option("--decode/--headers-only", help="Decode every picture, or read only the headers."),
]
SourcePanel = "Source"


@data_app.command("build")
def build(
    source: Annotated[str, typer.Argument(help="Folder, file or Hugging Face set.")],
    target: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    kind: Annotated[
        str, typer.Option("--kind", "-k", help="text, image_text, image_to_image or interleaved.")
    ] = "image_text",
    name: Annotated[
        str | None, typer.Option(help="Name of the set; default the name of the folder.")
    ] = None,
    form: Annotated[
        str | None, typer.Option(help="folder, jsonl, csv, shards, parquet or datasets; default "
                                 "by what lies there.", rich_help_panel=SourcePanel)
    ] = None,
    image_column: Annotated[
        list[str] | None, typer.Option(help="Column of pictures; repeat it for several, in order.",
                                       rich_help_panel=SourcePanel)
    ] = None,
    caption_column: Annotated[
        str | None, typer.Option(help="Column of captions.", rich_help_panel=SourcePanel)
    ] = None,
    split: Annotated[
        str, typer.Option(help="Split of a Hugging Face set.", rich_help_panel=SourcePanel)
    ] = "train",
    config: Annotated[
        str | None, typer.Option(help="Configuration of a Hugging Face set.",
                                 rich_help_panel=SourcePanel)
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="Encoding of captions in files, such as cp1252; default "
                                 "UTF-8.", rich_help_panel=SourcePanel)
    ] = None,
    streaming: Annotated[
        bool, typer.Option("--stream/--fetch", help="Read a Hugging Face set while it is "
                                                    "downloaded, or download it first.",
                           rich_help_panel=SourcePanel)
    ] = True,
    samples_per_shard: Annotated[
        int, typer.Option(help="Maximum samples per shard.", rich_help_panel="Shards")
    ] = 500,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after this many samples.")] = None,
    decode: Decode = True,
    threads: Threads = 4,
    as_json: o.Json = False,
) -> None:  # fmt: skip
    """Write tar shards from captioned pictures; broken samples are left out and named."""
    from nextstep.data.prepare.build import build_set, open_source

    _quiet_pillow()
    items = open_source(
        source,
        kind,
        form,
        image_column or (),
        caption_column,
        split,
        config,
        streaming,
        encoding,
    )
    with counting("samples read", as_json) as counted:
        report = build_set(
            items, target, name or target.name, kind, samples_per_shard, decode, threads, limit,
            on_item=lambda item: counted(),
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(report.to_dict(), ensure_ascii=False))
    else:
        _tell_built(report)


@data_app.command("check")
def check(
    folder: Annotated[Path, typer.Argument(help="Folder of shards.")],
    kind: Kind = None,
    histogram: Annotated[
        Path | None, typer.Option(help="Write histograms to this picture file.")
    ] = None,
    overwrite: o.Overwrite = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with status 1 if anything is broken.")
    ] = False,
    decode: Decode = True,
    threads: Threads = 4,
    as_json: o.Json = False,
) -> None:  # fmt: skip
    """Check every sample: broken ones, duplicates, sizes and checksums."""
    from nextstep.cli.report import output_paths, save_sheet
    from nextstep.data.prepare.check import check_set

    _quiet_pillow()
    if histogram is not None:
        output_paths(histogram, 1, overwrite)
    shards = _open(folder, kind)
    with counting("samples checked", as_json, len(shards)) as counted:
        report = check_set(shards, decode, threads, counted)
    if histogram is not None:
        from nextstep.data.prepare.contact_sheet import histogram_chart

        save_sheet(histogram_chart(report.histograms), histogram)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), ensure_ascii=False))
    else:
        _tell_checked(report)
    if strict and not report.sound:
        raise typer.Exit(1)


@data_app.command("show")
def show(
    folder: Annotated[Path, typer.Argument(help="Folder of shards.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Picture file to write.")
    ] = Path("sheet.png"),
    overwrite: o.Overwrite = False,
    count: Annotated[int, typer.Option("--count", "-n", help="Number of samples to show.")] = 24,
    start: Annotated[int, typer.Option(help="Number of the first sample.")] = 0,
    seed: Annotated[
        int | None, typer.Option(help="Choose random samples with this seed instead of "
                                      "consecutive ones.")
    ] = None,
    columns: Annotated[int, typer.Option(help="Samples per row.")] = 6,
    cell: Annotated[int, typer.Option(help="Side of a sample in pixels.")] = 192,
    font: Annotated[
        Path | None, typer.Option(help="TrueType font for captions that are not in Latin letters.")
    ] = None,
    kind: Kind = None,
    as_json: o.Json = False,
) -> None:  # fmt: skip
    """Write a contact sheet of samples with their captions."""
    from nextstep.cli.report import output_paths, save_sheet
    from nextstep.data.prepare.contact_sheet import contact_sheet, pick

    _quiet_pillow()
    output_paths(output, 1, overwrite)
    shards = _open(folder, kind)
    indices = pick(len(shards), count, start, seed)
    save_sheet(contact_sheet(shards, indices, columns, cell, font), output)
    if as_json:
        keys = [shards.key(index) for index in indices]
        typer.echo(json.dumps({"path": str(output), "samples": keys}))
    else:
        typer.echo(f"{output}  {len(indices)} of {len(shards)} samples of {shards.name}")


def _open(folder: Path, kind: str | None) -> ShardSet:
    from nextstep.data.shards import ShardSet

    return ShardSet(folder, kind=kind)


def _quiet_pillow() -> None:
    """Large pictures are counted and named; Pillow need not warn of them too."""
    import warnings

    from PIL import Image

    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def _tell_built(report: BuildReport) -> None:
    typer.echo(
        f"wrote {report.folder}: {report.samples:,} samples of '{report.name}' ({report.kind}) in "
        f"{report.shards} shard(s), {_size(report.size)}"
    )
    for place, count in report.captions.items():
        typer.echo(f"captions: {count:,} from {place}")
    _tell_broken(report.reasons, report.broken, "left out")


def _tell_checked(report: CheckReport) -> None:
    from rich.console import Console
    from rich.table import Table

    told = {
        "samples": f"{report.samples:,}", "of them broken": f"{len(report.broken):,}",
        "pictures": f"{report.pictures:,}", "shards": f"{report.shards:,}",
        "size": _size(report.size),
        "duplicate samples": f"{sum(len(group) - 1 for group in report.duplicates):,}",
        "pictures in several samples": f"{len(report.shared_pictures):,}",
    }  # fmt: skip
    table = Table("", "", title=f"{report.name} ({report.kind})", show_header=False)
    for name, value in told.items():
        table.add_row(name, value)
    console = Console()
    console.print(table)
    for chart in report.histograms:
        table = Table("", "count", "share", title=chart.title)
        for name, count in zip(chart.bins, chart.counts, strict=True):
            if count:
                table.add_row(name, f"{count:,}", f"{count / sum(chart.counts):.1%}")
        console.print(table)
    for path, problem in report.shard_problems.items():
        typer.echo(f"shard {path}: {problem}")
    _tell_broken(report.reasons, report.broken, "broken")
    for group in report.duplicates[:NAMED]:
        typer.echo(f"the same sample: {', '.join(group[:5])}{' ...' if len(group) > 5 else ''}")
    if report.sound:
        typer.echo("every sample can be used and every shard is as it was written")


def _tell_broken(reasons: dict[str, int], broken: list[Any], what: str) -> None:
    if not broken:
        return
    counts = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
    typer.echo(f"{len(broken):,} samples {what}: {counts}")
    for error in broken[:NAMED]:
        typer.echo(f"  {error}")
    if len(broken) > NAMED:
        typer.echo(f"  ... and {len(broken) - NAMED:,} more; --json names all")


def _size(count: int) -> str:
    """Bytes as people say them."""
    size, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.1f} {unit}" if unit != "bytes" else f"{count} bytes"
