"""Recipes by their names, and folders that they name: tokenizers, models."""

from __future__ import annotations

from pathlib import Path

from nextstep.errors import NextStepError
from nextstep.model.folder import SHIPPED

_INSIDE = Path(__file__).parents[1] / "recipes"
RECIPES = _INSIDE if _INSIDE.is_dir() else Path(__file__).parents[3] / "recipes"
"""The recipes that ship: inside an installed package, else at the root of the repository."""


def recipe_file(name: str | Path) -> Path:
    """A recipe's file: a path, or the name of one that ships, such as pretrain-nano.

    Raises:
        NextStepError: when a bare name is neither.
    """
    path = Path(name)
    if path.is_file() or path.suffix in (".yaml", ".yml") or path.name != str(path):
        return path
    shipped = RECIPES / f"{path}.yaml"
    if not shipped.is_file():
        known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.yaml")))
        raise NextStepError(f"there is no recipe '{name}'; give a YAML file, or one of {known}")
    return shipped


def local_folder(name: str) -> Path | None:
    """A folder here or a shipped model; None for what is not here (yet)."""
    if name in SHIPPED:
        return SHIPPED[name]
    path = Path(name).expanduser()
    return path if path.is_dir() else None


def tokenizer_folder(name: str) -> Path | None:
    """Folder of the image tokenizer in a tokenizer folder or model folder, if it is here."""
    folder = local_folder(name)
    if folder is None:
        return None
    inside = folder / "vae"
    return inside if inside.is_dir() else folder
