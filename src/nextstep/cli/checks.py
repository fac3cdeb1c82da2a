"""Arguments of commands, refused before torch is loaded: a mistake costs no waiting."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextstep.errors import NextStepError

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "fp32", "bf16", "fp16")
SIZE = re.compile(r"([1-9]\d{0,4})(?:[xX]([1-9]\d{0,4}))?")


def check_drawing(
    folder: Path,
    vae: Path | None,
    sides: tuple[int | None, int | None],
    settings: dict[str, Any],
    *,
    edit: bool = False,
    seed: int = 0,
    count: int = 1,
    batch_size: int = 1,
) -> None:
    """Refuse what a model folder can never draw.

    Args:
        folder: of the model.
        vae: folder of another image tokenizer.
        sides: (height, width) in pixels; None is the model's own.
        settings: changed fields of `GenerationSettings`, None where not said.
        edit: whether pictures are given to be changed.
        seed, count, batch_size: as the commands take them.

    Raises:
        ValueError: saying what is out of range.
    """
    from nextstep.engine.settings import ModelDefaults, check_count, check_seed
    from nextstep.model.folder import size_limits

    check_seed(seed)
    check_count(count, batch_size)
    own = ModelDefaults.of_folder(folder)
    (own.edit if edit else own.generate).with_values(**settings)
    limits, (height, width) = size_limits(folder, vae), sides
    if height is not None or width is not None:
        # A side of an edit that is not given is its source's, which is a token's multiple.
        usual = (limits.token_pixels,) * 2 if edit else (own.height, own.width)
        limits.grid(usual[0] if height is None else height, usual[1] if width is None else width)


def parse_sides(
    size: str | None, height: int | None, width: int | None
) -> tuple[int | None, int | None]:
    """(height, width) of --size WIDTHxHEIGHT, or of --height and --width.

    Raises:
        NextStepError: when both are given, or the size reads otherwise.
    """
    if size is None:
        return height, width
    if height is not None or width is not None:
        raise NextStepError("give either --size, or --height and --width")
    found = SIZE.fullmatch(size.strip())
    if found is None:
        raise NextStepError(f"--size is WIDTHxHEIGHT in pixels, such as 128x96, not '{size}'")
    return int(found[2] or found[1]), int(found[1])


def check_dtype(name: str | None) -> None:
    """Refuse an unknown number format.

    Raises:
        NextStepError: for one.
    """
    if name is not None and name not in DTYPES:
        raise NextStepError(f"unknown dtype '{name}'; choose from {', '.join(DTYPES)}")


def check_device_name(name: str) -> None:
    """Refuse what is no name of a device.

    Raises:
        NextStepError: for one.
    """
    from nextstep.model.devices import KINDS

    kind, colon, number = name.partition(":")
    if kind not in KINDS or (colon and not number.isdecimal()):
        raise NextStepError(f"unknown device '{name}'; choose from {', '.join(KINDS)}")


def check_quantize(name: str | None) -> None:
    """Refuse an unknown format of rounded weights.

    Raises:
        NextStepError: for one.
    """
    from nextstep.kernels import formats

    if name is not None:
        formats(name)


def parse_dtype(name: str | None) -> torch.dtype | None:
    """A torch dtype by its short name; None for "auto", and where there is no name.

    Raises:
        NextStepError: for another name.
    """
    check_dtype(name)
    import torch

    known = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    return known.get(name or "auto")
