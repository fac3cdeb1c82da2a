"""Groups of options: every field is an option, and the command gets the group."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from typing import Annotated

import typer
from typer.testing import CliRunner

from nextstep.cli import edit, generate, predict, story
from nextstep.cli.groups import (
    EditOptions,
    GenerateOptions,
    ModelOptions,
    StoryOptions,
    with_groups,
)
from nextstep.engine.settings import GenerationSettings


@dataclass(frozen=True)
class Colour:
    red: Annotated[int, typer.Option(min=0, max=255)] = 1
    named: Annotated[str | None, typer.Option("--name", "-c")] = None


seen: list[tuple[str, Colour, bool]] = []


@with_groups
def paint(*, thing: Annotated[str, typer.Argument()], colour: Colour, twice: bool = False) -> None:
    """Paint a thing."""
    seen.append((thing, colour, twice))


def test_a_command_gets_its_group_from_options() -> None:
    app = typer.Typer()
    app.command()(paint)
    assert CliRunner().invoke(app, ["door", "--red", "9", "-c", "rust", "--twice"]).exit_code == 0
    assert CliRunner().invoke(app, ["door"]).exit_code == 0
    assert seen == [("door", Colour(9, "rust"), True), ("door", Colour(), False)]
    assert CliRunner().invoke(app, ["door", "--red", "256"]).exit_code == 2
    assert list(inspect.signature(paint).parameters) == ["thing", "red", "named", "twice"]
    assert "Paint a thing." in CliRunner().invoke(app, ["--help"]).stdout


def test_commands_that_draw_take_every_setting_that_they_use() -> None:
    settings = {field.name for field in fields(GenerationSettings)}
    # A table comes from a model's folder, windows of noise from training; only `edit` has masks.
    settings -= {"table", "noise_from", "noise_steps", "mask_feather"}
    model = {field.name for field in fields(ModelOptions)}
    for module, group, unused in (
        (generate, GenerateOptions, {"image_guidance"}), (edit, EditOptions, set()),
        (story, StoryOptions, {"reasoning"}), (predict, StoryOptions, {"reasoning"}),
    ):  # fmt: skip
        assert {field.name for field in fields(group)} == settings - unused
        assert set(inspect.signature(module.command).parameters) >= model | settings - unused
