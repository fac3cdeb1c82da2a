"""The studies by name."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from nextstep.errors import NextStepError

if TYPE_CHECKING:
    from nextstep.lab.study import Study

STUDIES: dict[str, str] = {
    "token-norm": "nextstep.lab.token_norm:TokenNorm",
    "head-size": "nextstep.lab.head_size:HeadSize",
    "context": "nextstep.lab.context:Context",
    "paradigms": "nextstep.lab.paradigms.study:Paradigms",
    "tokenizer": "nextstep.lab.tokenizer:Tokenizers",
    "small-sets": "nextstep.lab.small_sets:SmallSets",
    "scaling": "nextstep.lab.scaling:Scaling",
}
"""Name -> class."""


def study(name: str) -> Study:
    """The study of a name.

    Raises:
        NextStepError: when there is none.
    """
    if name not in STUDIES:
        raise NextStepError(f"the lab has no study '{name}'; choose from {', '.join(STUDIES)}")
    module, _, kind = STUDIES[name].partition(":")
    made: Study = getattr(importlib.import_module(module), kind)()
    return made
