"""Options that several sub-commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

MODEL_PANEL, SAMPLING_PANEL, OUTPUT_PANEL = "Model", "Sampling", "Output"
WRITING_PANEL = "Writing"


def option(help_: str, *names: str, panel: str = SAMPLING_PANEL, **more: Any) -> Any:
    """An option whose help stands in a panel."""
    return typer.Option(*names, help=help_, rich_help_panel=panel, **more)


Model = Annotated[
    str, option("Model folder, 'nano', or a hub id.", "--model", "-m", panel=MODEL_PANEL)
]
Vae = Annotated[Path | None, option("Folder of another image tokenizer.", panel=MODEL_PANEL)]
Adapter = Annotated[
    Path | None, option("Folder of a LoRA adapter, as written by finetune.", panel=MODEL_PANEL)
]
AdapterScale = Annotated[float, option("LoRA scale; 0 disables it.", panel=MODEL_PANEL)]
Dtype = Annotated[
    str | None,
    option(
        "auto, fp32, bf16 or fp16; auto, the default, chooses what this machine computes fast.",
        panel=MODEL_PANEL,
    ),
]
Quantize = Annotated[
    str | None,
    option(
        "Round weights to int8, int4 or bf16; int4/int8 rounds backbone and flow head separately.",
        panel=MODEL_PANEL,
    ),
]
Device = Annotated[str, option("Device: cpu, cuda, ...", panel=MODEL_PANEL)]
Size = Annotated[
    str | None, option("WIDTHxHEIGHT in pixels, e.g. 128x96; nextstep info prints the limits.")
]
Height = Annotated[int | None, option("In pixels, instead of --size.")]
Width = Annotated[int | None, option("In pixels, instead of --size.")]
NumImages = Annotated[int, option("Pictures per prompt.", "--num-images", "-n")]
Seed = Annotated[int, option("Seed of the noise; picture i depends only on the seed and i.")]
Guidance = Annotated[float | None, option("Text guidance scale; 1 is none.")]
ImageGuidance = Annotated[float | None, option("Source-picture guidance scale; 1 is none.")]
Schedule = Annotated[str | None, option("Guidance schedule: constant, linear, linear-rising.")]
Solver = Annotated[
    str | None,
    option(
        "Solver: v1, v1.1, sde, cps, ode, midpoint, heun, ab2, multistep or flow_map.", "--solver"
    ),
]
Steps = Annotated[int | None, option("Solver steps per image token.")]
FinalTokenSteps = Annotated[
    int | None,
    option(
        "Solver steps of the last token; steps fall evenly from --steps to this number. 0 "
        "disables it.",
        "--final-token-steps",
    ),
]
Shift = Annotated[float | None, option("Time shift; above 1 spends more steps near noise.")]
NoiseLevel = Annotated[float | None, option("Noise level of the solvers sde and cps, 0 to 1.")]
NoiseScale = Annotated[
    float | None, option("Factor on all noise; below 1 pictures are smoother and less varied.")
]
JacobiWindow = Annotated[
    int | None,
    option(
        "Image tokens that one pass samples by Jacobi decoding; 1 samples one after another.",
        "--jacobi-window",
    ),
]
JacobiTolerance = Annotated[
    float | None,
    option(
        "Largest distance between a token and its guess in Jacobi decoding.", "--jacobi-tolerance"
    ),
]
Reasoning = Annotated[
    bool | None,
    option(
        "The model writes what the picture will show before it draws it.",
        "--reasoning/--no-reasoning",
    ),
]
TokenNorm = Annotated[
    bool | None, option("Normalise sampled tokens.", "--token-norm/--no-token-norm")
]
Positive = Annotated[str | None, option("Text that is appended to every prompt.", "--positive")]
Negative = Annotated[
    str | None, option("Negative prompt: text of the branches without the prompt.", "--negative")
]
BatchSize = Annotated[int, option("Pictures that are generated together.")]
MaxTokens = Annotated[
    int, option("Maximum number of text tokens to write.", min=1, panel=WRITING_PANEL)
]
Temperature = Annotated[
    float,
    option(
        "Temperature of text sampling; 0 takes the most likely token.", min=0, panel=WRITING_PANEL
    ),
]
Output = Annotated[
    Path,
    option(
        "PNG, JPEG or WebP file, chosen by its ending; several pictures get -0, -1 ...",
        "--output",
        "-o",
        panel=OUTPUT_PANEL,
    ),
]
Overwrite = Annotated[
    bool,
    option("Replace files that nextstep did not make, too.", "--overwrite", panel=OUTPUT_PANEL),
]
Server = Annotated[
    str | None,
    option(
        "Use the service at this address (nextstep serve) instead of loading a model.",
        panel=MODEL_PANEL,
    ),
]
ApiKey = Annotated[
    str | None, option("API key of the service.", envvar="NEXTSTEP_API_KEY", panel=MODEL_PANEL)
]
Json = Annotated[
    bool, option("Print one line of JSON instead of text.", "--json", panel=OUTPUT_PANEL)
]
