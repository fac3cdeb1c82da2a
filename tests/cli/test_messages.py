"""What commands say to somebody who uses them for the first time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import click
import pytest
import typer
from PIL import Image
from rich.text import Text
from typer.testing import CliRunner

from nextstep.cli import main as cli
from nextstep.cli import report
from nextstep.client import ServiceError
from nextstep.engine.results import GeneratedPicture, Progress
from nextstep.engine.settings import GenerationSettings, ModelDefaults
from nextstep.model.folder import find_folder
from tests.cli.test_commands import nextstep


def test_an_error_of_our_own_is_shown_without_its_class(capsys: pytest.CaptureFixture) -> None:
    def unreachable(model: str) -> None:
        raise ServiceError("the service is away")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nextstep.cli.info.describe", unreachable)
        assert nextstep(capsys, "info", "nano") == (
            1,
            "",
            "nextstep: failed: the service is away\n",
        )


def test_replay_asks_for_missing_sources_before_it_loads_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    settings = GenerationSettings().recorded()
    given = {"task": "edit", "prompt": "a", "seed": 0, "index": 0, "sources": ["0"]}
    made = {"height": 32, "width": 32, "model": "0", "dtype": "float32", "version": "0"}
    record = {**given, **made, **settings}
    path = tmp_path / "edit.png"
    GeneratedPicture(Image.new("RGB", (32, 32)), record).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nextstep.pipeline.NextStepPipeline.from_pretrained", lambda *_: 1 / 0)
        status, _, err = nextstep(capsys, "verify", path)
    assert status == 2
    assert "from 1 source picture, 0 were given; the command takes each with -i" in err


def test_lines_of_a_prompt_stay_in_their_column(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    record = {"prompt": "make it blue\na blue fox", "seed": 1, "version": "0"}
    path = tmp_path / "fox.png"
    GeneratedPicture(Image.new("RGB", (16, 16)), record).save(path)
    _, said, _ = nextstep(capsys, "show-settings", path)
    assert said == ("prompt   make it blue\n         a blue fox\nseed     1\nversion  0\n")


def test_info_shows_the_settings_that_commands_use(capsys: pytest.CaptureFixture) -> None:
    lines = nextstep(capsys, "info", "nano")[1].splitlines()
    shown = {line.split()[0]: line.split()[1:] for line in lines if len(line.split()) == 3}
    own = ModelDefaults.of_folder(find_folder("nano"))
    for name in ("guidance", "image_guidance", "solver", "steps", "reasoning"):
        values = [own.generate.recorded()[name], own.edit.recorded()[name]]
        assert shown[name] == [str(value) for value in values]


def test_nothing_is_drawn_of_bars_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture,
) -> None:
    with report.progress_bar(1, quiet=False) as told:
        assert told is not None
        told(Progress(3, 64, 0, 1, lambda: []))
    with report.counting("pieces", quiet=False) as count:
        count()
    assert capsys.readouterr() == ("", "")


def every_command(
    group: click.Group | None = None, before: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Each command below the group by its words."""
    group = group or cast("click.Group", typer.main.get_command(cli.command_line()))
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from every_command(command, (*before, name))
        else:
            yield (*before, name), command


def test_help_names_every_option_in_full_on_a_narrow_terminal() -> None:
    for words, command in every_command():
        asked = [*words, "--help"]
        shown = CliRunner().invoke(cli.command_line(), asked, env={"COLUMNS": "80"}).output
        assert "…" not in shown, words
        for option in command.params:
            assert isinstance(option, click.Argument) or max(option.opts, key=len) in shown


def test_help_keeps_words_in_brackets() -> None:
    for words, command in every_command():
        for told in [command.help, *(getattr(option, "help", None) for option in command.params)]:
            plain = (told or "").replace("\\[", "[")
            assert Text.from_markup(told or "").plain == plain, words


def test_settings_of_a_picture_are_said_for_people(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "a.png"
    assert nextstep(capsys, "generate", "a cat", "-o", out)[0] == 0
    lines = nextstep(capsys, "show-settings", out)[1].splitlines()
    shown = dict(line.split(maxsplit=1) for line in lines if not line.startswith(" "))
    assert "[" not in shown["table"] and shown["reasoning"] == "the line below the prompt"
    assert "negative_prompt" not in shown
    record = json.loads(nextstep(capsys, "show-settings", out, "--json")[1])
    assert len(record["table"]) == int(shown["table"].split()[0])


def test_a_mistyped_recipe_is_answered_with_the_nearest_names(
    capsys: pytest.CaptureFixture,
) -> None:
    status, _, said = nextstep(capsys, "train", "rl-nanu")
    assert status == 2 and "rl-nano" in said and "tokenizer-14b" not in said
