"""Model folders: finding them and what they say about themselves, without reading weights.

Nothing here needs torch, so that bad arguments are refused before anything large is loaded.
"""

from __future__ import annotations

import re
from pathlib import Path

from nextstep.config import NextStepConfig
from nextstep.errors import ModelFileError
from nextstep.image.sizes import SizeLimits
from nextstep.vae.config import read_config

SHIPPED = {"nano": Path(__file__).parents[1] / "weights" / "nano"}
HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
HUB_FILES = (
    "*.json", "*.safetensors", "merges.txt", "vocabulary.webp", "checkpoint.pt",
    "vae/checkpoint.pt",
)  # fmt: skip
"""What is fetched from the hub: never code."""


def find_folder(model: str | Path) -> Path:
    """Folder of a model: a path, the name of a shipped model, or a hub id when a network is there.

    Raises:
        ModelFileError: when nothing of that name can be had.
    """
    if str(model) in SHIPPED:
        return SHIPPED[str(model)]
    try:
        path = Path(model).expanduser()
        if path.is_dir():
            return path
    except (OSError, RuntimeError) as error:
        raise ModelFileError(f"'{model}' cannot be a model folder: {error}") from None
    # A name whose first part lies here, or that says where it lies, is a path and no hub id.
    local = Path(str(model).split("/")[0]).exists()
    if isinstance(model, str) and HUB_ID.fullmatch(model) and not local:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            return Path(snapshot_download(model, allow_patterns=list(HUB_FILES)))
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if isinstance(error, LocalEntryNotFoundError):
                reason = "there is no connection to it"
            raise ModelFileError(
                f"'{model}' is no folder and could not be fetched from the hub: {reason}"
            ) from None
    raise ModelFileError(
        f"there is no model folder '{model}'; give a folder, a hub id, or {', '.join(SHIPPED)}"
    )


def vae_folder(folder: Path, config: NextStepConfig, vae: str | Path | None = None) -> Path:
    """Folder of the image tokenizer that belongs to a model.

    Raises:
        ModelFileError: when there is none.
    """
    if vae is not None:
        return find_folder(vae)
    named = config.vae_name_or_path
    for candidate in (folder / named if named else folder / "vae", folder / "vae"):
        if candidate.is_dir():
            return candidate
    if named and HUB_ID.fullmatch(named):
        return find_folder(named)
    raise ModelFileError(f"{folder} has no image tokenizer in vae/; name its folder with --vae")


def read_model_config(folder: Path) -> NextStepConfig:
    """The config of a model folder.

    Raises:
        ModelFileError: when the folder or its config.json is missing or unreadable.
    """
    if not folder.is_dir():
        raise ModelFileError(f"there is no model folder {folder}")
    if not (folder / "config.json").exists():
        raise ModelFileError(f"{folder} has no config.json")
    return NextStepConfig.from_file(folder / "config.json")


def size_limits(folder: Path, vae: str | Path | None = None) -> SizeLimits:
    """Which sizes of pictures a model folder can make.

    Args:
        folder: of the model.
        vae: folder of another image tokenizer.

    Raises:
        ModelFileError: when a config is missing or damaged.
    """
    config = read_model_config(folder)
    side = read_config(vae_folder(folder, config, vae)).token_pixels
    return limits_of(config, side)


def limits_of(config: NextStepConfig, token_pixels: int) -> SizeLimits:
    """Sizes of pictures of a model with an image tokenizer of this token side."""
    side = config.image_position_side * token_pixels or None
    return SizeLimits(token_pixels, side, config.max_position_embeddings - 1)


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
