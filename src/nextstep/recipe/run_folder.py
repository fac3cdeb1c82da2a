"""The folder of a run: marked as ours, used by one training at a time, and nobody else's moved.

A folder is a run's when it holds the marker that its first start wrote there. One that holds other
files is refused, whether a run is to go on in it or to begin anew.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import IO

from nextstep.errors import NextStepError
from nextstep.utils.files import FULL_DISK, LOCK, lock_folder, write_json

MARKER = "nextstep-run.json"
VERSION = 1
KNOWN = re.compile(
    r"recipe\.yaml|log\.jsonl|loss\.png|checkpoints|samples|step-\d{8}|model|text-tokenizer"
    r"|tensorboard|\..*|" + f"{re.escape(LOCK)}|{re.escape(MARKER)}"
)
"""Names that a run writes into its folder."""
MODEL_FILES = re.compile(
    r"(config|generation|tokenizer|tokenizer_config|special_tokens_map|vocab)\.json"
    r"|.*\.safetensors(\.index\.json)?|vae"
)
"""Names that are written into a model folder."""


def open_run_folder(folder: Path, fresh: bool = False) -> IO[str]:
    """Make the folder of a run, or take up one that is there, for this process alone.

    Args:
        folder: of the run.
        fresh: move a run that is there aside first.

    Returns:
        The lock; closing it gives the folder free.

    Raises:
        NextStepError: when the folder cannot be made, is not a run's, or another training uses it.
        OSError: when the disk is full.
    """
    if _is_used(folder):
        if not is_run_folder(folder):
            raise NextStepError(
                f"{folder} holds files and is not the folder of a run (it has no {MARKER}); choose "
                "another folder"
            )
        if fresh:
            with lock_folder(folder, "training"):
                move_aside(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in FULL_DISK:
            raise
        raise NextStepError(f"{folder} cannot be made: {error.strerror}") from None
    lock = lock_folder(folder, "training")
    if not (folder / MARKER).exists():
        write_json(folder / MARKER, {"run": VERSION})
    return lock


def _is_used(folder: Path) -> bool:
    """Whether there is something; a lone lock is what a start leaves that was ended at once."""
    if not folder.is_dir():
        return folder.exists()
    return any(path.name != LOCK for path in folder.iterdir())


def is_run_folder(folder: Path) -> bool:
    """Whether a run wrote a folder: it is marked, or of the time before markers.

    Raises:
        NextStepError: for the marker of a newer version.
    """
    try:
        marked = json.loads((folder / MARKER).read_text("utf-8"))["run"]
    except (OSError, ValueError, KeyError, TypeError):
        if not folder.is_dir() or not (folder / "recipe.yaml").is_file():
            return False
        return all(KNOWN.fullmatch(path.name) for path in folder.iterdir())
    if marked != VERSION:
        raise NextStepError(f"the run in {folder} was made by a newer version of nextstep")
    return True


def move_aside(folder: Path) -> None:
    """Rename a folder that is there to the first free name with a number behind it."""
    if not folder.exists():
        return
    number = 1
    while (other := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    folder.rename(other)


def put_in_place(scratch: Path, folder: Path) -> None:
    """Let a model folder take its place; one that was there goes, anything else is moved aside.

    Args:
        scratch: the whole new folder, beside `folder`.
        folder: its place.
    """
    if not folder.exists():
        scratch.rename(folder)
        return
    if not _is_model_folder(folder):
        move_aside(folder)
        scratch.rename(folder)
        return
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
    scratch.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _is_model_folder(folder: Path) -> bool:
    """Whether a folder holds what a run writes into one, and nothing else."""
    if not folder.is_dir() or not (folder / "config.json").is_file():
        return False
    inside = [*folder.iterdir(), *(folder / "vae").glob("*")]
    return all(MODEL_FILES.fullmatch(path.name) for path in inside)
