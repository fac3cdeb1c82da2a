"""JSON files in and out, with errors that name the file; folders written whole or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nextstep.errors import ModelFileError, NextStepError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ModelFileError: when the file is missing, not JSON, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ModelFileError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} must hold a JSON object")
    return value


def write_json(path: Path, value: object) -> None:
    """Write JSON beside `path`, then put it in its place."""
    scratch = path.with_name(path.name + ".part")
    scratch.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    scratch.replace(path)


def refuse_existing(folder: Path) -> None:
    """Make sure nothing would be overwritten.

    Raises:
        NextStepError: when the folder exists.
    """
    if folder.exists():
        raise NextStepError(f"{folder} exists already; choose another folder")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A scratch folder to write into; it takes its place when the block ends, or is gone.

    Raises:
        NextStepError: when the folder exists, or cannot be written.
    """
    refuse_existing(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise NextStepError(f"{folder} cannot be written: {error.strerror}") from None
    try:
        yield scratch
        # mkdtemp and safetensors write for the owner alone; what is made here is for everybody.
        scratch.chmod(0o755)
        for file in scratch.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)
        scratch.replace(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
