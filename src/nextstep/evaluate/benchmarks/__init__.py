"""The benchmarks by name; each is imported when it is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from nextstep.errors import NextStepError

if TYPE_CHECKING:
    from nextstep.evaluate.benchmarks.base import Benchmark

BENCHMARKS = {
    "geneval": ("geneval", "GenEval"),
    "geneval2": ("geneval2", "GenEval2"),
    "genai-bench": ("genai_bench", "GenAIBench"),
    "dpg-bench": ("dpg_bench", "DPGBench"),
    "oneig": ("oneig", "OneIG"),
    "oneig-zh": ("oneig", "OneIGZh"),
    "wise": ("wise", "Wise"),
    "wise-verified": ("wise", "WiseVerified"),
    "gedit": ("gedit", "GEdit"),
    "imgedit": ("imgedit", "ImgEdit"),
    "unigenbench": ("unigenbench", "UniGenBench"),
    "unigenbench-zh": ("unigenbench", "UniGenBenchZh"),
    "ueval": ("ueval", "UEval"),
    "world": ("world", "World"),
}
"""Name -> (module, class)."""


def benchmark_class(name: str) -> type[Benchmark]:
    """The class of a benchmark.

    Raises:
        NextStepError: for an unknown name.
    """
    if name not in BENCHMARKS:
        raise NextStepError(f"there is no benchmark '{name}'; choose from {', '.join(BENCHMARKS)}")
    module, cls = BENCHMARKS[name]
    found: type[Benchmark] = getattr(importlib.import_module(f"{__name__}.{module}"), cls)
    return found
