"""`nextstep finetune`: teach a model from a folder of pictures."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from nextstep.cli import options as o
from nextstep.cli.groups import ModelOptions

DATA_PANEL, TRAINING_PANEL = "Data", "Training"
_option = partial(o.option, panel=TRAINING_PANEL)

Data = Annotated[
    Path, typer.Option("--data", help="Folder of pictures with captions, or of tar shards.")
]
Caption = Annotated[
    str | None,
    _option(
        "Caption template: {caption} is the text of the picture, {name} the words of the "
        "file name.",
        panel=DATA_PANEL,
    ),
]
Encoding = Annotated[
    str | None,
    _option("Encoding of captions in files, such as cp1252; default UTF-8.", panel=DATA_PANEL),
]
Edits = Annotated[
    bool,
    _option(
        "NAME.txt is an instruction, NAME-0 the source, NAME-1 the target.",
        "--edits",
        panel=DATA_PANEL,
    ),
]
Fit = Annotated[
    str | None,
    _option(
        "crop cuts pictures at the centre to the model's own shape; aspect keeps theirs. "
        "Default: aspect for edits and for models of many shapes, else crop.",
        panel=DATA_PANEL,
    ),
]
Full = Annotated[
    bool,
    _option("Train all weights instead of a LoRA adapter.", "--full/--lora"),
]
Steps = Annotated[
    int | None,
    _option("Training steps; default 50 uses of every picture, between 100 and 2000 steps."),
]
Minutes = Annotated[
    float | None,
    _option("Train for this many minutes instead of a number of steps."),
]
Batch = Annotated[
    int | None,
    _option("Samples per step; default at most 8.", "--batch-size", "--batch"),
]
LearningRate = Annotated[
    float | None,
    _option("Learning rate; the default depends on the width of the model."),
]
Alpha = Annotated[
    float | None,
    _option("LoRA alpha; default twice the rank."),
]
Dropout = Annotated[float, _option("Dropout on the input of the adapter.")]
Parts = Annotated[
    str,
    _option("Parts of the model that the adapter changes."),
]
DropText = Annotated[
    float,
    _option("Probability of training without the caption."),
]
ContextNoise = Annotated[
    float,
    _option("Noise on the image tokens of the context during training."),
]
Precision = Annotated[
    str,
    _option("auto, fp32 or bf16; auto chooses what the device computes faster."),
]
Prompts = Annotated[
    list[str] | None,
    _option(
        "Prompt that is drawn before, during and after training; repeat for several; default "
        "the captions of the first pictures.",
        "--prompt",
        "-p",
        panel=o.OUTPUT_PANEL,
    ),
]
Sheets = Annotated[
    int,
    _option("How often the prompts are drawn during training.", panel=o.OUTPUT_PANEL),
]
Tensorboard = Annotated[
    bool,
    _option("Write event files to OUTPUT/run/tensorboard.", "--tensorboard", panel=o.OUTPUT_PANEL),
]
Merge = Annotated[
    bool,
    _option(
        "Also write the whole model with the adapter merged into it.",
        "--merge",
        panel=o.OUTPUT_PANEL,
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
    rank: Annotated[int, _option("LoRA rank.")] = 16,
    alpha: Alpha = None,
    dropout: Dropout = 0.0,
    parts: Parts = "attention,mlp,head,projectors",
    drop_text: DropText = 0.0,
    context_noise: ContextNoise = 0.5,
    precision: Precision = "auto",
    seed: Annotated[int, _option("Seed of all random choices.")] = 0,
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
