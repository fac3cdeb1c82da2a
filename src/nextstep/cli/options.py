"""Options that several sub-commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

MODEL_PANEL, SAMPLING_PANEL, OUTPUT_PANEL = "Model", "Sampling", "Output"


def _option(help_: str, *names: str, panel: str = SAMPLING_PANEL) -> Any:
    return typer.Option(*names, help=help_, rich_help_panel=panel, show_default=False)


Model = Annotated[
    str, typer.Option("--model", "-m", help="Model folder, 'nano', or a hub id.",
                      rich_help_panel=MODEL_PANEL)
]  # fmt: skip
Vae = Annotated[Path | None, _option("Folder of another image tokenizer.", panel=MODEL_PANEL)]
Adapter = Annotated[
    Path | None, _option("Folder of a LoRA adapter, as written by finetune.", panel=MODEL_PANEL)
]
AdapterScale = Annotated[float, typer.Option(help="LoRA scale; 0 disables it.",
                                             rich_help_panel=MODEL_PANEL)]  # fmt: skip
Dtype = Annotated[
    str | None,
    _option(
        "auto, fp32, bf16 or fp16; auto, the default, chooses what this machine computes fast.",
        panel=MODEL_PANEL,
    ),
]
Quantize = Annotated[
    str | None,
    _option("Round weights to int8, int4 or bf16; int4/int8 rounds backbone and flow head "
            "separately.",
            panel=MODEL_PANEL),
]  # fmt: skip
Device = Annotated[str, typer.Option(help="Device: cpu, cuda, ...", rich_help_panel=MODEL_PANEL)]
Size = Annotated[
    str | None, _option("WIDTHxHEIGHT in pixels, e.g. 128x96; nextstep info prints the limits.")
]
Height = Annotated[int | None, _option("In pixels, instead of --size.")]
Width = Annotated[int | None, _option("In pixels, instead of --size.")]
NumImages = Annotated[int, typer.Option("--num-images", "-n", help="Pictures per prompt.",
                                        rich_help_panel=SAMPLING_PANEL)]  # fmt: skip
Seed = Annotated[int, typer.Option(help="Seed of the noise; picture i depends only on the seed "
                                        "and i.",
                                   rich_help_panel=SAMPLING_PANEL)]  # fmt: skip
Guidance = Annotated[float | None, _option("Text guidance scale; 1 is none.")]
ImageGuidance = Annotated[float | None, _option("Source-picture guidance scale; 1 is none.")]
Schedule = Annotated[str | None, _option("Guidance schedule: constant, linear, linear-rising.")]
Solver = Annotated[
    str | None,
    _option(
        "Solver: v1, v1.1, sde, cps, ode, midpoint, heun, ab2, multistep or flow_map.", "--solver"
    ),
]
Steps = Annotated[int | None, _option("Solver steps per image token.")]
FinalTokenSteps = Annotated[
    int | None,
    _option("Solver steps of the last token; steps fall evenly from --steps to this number. 0 "
            "disables it.",
            "--final-token-steps"),
]  # fmt: skip
Shift = Annotated[float | None, _option("Time shift; above 1 spends more steps near noise.")]
NoiseLevel = Annotated[float | None, _option("Noise level of the solvers sde and cps, 0 to 1.")]
NoiseScale = Annotated[
    float | None, _option("Factor on all noise; below 1 pictures are smoother and less varied.")
]
JacobiWindow = Annotated[
    int | None,
    _option("Image tokens that one pass samples by Jacobi decoding; 1 samples one after another.",
            "--jacobi-window"),
]  # fmt: skip
JacobiTolerance = Annotated[
    float | None,
    _option("Largest distance between a token and its guess in Jacobi decoding.",
            "--jacobi-tolerance"),
]  # fmt: skip
Reasoning = Annotated[
    bool | None,
    _option(
        "The model writes what the picture will show before it draws it.",
        "--reasoning/--no-reasoning",
    ),
]
TokenNorm = Annotated[
    bool | None, _option("Normalise sampled tokens.", "--token-norm/--no-token-norm")
]
Positive = Annotated[str | None, _option("Text that is appended to every prompt.", "--positive")]
Negative = Annotated[
    str | None, _option("Negative prompt: text of the branches without the prompt.", "--negative")
]
BatchSize = Annotated[int, typer.Option(help="Pictures that are generated together.",
                                        rich_help_panel=SAMPLING_PANEL)]  # fmt: skip
MaxTokens = Annotated[int, typer.Option(min=1, help="Maximum number of text tokens to write.",
                                        rich_help_panel=SAMPLING_PANEL)]  # fmt: skip
Temperature = Annotated[float, typer.Option(min=0, help="Temperature of text sampling; 0 takes "
                                                        "the most likely token.",
                                            rich_help_panel=SAMPLING_PANEL)]  # fmt: skip
Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        help="PNG, JPEG or WebP file, chosen by its ending; several pictures get -0, -1 ...",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace files that nextstep did not make, too.",
                 rich_help_panel=OUTPUT_PANEL),
]  # fmt: skip
Server = Annotated[
    str | None, _option("Use the service at this address (nextstep serve) instead of loading a "
                        "model.", panel=MODEL_PANEL)
]  # fmt: skip
ApiKey = Annotated[
    str | None, typer.Option(help="API key of the service.", envvar="NEXTSTEP_API_KEY",
                             rich_help_panel=MODEL_PANEL, show_default=False)
]  # fmt: skip
Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON instead of text.",
                                    rich_help_panel=OUTPUT_PANEL)]  # fmt: skip
