"""The running command again, in processes that share its work: on this machine or with Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ALONE = ("--workers", "1", "--json")
"""Options that each of the processes gets besides."""


def start_others(count: int) -> list[subprocess.Popen[Any]]:
    """The same command in more processes of this machine."""
    command = [sys.executable, "-m", "nextstep", *sys.argv[1:], *ALONE]
    return [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(count)]


def run_on_ray(processes: int, cuda: bool) -> None:
    """The same command in processes that Ray places on its machines; waits for all of them.

    Every machine needs this package, and sees the folders under the same paths.

    Args:
        processes: how many, each with one GPU when `cuda`.
        cuda: whether they compute on GPUs.

    Raises:
        NextStepError: when Ray is not installed.
    """
    from nextstep.train import launch

    arguments = [*(one for one in sys.argv[1:] if one != "--ray"), *ALONE]
    launch.launch_on_ray(run_again, (arguments, str(Path.cwd())), processes, cuda)


def run_again(arguments: Sequence[str], folder: str) -> None:
    """Run a command in this process.

    Args:
        arguments: of `nextstep`.
        folder: that paths among them start from.
    """
    from nextstep.cli.main import app

    os.chdir(folder)
    app(list(arguments), standalone_mode=False)
