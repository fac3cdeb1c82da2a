"""Folders that a recipe names: image tokenizers, text tokenizers, models."""

from __future__ import annotations

from pathlib import Path

from nextstep.model.pretrained import SHIPPED


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
