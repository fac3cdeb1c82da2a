"""`nextstep info`: what a model is made of and what it needs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextstep.cli import options as o

if TYPE_CHECKING:
    from pathlib import Path

    from nextstep.config import NextStepConfig

BYTES = {"fp32": 4, "bf16": 2, "int8": 1, "int4": 0.5}
GIB = 2**30
PLAIN = "language model without image parts"


def command(
    model: Annotated[
        str, typer.Argument(help="Model folder, hub id, or a named size such as 14b.")
    ] = "nano",
    as_json: o.Json = False,
) -> None:
    """Show parameters, memory by number format, layout and picture sizes."""
    facts = describe(model)
    if as_json:
        typer.echo(json.dumps(facts))
        return
    typer.echo(f"{facts['model']}  ({facts['layout']})")
    for part, count in facts["parameters"].items():
        typer.echo(f"  {part:<20}{count:>18,}")
    typer.echo("memory of the weights, image tokenizer included")
    for name, size in facts["memory_gib"].items():
        typer.echo(f"  {name:<20}{size:>14.3f} GiB")
    typer.echo("shape")
    for name, value in facts["shape"].items():
        typer.echo(f"  {name:<26}{value!s:>12}")
    typer.echo("on this processor")
    for name, value in facts["processor"].items():
        typer.echo(f"  {name:<26}{value}")
    typer.echo("picture sizes (height x width)")
    typer.echo("  " + ", ".join(facts["sizes"]))


def describe(model: str) -> dict[str, Any]:
    """Facts about a model folder or named size, without loading weights.

    Raises:
        ModelFileError: when there is neither.
    """
    from nextstep.config import SIZES, NextStepConfig
    from nextstep.model import pretrained as folders
    from nextstep.model.checkpoints import read_model_config

    if model in SIZES and model not in folders.SHIPPED:
        config, layout, folder = NextStepConfig.named(model), "named size", None
    else:
        folder = folders.find_folder(model)
        config, layout = read_model_config(folder), _layout(folder)
    counts = _count(config, folder)
    return {
        "model": model,
        "layout": layout,
        "parameters": counts,
        "memory_gib": {name: (counts["total"] + counts.get("image tokenizer", 0)) * size / GIB
            for name, size in BYTES.items()},
        "shape": {
            name: getattr(config, name)
            for name in (
                "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                "head_dim", "intermediate_size", "vocab_size", "fm_head_dim", "fm_head_layers",
                "token_size", "max_position_embeddings",
            )
        },
        "processor": _processor(folder, counts["total"]),
        "sizes": _sizes(folder),
    }  # fmt: skip


def _processor(folder: Path | None, numbers: int) -> dict[str, str]:
    """What this machine's processor computes in, and why."""
    from nextstep.kernels.quantization import LARGE
    from nextstep.model.precision import DTYPES, explained, fastest
    from nextstep.model.pretrained import automatic_dtype

    fast = fastest("cpu")
    sampling = fast if numbers >= LARGE else "fp32"
    if folder is not None:
        chosen = automatic_dtype(folder, "cpu")
        sampling = next(name for name, dtype in DTYPES.items() if dtype == chosen)
    return {"sampling (--dtype auto)": sampling, "training (precision: auto)": fast,
            "because": explained("cpu")}  # fmt: skip


def _count(config: NextStepConfig, folder: Path | None) -> dict[str, int]:
    """Parameters of the model by part, their total, and those of its image tokenizer."""
    import torch

    from nextstep.model.nextstep import NextStepModel
    from nextstep.model.pretrained import vae_folder
    from nextstep.vae.autoencoder import Autoencoder, AutoencoderConfig
    from nextstep.vae.files import read_config

    with torch.device("meta"):
        network = NextStepModel(config)

    def size(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    image = {
        "flow head": size(network.image_head),
        "in-projector": size(network.image_in_projector),
        "out-projector": size(network.image_out_projector),
    }
    total = size(network)
    language_model = total - sum(image.values())
    if folder is not None and _layout(folder) == PLAIN:
        return {"language model": language_model, "total": language_model}
    shape = AutoencoderConfig()
    if folder is not None:
        shape = read_config(vae_folder(folder, config))
    with torch.device("meta"):
        tokenizer = size(Autoencoder(shape))
    parts = {"language model": language_model, **image}
    return {**parts, "total": total, "image tokenizer": tokenizer}


def _layout(folder: Path) -> str:
    from nextstep.utils.files import read_json

    raw = read_json(folder / "config.json")
    if "format" in raw:
        return "our layout"
    if "genloss_width" in raw:
        return "released layout, 1.1 names"
    if "fm_head_dim" in raw:
        return "released layout, v1 names"
    return PLAIN


def _sizes(folder: Path | None) -> list[str]:
    """The recommended size first, then the aspect buckets of about its area."""
    from nextstep.engine.settings import ModelDefaults
    from nextstep.image.sizes import scaled_buckets

    defaults = ModelDefaults.of_folder(folder) if folder else ModelDefaults()
    sizes = [f"{defaults.height}x{defaults.width}"]
    if defaults.height == defaults.width and defaults.height % 256 == 0:
        buckets = scaled_buckets(defaults.height)
        sizes += [f"{16 * rows}x{16 * columns}" for rows, columns in buckets if rows != columns]
    return sizes
