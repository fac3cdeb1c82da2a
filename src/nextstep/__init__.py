"""OpenNextStep: one causal transformer that reads and writes text and continuous image tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nextstep.version import __version__

if TYPE_CHECKING:
    from nextstep.config import NextStepConfig
    from nextstep.model.nextstep import NextStepModel
    from nextstep.pipeline import NextStepPipeline
    from nextstep.vae.tokenizer import ImageTokenizer

__all__ = [
    "ImageTokenizer",
    "NextStepConfig",
    "NextStepModel",
    "NextStepPipeline",
    "__version__",
]

_HOMES = {
    "ImageTokenizer": "nextstep.vae.tokenizer",
    "NextStepConfig": "nextstep.config",
    "NextStepModel": "nextstep.model.nextstep",
    "NextStepPipeline": "nextstep.pipeline",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: `import nextstep` alone costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'nextstep' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
