"""`nextstep show-settings`: what made this picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from nextstep.cli import options as o


def command(
    file: Annotated[Path, typer.Argument(help="PNG made by nextstep.")],
    as_json: o.Json = False,
) -> None:
    """Show the settings that a picture carries."""
    from nextstep.engine.metadata import read_record
    from nextstep.errors import printable

    record = read_record(file)
    if as_json:
        typer.echo(printable(json.dumps(record, ensure_ascii=False)))
        return
    width = max(map(len, record), default=0)
    for name, value in record.items():
        typer.echo(printable(f"{name:<{width}}  {value}"))
