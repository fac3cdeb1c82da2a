"""Reads the words in a picture with PP-OCR (package rapidocr, Apache-2.0): no language model."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from nextstep.errors import NextStepError
from nextstep.evaluate.judges.protocol import Judge


class RapidOcrJudge(Judge):
    """Answers every question about a picture with the words that stand in it.

    Args:
        side: smaller pictures are enlarged until their shorter side has this many pixels; the
            package's own value finds the smallest letters, a lower one is faster.

    Raises:
        NextStepError: when rapidocr is not installed.
    """

    deterministic = True

    def __init__(self, side: int = 736) -> None:
        try:
            import rapidocr
        except ImportError:
            raise NextStepError(
                "reading words needs rapidocr: pip install 'open-nextstep[eval]'"
            ) from None
        self.name = f"rapidocr {getattr(rapidocr, '__version__', '')}".strip()
        self._engine: Any = rapidocr.RapidOCR(
            params={
                "Global.log_level": "error",
                "Det.limit_side_len": side,
                # More threads only wait for one another on pictures this small.
                "EngineConfig.onnxruntime.intra_op_num_threads": 1,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )
        self._lock = threading.Lock()

    def ask(
        self,
        question: str,
        pictures: Sequence[Image.Image] = (),
        *,
        system: str = "",
        max_tokens: int = 512,
        attempt: int = 0,
    ) -> str:
        """The words of the pictures from top to bottom, a line each; "" when there are none."""
        lines: list[str] = []
        for picture in pictures:
            # OpenCV's order of colours, which the networks were trained with.
            array = np.ascontiguousarray(np.asarray(picture.convert("RGB"))[..., ::-1])
            with self._lock:
                found = self._engine(array)
            lines += [str(text) for text in (found.txts or ())]
        return "\n".join(lines)
