"""Pictures from a service: asked for, shown row by row, saved."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from nextstep.cli.report import on_terminal, picture_line, pictures_in_words
from nextstep.errors import NextStepError

if TYPE_CHECKING:
    from nextstep.client import Event, Part, StoryPart


def size(height: int | None, width: int | None) -> str | None:
    """A service's WIDTHxHEIGHT.

    Raises:
        ValueError: when only one of them is given.
    """
    if (height is None) != (width is None):
        raise NextStepError("a service wants both --height and --width, or neither; see --size")
    return None if height is None else f"{width}x{height}"


def pictures(
    server: str,
    key: str | None,
    prompts: Sequence[str],
    paths: Sequence[Path],
    as_json: bool,
    **fields: Any,
) -> None:
    """Ask for every prompt's pictures, write them to `paths` in order, and say so."""
    from nextstep.client import Client

    begun = time.monotonic()
    made: list[Part] = []
    with Client(server, key) as client, _rows(quiet=as_json) as told:
        for prompt in prompts:
            for event in client.stream(prompt, previews=False, **fields):
                told(event)
                for picture in event.pictures:
                    save(picture, paths[len(made)])
                    made.append(picture)
                for warning in event.warnings:
                    typer.echo(f"nextstep: warning: {warning}", err=True)
    _say(made, paths, server, begun, as_json)


def story(
    server: str,
    key: str | None,
    parts: Sequence[StoryPart],
    as_json: bool,
    **fields: Any,
) -> list[str | Part]:
    """What a service writes and draws behind the parts."""
    from nextstep.client import Client

    with Client(server, key) as client, _rows(quiet=as_json) as told:
        return client.story(parts, told, **fields)


def predict(
    server: str,
    key: str | None,
    scene: Path,
    actions: Sequence[str],
    paths: Sequence[Path],
    as_json: bool,
    **fields: Any,
) -> None:
    """Draw what a scene looks like after each action, write the pictures, and say so."""
    begun = time.monotonic()
    parts: list[StoryPart] = [scene]
    made: list[Part] = []
    for action, path in zip(actions, paths, strict=True):
        parts.append(action)
        drawn = story(server, key, parts, as_json, draw=True, max_images=1, **fields)
        made += [part for part in drawn if not isinstance(part, str)]
        save(made[-1], path)
        parts.append(made[-1].png)
    _say(made, paths, server, begun, as_json)


def save(picture: Part, path: Path) -> None:
    """Write a picture in the format of the path's ending, with its settings."""
    from nextstep.engine.results import GeneratedPicture

    made_here = GeneratedPicture(picture.image, picture.settings)
    (picture if path.suffix.lower() == ".png" else made_here).save(path)


def _say(
    made: Sequence[Part], paths: Sequence[Path], server: str, begun: float, as_json: bool
) -> None:
    """Report files and time of pictures that are written, in words or as one line of JSON."""
    seconds = round(time.monotonic() - begun, 3)
    if as_json:
        told = [
            {"path": str(path), **picture.settings}
            for picture, path in zip(made, paths, strict=True)
        ]
        told_all = {"pictures": told, "server": server, "generate_s": seconds}
        typer.echo(json.dumps(told_all, ensure_ascii=False))
        return
    for picture, path in zip(made, paths, strict=True):
        typer.echo(f"{path}  {picture_line(picture.settings)}")
    typer.echo(f"{pictures_in_words(len(made))} in {seconds:.1f} s from {server}")


@contextmanager
def _rows(quiet: bool) -> Iterator[Callable[[Event], None]]:
    """A bar over rows on stderr; nothing when quiet."""
    if quiet:
        yield lambda event: None
        return
    from rich import progress as bars

    columns = (
        bars.TextColumn("{task.fields[label]}"),
        bars.BarColumn(),
        bars.TextColumn("{task.completed}/{task.total} rows"),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, **on_terminal()) as bar:
        line = bar.add_task("", total=None, label="waiting")

        def told(event: Event) -> None:
            if event.position:
                bar.update(line, label=f"waiting, place {event.position}")
            elif event.rows:
                label = f"picture {event.index + 1}"
                bar.update(line, completed=event.row, total=event.rows, label=label)

        yield told
