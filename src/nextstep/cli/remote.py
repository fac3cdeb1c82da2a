"""Pictures from a service: asked for, shown row by row, saved."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from nextstep.client import RemotePicture, Update


def size(height: int | None, width: int | None) -> str | None:
    """A service's WIDTHxHEIGHT.

    Raises:
        ValueError: when only one of them is given.
    """
    if (height is None) != (width is None):
        raise ValueError("a service wants both --height and --width, or neither")
    return None if height is None else f"{width}x{height}"


def generate(
    server: str,
    key: str | None,
    prompts: Sequence[str],
    paths: Sequence[Path],
    as_json: bool,
    **fields: Any,
) -> None:
    """Ask for every prompt's pictures, write them to `paths` in order, and say so."""
    from nextstep.client import Client
    from nextstep.engine.results import GeneratedPicture

    begun = time.monotonic()
    made: list[RemotePicture] = []
    with Client(server, key) as client, _rows(quiet=as_json) as told:
        for prompt in prompts:
            for update in client.stream(prompt, previews=False, **fields):
                told(update)
                made += update.pictures
    for picture, path in zip(made, paths, strict=True):
        made_here = GeneratedPicture(picture.image, picture.settings)
        (picture if path.suffix.lower() == ".png" else made_here).save(path)
    seconds = round(time.monotonic() - begun, 3)
    if as_json:
        pictures = [
            {"path": str(path), **picture.settings}
            for picture, path in zip(made, paths, strict=True)
        ]
        told_all = {"pictures": pictures, "server": server, "generate_s": seconds}
        typer.echo(json.dumps(told_all, ensure_ascii=False))
        return
    for picture, path in zip(made, paths, strict=True):
        said = picture.settings
        typer.echo(f"{path}  {said['width']}x{said['height']}  seed {said['seed']}.{said['index']}")
    typer.echo(f"{len(made)} picture(s) in {seconds:.1f} s from {server}")


@contextmanager
def _rows(quiet: bool) -> Iterator[Callable[[Update], None]]:
    """A bar over rows on stderr; nothing when quiet."""
    if quiet:
        yield lambda update: None
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.fields[label]}"),
        bars.BarColumn(),
        bars.TextColumn("{task.completed}/{task.total} rows"),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task("", total=None, label="waiting")

        def told(update: Update) -> None:
            if update.position:
                bar.update(line, label=f"waiting, place {update.position}")
            elif update.rows:
                label = f"picture {update.index + 1}"
                bar.update(line, completed=update.row, total=update.rows, label=label)

        yield told
