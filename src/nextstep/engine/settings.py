"""What a request for pictures may say, and what each model recommends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextstep.engine.jacobi import DEFAULT_TOLERANCE, JacobiDecoding
from nextstep.errors import ModelFileError, NextStepError, printable
from nextstep.flow.guidance import GuidanceSettings
from nextstep.flow.multistep import Table, check_table, steps_of
from nextstep.flow.solvers import DEFAULT_NOISE_LEVEL, SolverSettings
from nextstep.utils import old_names
from nextstep.utils.files import read_json

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

    from nextstep.engine.decode import DecodeSettings

FILE = "generation.json"
MAX_SEED = 2**63
MAX_IMAGES = 100_000
MOST_FEATHER = 256
MAX_SIDE = 2**16
"""Pixels of a picture's side that files may speak of."""


@dataclass(frozen=True)
class GenerationSettings:
    """Everything beside prompt, seed and size that decides what a picture looks like.

    Attributes:
        guidance, image_guidance, schedule: see `GuidanceSettings`.
        solver, steps, final_token_steps, shift, noise_level, noise_scale, noise_from, noise_steps:
            see `SolverSettings`.
        table: of the solver `multistep`, whose steps are then the table's; others ignore it.
        token_norm: normalise sampled tokens.
        jacobi_window, jacobi_tolerance: see `JacobiDecoding`.
        reasoning: the model writes what the picture will show before it draws; see
            `chat.reasoning`.
        positive_prompt: put after every prompt, with a space.
        negative_prompt: text of the branches without the prompt.
        mask_feather: pixels over which an edit inside a mask grows from the mask's border inwards;
            0 changes all of the mask alike.

    Raises:
        ValueError: for a value that is out of range.
    """

    guidance: float = 7.5
    image_guidance: float = 1.0
    schedule: str = "constant"
    solver: str = "v1"
    steps: int = 28
    shift: float = 1.0
    noise_level: float = DEFAULT_NOISE_LEVEL
    noise_scale: float = 1.0
    table: Table = ()
    final_token_steps: int = 0
    token_norm: bool = True
    jacobi_window: int = 1
    jacobi_tolerance: float = DEFAULT_TOLERANCE
    reasoning: bool = False
    positive_prompt: str = ""
    negative_prompt: str = ""
    noise_from: int = 0
    noise_steps: int = 0
    mask_feather: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", tuple(self.table))  # JSON knows lists alone
        if self.table:
            check_table(self.table, steps_of(self.table))
        if not 0 <= self.mask_feather <= MOST_FEATHER:
            raise NextStepError(
                f"mask_feather must lie between 0 and {MOST_FEATHER} pixels, not "
                f"{self.mask_feather}"
            )
        # Building them checks every other value before any work is done.
        _ = self.solver_settings, self.guidance_settings, self._jacobi

    @property
    def solver_settings(self) -> SolverSettings:
        """The solver's part."""
        table = self.table if self.solver == "multistep" else ()
        return SolverSettings(
            self.solver, steps_of(table) if table else self.steps, self.shift, self.noise_level,
            self.noise_scale, table, self.final_token_steps, self.noise_from, self.noise_steps,
            self.guidance if self.solver == "flow_map" else 1.0,
        )  # fmt: skip

    @property
    def guidance_settings(self) -> GuidanceSettings:
        """The guidance part; a head that jumps has it folded in and needs no other branch."""
        if self.solver == "flow_map":
            return GuidanceSettings()
        return GuidanceSettings(self.guidance, self.image_guidance, self.schedule)

    @property
    def _jacobi(self) -> JacobiDecoding:
        return JacobiDecoding(self.jacobi_window, self.jacobi_tolerance)

    def recorded(self) -> dict[str, Any]:
        """All values as a picture's record keeps them: a table, and its steps, where it is used;
        a window of stochastic steps where there is one.
        """
        values = {**asdict(self), "steps": self.solver_settings.steps}
        if not self.solver_settings.table:
            del values["table"]
        if not self.noise_steps:
            del values["noise_from"], values["noise_steps"]
        if not self.mask_feather:
            del values["mask_feather"]
        return values

    def decoding(self, grid: tuple[int, int], has_images: bool) -> DecodeSettings:
        """What the decoding loop is told.

        Args:
            grid: (rows, columns) of image tokens.
            has_images: whether pictures stand before the one that is drawn.
        """
        from nextstep.engine.decode import DecodeSettings

        return DecodeSettings(
            grid,
            self.solver_settings,
            self.guidance_settings,
            self.token_norm,
            has_images,
            self._jacobi,
        )

    def with_values(self, **changes: Any) -> GenerationSettings:
        """A copy in which every value that is not None replaces the one here.

        Who asks `multistep` for other steps than its table's goes without the table.

        Raises:
            ValueError: for an unknown name, a value out of range, or a table given with other steps
                than its own.
        """
        known = {field.name for field in fields(self)}
        changes = old_names.renamed(changes, old_names.SETTINGS)
        for name in changes:
            if name not in known:
                raise ValueError(
                    f"unknown setting '{name}'; choose from {', '.join(sorted(known))}"
                )
        told = {k: v for k, v in changes.items() if v is not None}
        fitted = told.get("solver", self.solver) == "multistep" and self.table
        other = fitted and told.get("steps", steps_of(self.table)) != steps_of(self.table)
        if other and "table" not in told:
            told["table"] = ()
        made = replace(self, **told)
        own = made.solver_settings.steps
        if told.get("table") and "steps" in told and own != made.steps:
            raise ValueError(f"the table of the solver has {own} steps, not {made.steps}")
        return made


WHOLE = {"mask_feather": 0}
IGNORED: dict[str, dict[str, Any]] = {
    "generate": {"image_guidance": 1.0, **WHOLE},
    "edit": WHOLE,
    "story": {"reasoning": False, **WHOLE},
    "read": {field.name: None for field in fields(GenerationSettings)},
}
"""By task: settings that it does not use, with the value that changes nothing."""


def check_used(task: str, changes: Mapping[str, Any]) -> None:
    """Refuse settings that a task would ignore.

    Args:
        task: one of `IGNORED`; "edit" is one without a mask. Others use all settings.
        changes: what somebody asked for; None is nothing.

    Raises:
        NextStepError: for a setting without effect.
    """
    given = old_names.renamed(changes, old_names.SETTINGS)
    for name, neutral in IGNORED.get(task, {}).items():
        if given.get(name) not in (None, neutral):
            raise NextStepError(f"'{name}' has no effect on {USES[task]}; leave it out")


USES = {
    "generate": "a picture without source pictures",
    "edit": "an edit without a mask",
    "story": "a story, only on edits and single pictures",
    "read": "a text",
}


def generation_settings(raw: Mapping[str, Any], where: str) -> GenerationSettings:
    """Settings from plain values, such as JSON holds; fields that are not there have defaults.

    Args:
        raw: values by their names.
        where: what errors call them.

    Raises:
        NextStepError: for an unknown name, another type, or a value out of range.
    """
    from pydantic import ValidationError

    known = {field.name for field in fields(GenerationSettings)}
    try:
        raw = old_names.renamed(raw, old_names.SETTINGS)
    except ValueError as error:
        raise NextStepError(f"{where} are damaged: {error}") from None
    if unknown := set(raw) - known:
        raise NextStepError(f"{where} are damaged: {printable(min(map(str, unknown)))} is unknown")
    try:
        # As JSON, where a list stands for a tuple and no other type for another.
        text = json.dumps(dict(raw), allow_nan=False)
        made: GenerationSettings = _schema().validate_json(text, strict=True)
    except ValidationError as error:
        raise NextStepError(f"{where} are damaged: {first_fault(error)}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise NextStepError(f"{where} are damaged: {printable(str(error))}") from None
    return made


@cache
def _schema() -> TypeAdapter[GenerationSettings]:
    from pydantic import TypeAdapter

    return TypeAdapter(GenerationSettings)


def first_fault(error: ValidationError) -> str:
    """The first thing that a schema does not allow, in one line."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = printable(".".join(map(str, first["loc"])))[:100]
    return f"{place + ': ' if place else ''}{printable(first['msg'])}"


@dataclass(frozen=True)
class ModelDefaults:
    """What a model folder recommends.

    Attributes:
        height, width: of a picture in pixels.
        generate, edit: settings for the two tasks.
        reasoning_before_answers: the model writes a line about the pictures before it answers a
            question about them, see `text.reasoning`; the setting `reasoning` of a call decides
            before it.
    """

    height: int = 512
    width: int = 512
    generate: GenerationSettings = GenerationSettings()
    edit: GenerationSettings = GenerationSettings(image_guidance=2.0, steps=50, shift=3.2)
    reasoning_before_answers: bool = False

    @classmethod
    def of_folder(cls, folder: Path) -> ModelDefaults:
        """Read generation.json; released folders, which have none, get the published values.

        Raises:
            ModelFileError: when the file is damaged.
        """
        path = folder / FILE
        if not path.exists():
            return cls._released(folder)
        try:
            raw = old_names.renamed(read_json(path), old_names.DEFAULTS)
            size = raw["height"], raw["width"]
            if not all(type(side) is int and 0 < side <= MAX_SIDE for side in size):
                raise ValueError(f"its size is {size[0]!r:.50} times {size[1]!r:.50}")
            answers = raw.get("reasoning_before_answers", False)
            if type(answers) is not bool:
                raise ValueError(f"reasoning_before_answers is {answers!r:.50}, not true or false")
            return cls(
                *size,
                generation_settings(raw["generate"], "the settings of generate"),
                generation_settings(raw["edit"], "the settings of edit"),
                answers,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFileError(f"{path} is damaged: {error}") from None

    @classmethod
    def _released(cls, folder: Path) -> ModelDefaults:
        raw = read_json(folder / "config.json")
        if "genloss_width" in raw:
            # NextStep-1.1: inference.py of its release.
            sde = GenerationSettings(solver="sde", steps=30, token_norm=False)
            return cls(generate=sde, edit=sde.with_values(image_guidance=2.0))
        return cls()

    def to_dict(self) -> dict[str, Any]:
        """What generation.json holds."""
        return asdict(self)


def check_seed(seed: int) -> None:
    """Refuse a seed out of range.

    Raises:
        NextStepError: for one.
    """
    if not isinstance(seed, int):
        raise NextStepError(f"a seed is a whole number, not {seed!r}")
    if not 0 <= seed < MAX_SEED:
        raise NextStepError(f"a seed must lie between 0 and 2^63 - 1, not {seed}")


def check_count(num_images: int, batch_size: int = 1) -> None:
    """Refuse a number of pictures, or of pictures made together, that makes no sense.

    Raises:
        NextStepError: for one.
    """
    if not 1 <= num_images <= MAX_IMAGES:
        raise NextStepError(
            f"the number of pictures must be at least 1 and at most {MAX_IMAGES}, not {num_images}"
        )
    if batch_size < 1:
        raise NextStepError(f"batch size must be at least 1, not {batch_size}")
