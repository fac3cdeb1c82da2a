"""Progress while pictures are made, and what is said about them at the end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

    from nextstep.engine.results import GeneratedPicture, OnPicture, Progress
    from nextstep.pipeline import NextStepPipeline

TOKEN_AREA = 16 * 16
"""Pixels per image token."""


def output_paths(output: Path, count: int, overwrite: bool = False) -> list[Path]:
    """Where `count` pictures go: one to `output`, several with -0, -1 ... before the ending.

    Raises:
        NextStepError: when one of them cannot be written, before any work is done.
    """
    paths = [output] if count == 1 else numbered_paths(output, count)
    for path in paths:
        check_picture(path, overwrite)
    return paths


def numbered_paths(output: Path, count: int) -> list[Path]:
    """Paths with -0, -1 ... before the ending.

    Raises:
        NextStepError: when they are more than one command may draw.
    """
    from nextstep.engine.settings import check_count

    check_count(count)
    return [output.with_stem(f"{output.stem}-{i}") for i in range(count)]


def check_picture(path: Path, overwrite: bool) -> None:
    """Refuse a picture file that cannot be written, see `check_file`."""
    from nextstep.image.encode import format_of, is_own

    format_of(path)
    check_file(path, overwrite, is_own)


def check_file(path: Path, overwrite: bool, is_own: Callable[[Path], bool]) -> None:
    """Make sure that a file can be written there, before any work is done.

    Args:
        path: of the file.
        overwrite: whether any file may be replaced.
        is_own: whether a file was written by us, and so may be replaced in any case.

    Raises:
        NextStepError: when it is a folder, no plain file or a foreign one, or its folder is missing
            or read-only.
    """
    import os

    from nextstep.errors import NextStepError

    if path.is_dir():
        raise NextStepError(f"{path} is a folder, not a file to write")
    if not path.parent.is_dir():
        raise NextStepError(f"the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise NextStepError(f"the folder {path.parent} may not be written")
    if not path.exists():
        return
    if not path.is_file():
        raise NextStepError(f"{path} is no plain file")
    if not overwrite and path.stat().st_size and not is_own(path):
        raise NextStepError(
            f"{path} exists and was not made by nextstep: choose another name, or replace it "
            "with --overwrite"
        )


def save_sheet(picture: Image.Image, path: Path) -> None:
    """Write a picture without settings, marked as ours, in the form that its ending asks for."""
    from nextstep.image.encode import MARK, encode, format_of
    from nextstep.utils.files import write_whole

    write_whole(path, encode(picture, format_of(path), MARK))


def say_read_size(
    pipeline: NextStepPipeline, paths: Sequence[Path], pictures: Sequence[Image.Image]
) -> None:
    """Say on stderr at which size pictures are read that are too large for the model."""
    for path, picture in zip(paths, pictures, strict=True):
        height, width = pipeline.source_limits.fitted(picture.height, picture.width)
        if width * height < picture.width * picture.height:
            size = f"{picture.width}x{picture.height}"
            typer.echo(f"{path}: {size} pixels, read as {width}x{height}", err=True)


def on_terminal() -> dict[str, Any]:
    """How bars are shown: on stderr while work lasts, and only on a terminal.

    Elsewhere, as in a log, rich would write an empty line in place of each.
    """
    from rich.console import Console

    console = Console(stderr=True)
    return {"console": console, "transient": True, "disable": not console.is_terminal}


@contextmanager
def counting(label: str, quiet: bool, total: int | None = None) -> Iterator[Callable[[], None]]:
    """A bar on stderr, called once a piece; nothing when quiet."""
    if quiet:
        yield lambda: None
        return
    from rich import progress as bars

    columns = (
        bars.TextColumn(
            "{task.completed:,}" + (f" of {total:,} {label}" if total else f" {label}")
        ),
        bars.BarColumn(),
        bars.TimeElapsedColumn(),
    )
    with bars.Progress(*columns, **on_terminal()) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)


@contextmanager
def progress_bar(pictures: int, quiet: bool) -> Iterator[Callable[[Progress], None] | None]:
    """A bar over image tokens with tokens per second, on stderr; nothing when quiet."""
    if quiet:
        yield None
        return
    from rich import progress as bars

    columns = (
        bars.TextColumn("{task.fields[label]}"),
        bars.BarColumn(),
        bars.TextColumn("{task.completed}/{task.total} tokens"),
        bars.TextColumn("{task.fields[rate]}"),
        bars.TimeRemainingColumn(),
    )
    begun = time.monotonic()
    with bars.Progress(*columns, **on_terminal()) as bar:
        task = bar.add_task("", total=None, label="picture 1", rate="")
        made = 0

        def told(progress: Progress) -> None:
            """Move the bar and say the rate so far."""
            nonlocal made
            made += progress.batch
            rate = f"{made / (time.monotonic() - begun):.1f} tokens/s"
            label = f"picture {progress.pictures + 1} of {pictures}"
            bar.update(
                task, completed=progress.tokens, total=progress.total, label=label, rate=rate
            )

        yield told


def pictures_in_words(count: int) -> str:
    """1 picture, 2 pictures."""
    return f"{count} picture" + "s" * (count != 1)


def picture_line(settings: dict[str, Any]) -> str:
    """Size and noise of a picture in words."""
    size = f"{settings['width']}x{settings['height']}"
    return f"{size}  seed {settings['seed']}, picture {settings['index']}"


def saved(paths: list[Path]) -> OnPicture:
    """What writes every picture as soon as it is done: a later failure takes none away."""
    return lambda place, picture: picture.save(paths[place])


def say(
    results: list[GeneratedPicture], paths: list[Path], times: dict[str, float], as_json: bool
) -> None:
    """Report files and times of pictures that are written, in words or as one line of JSON."""
    tokens = sum(p.image.width * p.image.height for p in results) // TOKEN_AREA
    rate = tokens / max(times["generate_s"], 1e-9)
    if as_json:
        made = [
            {"path": str(path), **picture.settings}
            for picture, path in zip(results, paths, strict=True)
        ]
        rounded = {name: round(value, 3) for name, value in times.items()}
        told = {"pictures": made, **rounded, "tokens_per_s": round(rate, 1)}
        typer.echo(json.dumps(told, ensure_ascii=False))
        return
    for picture, path in zip(results, paths, strict=True):
        typer.echo(f"{path}  {picture_line(picture.settings)}")
    typer.echo(
        f"{pictures_in_words(len(results))} in {times['generate_s']:.1f} s ({rate:.0f} tokens/s) "
        f"after {times['load_s']:.1f} s of loading"
    )
