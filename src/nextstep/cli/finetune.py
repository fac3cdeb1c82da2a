"""`nextstep finetune`: teach a model from a folder of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nextstep.cli import options as o
from nextstep.cli.groups import ModelOptions

DATA_PANEL, TRAINING_PANEL = "Data", "Training"

Data = Annotated[
    Path, typer.Option("--data", help="Folder of pictures with captions, or of tar shards.")
]
Caption = Annotated[
    str | None,
    typer.Option(
        help="Caption template: {caption} is the text of the picture, {name} the words of the "
        "file name.",
        rich_help_panel=DATA_PANEL,
    ),
]
Encoding = Annotated[
    str | None,
    typer.Option(
        help="Encoding of captions in files, such as cp1252; default UTF-8.",
        rich_help_panel=DATA_PANEL,
    ),
]
Edits = Annotated[
    bool,
    typer.Option(
        "--edits",
        help="NAME.txt is an instruction, NAME-0 the source, NAME-1 the target.",
        rich_help_panel=DATA_PANEL,
    ),
]
Fit = Annotated[
    str | None,
    typer.Option(
        help="crop cuts pictures at the centre to the model's own shape; aspect keeps theirs. "
        "Default: aspect for edits and for models of many shapes, else crop.",
        rich_help_panel=DATA_PANEL,
        show_default=False,
    ),
]
Full = Annotated[
    bool,
    typer.Option(
        "--full/--lora",
        help="Train all weights instead of a LoRA adapter.",
        rich_help_panel=TRAINING_PANEL,
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        help="Training steps; default 50 uses of every picture, between 100 and 2000 steps.",
        rich_help_panel=TRAINING_PANEL,
    ),
]
Minutes = Annotated[
    float | None,
    typer.Option(
        help="Train for this many minutes instead of a number of steps.",
        rich_help_panel=TRAINING_PANEL,
    ),
]
Batch = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        "--batch",
        help="Samples per step; default at most 8.",
        rich_help_panel=TRAINING_PANEL,
    ),
]
LearningRate = Annotated[
    float | None,
    typer.Option(
        help="Learning rate; the default depends on the width of the model.",
        rich_help_panel=TRAINING_PANEL,
    ),
]
Alpha = Annotated[
    float | None,
    typer.Option(help="LoRA alpha; default twice the rank.", rich_help_panel=TRAINING_PANEL),
]
Dropout = Annotated[
    float, typer.Option(help="Dropout on the input of the adapter.", rich_help_panel=TRAINING_PANEL)
]
Parts = Annotated[
    str,
    typer.Option(
        help="Parts of the model that the adapter changes.", rich_help_panel=TRAINING_PANEL
    ),
]
DropText = Annotated[
    float,
    typer.Option(
        help="Probability of training without the caption.", rich_help_panel=TRAINING_PANEL
    ),
]
ContextNoise = Annotated[
    float,
    typer.Option(
        help="Noise on the image tokens of the context during training.",
        rich_help_panel=TRAINING_PANEL,
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        help="auto, fp32 or bf16; auto chooses what the device computes faster.",
        rich_help_panel=TRAINING_PANEL,
    ),
]
Prompts = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt",
        "-p",
        help="Prompt that is drawn before, during and after training; repeat for several; default "
        "the captions of the first pictures.",
        rich_help_panel=o.OUTPUT_PANEL,
    ),
]
Sheets = Annotated[
    int,
    typer.Option(
        help="How often the prompts are drawn during training.", rich_help_panel=o.OUTPUT_PANEL
    ),
]
Tensorboard = Annotated[
    bool,
    typer.Option(
        "--tensorboard",
        help="Write event files to OUTPUT/run/tensorboard.",
        rich_help_panel=o.OUTPUT_PANEL,
    ),
]
Merge = Annotated[
    bool,
    typer.Option(
        "--merge",
        help="Also write the whole model with the adapter merged into it.",
        rich_help_panel=o.OUTPUT_PANEL,
    ),
]


def command(
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the result.")],
    model: o.Model = "nano",
    vae: o.Vae = None,
    device: o.Device = "cpu",
    caption: Caption = None,
    edits: Edits = False,
    encoding: Encoding = None,
    fit: Fit = None,
    full: Full = False,
    steps: Steps = None,
    minutes: Minutes = None,
    batch: Batch = None,
    learning_rate: LearningRate = None,
    rank: Annotated[int, typer.Option(help="LoRA rank.", rich_help_panel=TRAINING_PANEL)] = 16,
    alpha: Alpha = None,
    dropout: Dropout = 0.0,
    parts: Parts = "attention,mlp,head,projectors",
    drop_text: DropText = 0.0,
    context_noise: ContextNoise = 0.0,
    precision: Precision = "auto",
    seed: Annotated[
        int, typer.Option(help="Seed of all random choices.", rich_help_panel=TRAINING_PANEL)
    ] = 0,
    prompts: Prompts = None,
    sheets: Sheets = 3,
    merge: Merge = False,
    tensorboard: Tensorboard = False,
    as_json: o.Json = False,
) -> None:
    """Fine-tune a model on a folder of captioned pictures: a style, an object or a skill.

    Example: nextstep finetune --data my-drawings -o my-style --prompt "a castle, my style"
    """
    import json
    from dataclasses import asdict

    from nextstep.errors import NextStepError
    from nextstep.finetune.settings import FinetuneSettings
    from nextstep.model.adapter_config import AdapterConfig
    from nextstep.recipe import host

    shape = AdapterConfig(rank, alpha, dropout, tuple(part.strip() for part in parts.split(",")))
    settings = FinetuneSettings(
        data, output, model, caption, edits, full, shape, steps, minutes, batch, learning_rate,
        drop_text, context_noise, tuple(prompts or ()), sheets, seed, merge,
        precision, tensorboard, encoding, fit,
    )  # fmt: skip
    ModelOptions(model, device=device, vae=vae).check()
    if not data.exists():
        raise NextStepError(f"there is no folder {data}")
    host.settle()
    from nextstep.finetune.run import finetune

    silent = lambda sentence: None  # noqa: E731
    done = finetune(settings, device, vae, silent if as_json else typer.echo, not as_json)
    if as_json:
        told = {n: str(v) if isinstance(v, Path) else v for n, v in asdict(done).items()}
        typer.echo(json.dumps(told))
        return
    if not done.finished:
        typer.echo(f"stopped after {done.steps} of {done.planned} steps; the same command goes on")
        return
    typer.echo(f"{done.steps} steps in {done.seconds / 60:.1f} minutes; look at {done.sheet}")
    if done.adapter:
        typer.echo(f'nextstep generate "..." --model {model} --adapter {done.adapter}')
    if done.model:
        typer.echo(f'nextstep generate "..." --model {done.model}')
