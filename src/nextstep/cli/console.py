"""Consoles that lack a character: it is shown as an escape, and the command goes on."""

from __future__ import annotations

import codecs
import io
import json
import sys

ERRORS = "nextstep.escape"


def show_anything() -> None:
    """Let standard output and errors escape what their encoding lacks.

    Escapes are those of JSON, so what `--json` prints stays JSON.
    """
    codecs.register_error(ERRORS, _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERRORS)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end
