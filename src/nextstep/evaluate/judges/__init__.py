"""Judges by name: `transformers:FOLDER`, `openai:MODEL@URL`, `ocr`."""

from __future__ import annotations

import os
from pathlib import Path

from nextstep.errors import NextStepError
from nextstep.evaluate.judges.protocol import Judge

FORMS = "transformers:FOLDER_OR_HUB_ID, openai:MODEL or openai:MODEL@BASE_URL, or ocr"
OPENAI_URL = "https://api.openai.com/v1"


def load_judge(
    spec: str,
    cache: Path | None = None,
    concurrency: int = 8,
    device: str = "cpu",
    dtype: str | None = None,
) -> Judge:
    """The judge that a specification names.

    The key of an endpoint is read from NEXTSTEP_JUDGE_KEY, else from OPENAI_API_KEY.

    Args:
        spec: see `FORMS`.
        cache: folder of an endpoint's answers.
        concurrency: requests to an endpoint at the same time.
        device, dtype: of a local model.

    Raises:
        NextStepError: when it names none, or that one cannot be loaded.
    """
    kind, _, rest = spec.partition(":")
    if kind == "transformers" and rest:
        import torch

        from nextstep.evaluate.judges.local import TransformersJudge

        return TransformersJudge(rest, device, getattr(torch, dtype) if dtype else None)
    if kind == "openai" and rest:
        from nextstep.evaluate.judges.openai import OpenAIJudge

        model, _, url = rest.partition("@")
        key = os.environ.get("NEXTSTEP_JUDGE_KEY") or os.environ.get("OPENAI_API_KEY")
        return OpenAIJudge(model, url or OPENAI_URL, key, cache, concurrency)
    if spec == "ocr":
        from nextstep.evaluate.judges.rapidocr import RapidOcrJudge

        return RapidOcrJudge()
    raise NextStepError(f"'{spec}' names no judge; choose from {FORMS}")
