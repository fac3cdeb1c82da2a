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

STATE = {"maker": "fingerprint"}
"""Of the description inside a picture state."""

RECORD = {**SETTINGS, "computed_by": "backend"}
"""What a picture records."""

RUNTIME = {"by": "backend"}
"""Of `RuntimeInfo`."""
RUNTIME_NOTE = "computing"
"""Where a service kept it."""

RECIPE = {
    "checkpointing": "activation_checkpointing",
    "data.rows_per_micro": "micro_batch_rows",
    "data.probabilities.caption_after": "caption_last_prob",
    "data.probabilities.drop_of_two": "drop_source_prob",
    "data.probabilities.drop_of_three": "drop_one_source_prob",
    "data.probabilities.first_of_three": "drop_first_source_prob",
}
"""Keys of recipes, by their path."""

OPTIONS = {
    "--lookahead": "--jacobi-window",
    "--tolerance": "--jacobi-tolerance",
    "--last-steps": "--final-token-steps",
    "--think": "--reasoning",
    "--no-think": "--no-reasoning",
    "--out": "--output",
    "--n": "--count",
}
"""Of the command."""


def renamed_recipe(raw: dict[str, Any]) -> None:
    """Put the keys of a recipe under today's names, in place.

    Raises:
        ValueError: for a key that is given under both of its names.
    """
    for path, new in RECIPE.items():
        *places, old = path.split(".")
        section: Any = raw
        for place in places:
            section = section.get(place) if isinstance(section, dict) else None
        if isinstance(section, dict) and old in section:
            if new in section:
                raise ValueError(f"{path}: is called '{new}' now, which is given too")
            section[new] = section.pop(old)


def renamed_key(path: str) -> str:
    """A recipe's key path under its name of today."""
    parent, _, _ = path.rpartition(".")
    new = RECIPE.get(path)
    return path if new is None else f"{parent}.{new}".lstrip(".")


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
