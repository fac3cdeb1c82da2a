"""Options that several commands share, as groups: a command takes each group as one value.

    @with_groups
    def command(prompt: str, model: ModelOptions, drawing: GenerateOptions) -> None: ...

gives the command an option for every field of the groups.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import typer

from nextstep.cli import checks
from nextstep.cli import options as o
from nextstep.errors import NextStepError

if TYPE_CHECKING:
    from nextstep.pipeline import NextStepPipeline


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each field of its groups, in their places.

    Args:
        command: whose parameters that are annotated with a dataclass are groups.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        options = {name: (hints[name], parameter.default)}
        if name in groups:
            own = get_type_hints(groups[name], include_extras=True)
            options = {one.name: (own[one.name], one.default) for one in fields(groups[name])}
        parameters += [
            inspect.Parameter(
                option, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
            )
            for option, (annotation, default) in options.items()
        ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{one.name: given.pop(one.name) for one in fields(kind)})
        command(**given)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


@dataclass(frozen=True)
class ModelOptions:
    """The options that name a model and how its weights are held."""

    model: o.Model = "nano"
    vae: o.Vae = None
    adapter: o.Adapter = None
    adapter_scale: o.AdapterScale = 1.0
    dtype: o.Dtype = None
    quantize: o.Quantize = None
    device: o.Device = "cpu"

    def check(self) -> Path:
        """The model's folder, once nothing that can be seen at once stands against loading it.

        Raises:
            NextStepError: for an unknown name, or a folder that is missing or has no config.
        """
        from nextstep.model.folder import find_folder, read_model_config, vae_folder
        from nextstep.vae.config import read_config

        checks.check_dtype(self.dtype)
        checks.check_device_name(self.device)
        checks.check_quantize(self.quantize)
        if self.adapter is None and self.adapter_scale != 1.0:
            raise NextStepError("--adapter-scale has no effect without --adapter")
        if self.adapter is not None and not self.adapter.expanduser().is_dir():
            raise NextStepError(f"there is no adapter folder {self.adapter}")
        folder = find_folder(self.model)
        read_config(vae_folder(folder, read_model_config(folder), self.vae))
        return folder

    def load(self) -> NextStepPipeline:
        """The pipeline that the options name.

        Raises:
            NextStepError: as `check`, or when the folder's files do not fit.
        """
        self.check()
        from nextstep.pipeline import NextStepPipeline

        return NextStepPipeline.from_pretrained(
            self.model, checks.parse_dtype(self.dtype), self.device, self.vae,
            self.adapter, self.adapter_scale, self.quantize,
        )  # fmt: skip

    @staticmethod
    def refuse_for_server(context: typer.Context) -> None:
        """Refuse options that a service, which has its own model and batches, would ignore.

        Args:
            context: of the running command.

        Raises:
            NextStepError: when one of them is given.
        """
        given = [
            "--" + name.replace("_", "-")
            for name in (*ModelOptions.__dataclass_fields__, "batch_size")
            if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
        ]
        if given:
            raise NextStepError(
                f"a service has its own model and batches: leave out {' and '.join(given)}"
            )


@dataclass(frozen=True)
class SizeOptions:
    """The size of pictures; None is the model's own, or that of an edit's first source."""

    size: o.Size = None
    height: o.Height = None
    width: o.Width = None

    @property
    def sides(self) -> tuple[int | None, int | None]:
        """(height, width) in pixels.

        Raises:
            NextStepError: when a size and sides are given, or the size reads otherwise.
        """
        return checks.parse_sides(self.size, self.height, self.width)


@dataclass(frozen=True)
class PictureOptions:
    """Settings of sampling that every picture has; None is the model's own."""

    guidance: o.Guidance = None
    schedule: o.Schedule = None
    solver: o.Solver = None
    steps: o.Steps = None
    final_token_steps: o.FinalTokenSteps = None
    shift: o.Shift = None
    noise_level: o.NoiseLevel = None
    noise_scale: o.NoiseScale = None
    token_norm: o.TokenNorm = None
    jacobi_window: o.JacobiWindow = None
    jacobi_tolerance: o.JacobiTolerance = None
    positive_prompt: o.Positive = None
    negative_prompt: o.Negative = None

    def settings(self) -> dict[str, Any]:
        """Fields of `GenerationSettings`."""
        return asdict(self)


@dataclass(frozen=True)
class StoryOptions(PictureOptions):
    """Of pictures between texts, which may have pictures before them."""

    image_guidance: o.ImageGuidance = None


@dataclass(frozen=True)
class GenerateOptions(PictureOptions):
    """Of pictures from text."""

    reasoning: o.Reasoning = None


@dataclass(frozen=True)
class EditOptions(GenerateOptions):
    """Of pictures from pictures."""

    image_guidance: o.ImageGuidance = None
