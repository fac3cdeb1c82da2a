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
TOKEN_PIXELS = 16
"""Side of the released image tokenizer's tokens."""
PLAIN = "language model without image parts"


def command(
    model: Annotated[
        str, typer.Argument(help="Model folder, hub id, or a named size such as 14b.")
    ] = "nano",
    words: Annotated[
        bool,
        typer.Option(
            "--words", help="Print the words that the model knows: names, styles and backgrounds."
        ),
    ] = False,
    processor: Annotated[
        bool,
        typer.Option(
            "--processor", help="Also print the number format that this machine computes in."
        ),
    ] = False,
    as_json: o.Json = False,
) -> None:
    """Show parameters, memory by number format, layout, picture sizes and settings; or its words.

    Example: nextstep info nano --words
    """
    if words:
        _say_words(model, as_json)
        return
    facts = describe(model)
    if processor:
        facts["processor"] = _processor(model, facts["parameters"]["total"])
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
    if "processor" in facts:
        typer.echo("on this processor")
        for name, value in facts["processor"].items():
            typer.echo(f"  {name:<26}{value}")
    if facts["size_limits"]:
        typer.echo(f"picture sizes (height x width): {facts['size_limits']}")
        typer.echo("  " + ", ".join(facts["sizes"]))
    if facts["settings"]:
        _say_settings(**facts["settings"])
    if facts["words"]:
        typer.echo(f"it draws {facts['words']} objects by name: nextstep info {model} --words")
    typer.echo(f"kernels: {facts['kernels']}")


def _say_settings(generate: dict[str, Any], edit: dict[str, Any]) -> None:
    """What pictures and edits are sampled with where a command names no other values."""
    typer.echo(f"{'settings unless given':<22}{'generate':>14}{'edit':>14}")
    for name, value in generate.items():
        typer.echo(f"  {name:<20}{value!s:>14}{edit[name]!s:>14}")


def _say_words(model: str, as_json: bool) -> None:
    """What a model draws by name."""
    from nextstep.errors import NextStepError
    from nextstep.model.folder import find_folder
    from nextstep.text.vocabulary import Vocabulary

    own = Vocabulary.of_folder(find_folder(model))
    if own is None:
        raise NextStepError(f"'{model}' has no list of words: it takes any prompt")
    if as_json:
        typer.echo(json.dumps(own.to_dict(), ensure_ascii=False))
        return
    typer.echo(f"{len(own.names)} names, with other words for them in brackets")
    for name, others in own.names.items():
        typer.echo(f"  {name}" + (f"  ({', '.join(others)})" if others else ""))
    typer.echo(f"styles: {', '.join(own.styles)}")
    typer.echo(f"backgrounds: {', '.join(own.colours)}")
    for example in (*own.examples, *own.edits):
        typer.echo(f"  for example: {example}")


def describe(model: str) -> dict[str, Any]:
    """Facts about a model folder or named size, without loading weights.

    Raises:
        ModelFileError: when there is neither.
    """
    from nextstep.config import SIZES, NextStepConfig
    from nextstep.kernels import targets
    from nextstep.model.folder import SHIPPED, find_folder, read_model_config

    if model in SIZES and model not in SHIPPED:
        config, layout, folder = NextStepConfig.named(model), "named size", None
    else:
        folder = find_folder(model)
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
        "sizes": _sizes(folder),
        "settings": _settings(folder),
        "kernels": targets.in_use(),
        **_told(config, folder),
    }  # fmt: skip


def _processor(model: str, numbers: int) -> dict[str, str]:
    """What this machine's processor computes in, and why."""
    from nextstep.config import SIZES
    from nextstep.engine.pretrained import automatic_dtype
    from nextstep.model.folder import SHIPPED, find_folder
    from nextstep.model.precision import DTYPES, explained, fastest
    from nextstep.model.quantization import LARGE

    fast = fastest("cpu")
    sampling = fast if numbers >= LARGE else "fp32"
    if model not in SIZES or model in SHIPPED:
        chosen = automatic_dtype(find_folder(model), "cpu")
        sampling = next(name for name, dtype in DTYPES.items() if dtype == chosen)
    return {"sampling (--dtype auto)": sampling, "training (precision: auto)": fast,
            "because": explained("cpu")}  # fmt: skip


def _told(config: NextStepConfig, folder: Path | None) -> dict[str, Any]:
    """Limits of sizes in words, and how many names the model knows."""
    from nextstep.model.folder import limits_of, size_limits
    from nextstep.text.vocabulary import Vocabulary

    if folder is None:
        return {"size_limits": str(limits_of(config, TOKEN_PIXELS)), "words": 0}
    if _layout(folder) == PLAIN:
        return {"size_limits": "", "words": 0}
    own = Vocabulary.of_folder(folder)
    return {"size_limits": str(size_limits(folder)), "words": len(own.names) if own else 0}


def _count(config: NextStepConfig, folder: Path | None) -> dict[str, int]:
    """Parameters of the model by part, their total, and those of its image tokenizer."""
    from nextstep.estimate.parameters import (
        autoencoder_parameters,
        language_model_parameters,
        model_parameters,
    )
    from nextstep.model.folder import vae_folder
    from nextstep.vae.config import AutoencoderConfig, read_config

    if folder is not None and _layout(folder) == PLAIN:
        total = language_model_parameters(config)
        return {"language model": total, "total": total}
    parts = model_parameters(config)
    shape = AutoencoderConfig() if folder is None else read_config(vae_folder(folder, config))
    return {**parts, "total": sum(parts.values()), "image tokenizer": autoencoder_parameters(shape)}


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


def _settings(folder: Path | None) -> dict[str, dict[str, Any]]:
    """The model's own settings of sampling by task; those that are tables or texts left out."""
    from nextstep.engine.settings import ModelDefaults

    if folder is None or _layout(folder) == PLAIN:
        return {}
    own = ModelDefaults.of_folder(folder)
    tasks = {"generate": own.generate.recorded(), "edit": own.edit.recorded()}
    hidden = ("table", "positive_prompt", "negative_prompt", "noise_from", "noise_steps")
    return {
        task: {name: value for name, value in values.items() if name not in hidden}
        for task, values in tasks.items()
    }


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
