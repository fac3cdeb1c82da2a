"""Settings that a file carries: anybody may have written them, so one schema checks every reader.

Types are exact, numbers lie in the ranges that the program itself can make, texts are text. Fields
of newer versions are kept as they are.
"""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nextstep.engine.settings import (
    MAX_SEED,
    MAX_SIDE,
    GenerationSettings,
    first_fault,
    generation_settings,
)
from nextstep.errors import NextStepError
from nextstep.utils import old_names

MAX_TEXT = 2**20
MAX_THREADS = 1024
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Name = Annotated[str, Field(max_length=500)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Count = Annotated[int, Field(ge=0, le=2**31)]


class RecordedSettings(BaseModel):
    """What a picture's record may hold; see `metadata.record` for what it holds."""

    model_config = ConfigDict(extra="allow", strict=True)

    task: Name = ""
    prompt: Text = ""
    seed: Annotated[int, Field(ge=0, lt=MAX_SEED)] = 0
    index: Count = 0
    height: Side = 1
    width: Side = 1
    model: Name = ""
    adapter: Name = ""
    adapter_scale: Annotated[float, Field(ge=-1000, le=1000)] = 1.0
    dtype: Name = ""
    quantize: Name = ""
    backend: Name = ""
    sources: Annotated[list[Name], Field(max_length=1000)] = []
    version: Name = ""
    block_rows: Count = 0
    threads: Annotated[int, Field(ge=0, le=MAX_THREADS)] = 0
    mask: Name = ""
    origin: Text = ""
    rows_done: Count = 0


def record_of_json(text: str, where: str) -> dict[str, Any]:
    """The record in a JSON text, under today's names.

    Args:
        text: from a file.
        where: what errors call it.

    Raises:
        NextStepError: naming the field at fault.
    """
    try:
        loaded = json.loads(text)
    except (ValueError, RecursionError):
        raise NextStepError(f"{where} are damaged") from None
    try:
        if isinstance(loaded, dict):
            loaded = old_names.renamed(loaded, old_names.RECORD)
            # Under their old names values would be extra fields, which nothing checks.
            text = json.dumps(loaded)
        RecordedSettings.model_validate_json(text)
    except ValidationError as error:
        raise NextStepError(f"{where} are damaged: {first_fault(error)}") from None
    except ValueError as error:
        raise NextStepError(f"{where} are damaged: {error}") from None
    known = {field.name for field in fields(GenerationSettings)}
    generation_settings({k: v for k, v in loaded.items() if k in known}, where)
    record: dict[str, Any] = loaded
    return record
