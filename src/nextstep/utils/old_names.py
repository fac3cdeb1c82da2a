"""Names of earlier versions in files, bodies and commands, and what they are called now.

Pictures, states, model folders, rollouts, recipes, run folders and requests that use an old name
are read as if they used the new one. Nothing writes an old name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SETTINGS = {
    "lookahead": "jacobi_window",
    "tolerance": "jacobi_tolerance",
    "last_steps": "final_token_steps",
    "think": "reasoning",
}
"""Fields of `GenerationSettings`, and of the bodies and files that hold them."""

DEFAULTS = {"think_before_answers": "reasoning_before_answers"}
"""Of generation.json, beside its settings."""

RECORD = {**SETTINGS, "computed_by": "backend"}
"""What a picture records."""

OPTIONS = {
    "--lookahead": "--jacobi-window",
    "--tolerance": "--jacobi-tolerance",
    "--last-steps": "--final-token-steps",
    "--think": "--reasoning",
    "--no-think": "--no-reasoning",
}
"""Of the command."""


def renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Values under today's names.

    Args:
        values: by old or new names.
        names: old name -> new name; others stay as they are.

    Raises:
        ValueError: for a value that is given under both of its names.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        new = names.get(name, name)
        if new in found:
            old = next(key for key in values if names.get(key) == new)
            raise ValueError(f"'{old}' and '{new}' are the same; give one of them")
        found[new] = value
    return found
