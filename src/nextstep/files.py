"""JSON files in and out, with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nextstep.errors import ModelFileError


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
