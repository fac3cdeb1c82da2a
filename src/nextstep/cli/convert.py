"""`nextstep convert`: one model folder layout into another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nextstep.cli import options as o


def command(
    source: Annotated[str, typer.Argument(help="Model folder, 'nano', or a hub id.")],
    target: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    layout: Annotated[str, typer.Option(help="'ours' or 'released'.")] = "ours",
    dtype: Annotated[
        str | None, typer.Option(help="fp32, bf16 or fp16; default as stored.")
    ] = None,
    vae: o.Vae = None,
    adapter: Annotated[
        Path | None, typer.Option(help="LoRA adapter to merge into the weights.")
    ] = None,
    adapter_scale: Annotated[float, typer.Option(help="LoRA scale; 0 disables it.")] = 1.0,
    head: Annotated[
        str | None,
        typer.Option(help="SOURCE is a plain Qwen2 language model: add this fresh flow head "
                          "(small, base, large), projectors and special tokens; needs --vae."),
    ] = None,
) -> None:  # fmt: skip
    """Read a model of any known layout and write it in ours or in the released one."""
    from nextstep.cli import checks
    from nextstep.config import HEADS
    from nextstep.errors import NextStepError
    from nextstep.model.folder import find_folder, read_model_config
    from nextstep.utils.files import refuse_existing

    if layout not in ("ours", "released"):
        raise ValueError(f"unknown layout '{layout}'; choose from ours, released")
    if head is not None and head not in HEADS:
        raise ValueError(f"unknown flow head '{head}'; choose from {', '.join(HEADS)}")
    refuse_existing(target)
    checks.check_dtype(dtype)
    if adapter is not None and not adapter.expanduser().is_dir():
        raise NextStepError(f"there is no adapter folder {adapter}")
    read_model_config(find_folder(source))
    from nextstep.engine import pretrained as folders

    chosen = checks.parse_dtype(dtype)
    if head is None:
        parts = folders.load_parts(source, chosen, vae=vae, keep_dtype=True)
    else:
        parts = folders.start_parts(source, head, vae, chosen)
    if adapter is not None:
        folders.merge_adapter_folder(parts, adapter, adapter_scale)
    folders.save_parts(parts, target, released=layout == "released")
    typer.echo(f"wrote {target} in {'our' if layout == 'ours' else 'the released'} layout")
