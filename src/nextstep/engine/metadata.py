"""What made a picture: recorded in it, read back from it; files written whole or not at all.

Legend: tokens [n, D] are hashed as fp32 bytes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from nextstep.engine.recorded import record_of_json
from nextstep.engine.settings import GenerationSettings
from nextstep.errors import NextStepError
from nextstep.image.encode import OWN, SOFTWARE, texts_inside
from nextstep.utils.files import FULL_DISK, check_plain, write_whole
from nextstep.version import __version__

if TYPE_CHECKING:
    from torch import Tensor

KEY = "nextstep"
"""PNG text chunk that holds the record as JSON."""


def record(
    *,
    prompt: str,
    seed: int,
    index: int,
    size: tuple[int, int],
    task: str,
    settings: GenerationSettings,
    model_hash: str,
    dtype: str,
    backend: str,
    sources: list[str],
    adapter: dict[str, Any] | None = None,
    quantize: str = "",
) -> dict[str, Any]:
    """Everything a picture depends on, as plain values; sources by a hash of their tokens."""
    return {
        "task": task,
        "prompt": prompt,
        "seed": seed,
        "index": index,
        "height": size[0],
        "width": size[1],
        **settings.recorded(),
        "model": model_hash,
        **(adapter or {}),
        "dtype": dtype,
        **({"quantize": quantize} if quantize else {}),
        "backend": backend,
        **({"sources": sources} if sources else {}),
        "version": __version__,
    }


def as_texts(settings: dict[str, Any]) -> dict[str, str]:
    """PNG text chunks: the whole record, and the prompt where other programs look for it."""
    return {
        KEY: json.dumps(settings, ensure_ascii=False),
        SOFTWARE: f"{OWN} {settings['version']}",
        "Description": settings["prompt"],
    }


def read_record(path: Path) -> dict[str, Any]:
    """The record inside a picture of ours.

    Raises:
        NextStepError: when the file is no picture, has no record, or a damaged one.
        FileNotFoundError: when there is no such file.
    """
    check_plain(path)
    if path.is_dir():
        raise NextStepError(f"{path} is not a picture file but a folder")
    try:
        with Image.open(path) as picture:
            picture.load()
            text = texts_inside(picture).get(KEY)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    except Exception as error:  # decoders of rare formats raise what they like
        raise NextStepError(f"{path} cannot be read as a picture: {error}") from None
    if not isinstance(text, str):
        raise NextStepError(f"{path} carries no NextStep settings")
    return record_of_json(text, f"the settings inside {path}")


def tensor_hash(values: Tensor) -> str:
    """16 hex digits of a tensor's values."""
    data = values.detach().float().cpu().contiguous().numpy().tobytes()
    return hashlib.sha256(data).hexdigest()[:16]


def write_file(path: Path, data: bytes) -> None:
    """Write beside `path`, then rename, so that no half-written file is ever seen.

    Raises:
        NextStepError: when the folder is missing or may not be written.
        OSError: when the disk is full.
    """
    folder = path.parent
    if not folder.is_dir():
        raise NextStepError(f"the folder {folder} does not exist")
    if path.is_dir():
        raise NextStepError(f"{path} is a folder, not a file to write")
    try:
        write_whole(path, data)
    except OSError as error:
        if error.errno in FULL_DISK:
            raise
        raise NextStepError(f"{path} cannot be written: {error.strerror}") from None
