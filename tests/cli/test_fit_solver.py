"""`nextstep fit-solver`."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nextstep.engine.settings import FILE, ModelDefaults
from nextstep.utils.files import write_json
from tests.cli.test_commands import nextstep


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def test_a_folder_gets_its_solver(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "prompts.txt").write_text("a red apple\n\ntwo cats\n")
    target, before = tmp_path / "settings.json", ModelDefaults.of_folder(folder)
    call = (
        "fit-solver", folder, "--steps", 3, "--pictures", 12, "--iterations", 40, "--prompts",
        tmp_path / "prompts.txt", "--json",
    )  # fmt: skip
    status, said, _ = nextstep(capsys, *call, "-o", target)
    assert status == 0
    told = json.loads(said)
    assert (told["steps"], told["tokens"], told["written"]) == (3, 48, str(target))
    assert told["after"] < 0.9 * told["before"]
    assert ModelDefaults.of_folder(folder) == before
    assert nextstep(capsys, *call)[0] == 0
    made = ModelDefaults.of_folder(folder)
    assert (folder / FILE).read_bytes() == target.read_bytes()
    solver = made.generate.solver_settings
    assert (solver.name, solver.steps) == ("multistep", 3)
    assert made.generate.solver_settings.table == tuple(told["table"])
    assert made.edit == before.edit.with_values(table=made.generate.table)

    picture = tmp_path / "a.png"
    assert nextstep(capsys, "generate", "a red apple", "-m", folder, "-o", picture)[0] == 0
    _, said, _ = nextstep(capsys, "show-settings", picture, "--json")
    assert json.loads(said)["table"] == told["table"]
    # The record is enough, whatever the folder recommends later.
    assert nextstep(capsys, *call, "--seed", 1)[0] == 0
    assert ModelDefaults.of_folder(folder).generate.table != made.generate.table
    assert nextstep(capsys, "verify", picture, "-m", folder)[0] == 0


def test_a_picture_without_a_table_stays_so(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    picture, own = tmp_path / "a.png", ModelDefaults.of_folder(folder)
    draw = "generate", "a red apple", "-m", folder, "-o", picture, "--solver", "multistep"
    assert nextstep(capsys, *draw, "--steps", 3)[0] == 0
    table = (0.1, 0.9, 0.5, -0.5, 0.25)
    fitted = replace(own, generate=own.generate.with_values(table=table))
    write_json(folder / FILE, fitted.to_dict())
    assert nextstep(capsys, "verify", picture, "-m", folder)[0] == 0
    _, said, _ = nextstep(capsys, "show-settings", picture, "--json")
    assert "table" not in json.loads(said)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--steps", "1"], "2 to 16 steps"),
        (["--prompts", "EMPTY"], "holds no prompts"),
        (["--prompts", "BYTES"], "is no text"),
        (["--prompts", "MISSING"], "No such file"),
        (["-o", "NONE/settings.json"], "does not exist"),
        (["-o", "EMPTY/settings.json"], "does not exist"),
        (["--batch-size", "0"], "batch size must be at least 1"),
        (["--pictures", "4"], "16 tokens are too few"),
    ],
)
def test_bad_input(
    folder: Path, tmp_path: Path, options: list[str], why: str, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "EMPTY").write_text("\n")
    (tmp_path / "BYTES").write_bytes(b"\xff\xfe\x00")
    given = [str(tmp_path / one) if one[:2].isupper() else one for one in options]
    before = (folder / FILE).read_bytes()
    status, _, err = nextstep(capsys, "fit-solver", folder, *given)
    assert (status, len(err.strip().splitlines())) == (2, 1)
    assert why in err
    assert (folder / FILE).read_bytes() == before


def test_the_shipped_folder_is_left_alone(capsys: pytest.CaptureFixture) -> None:
    status, _, err = nextstep(capsys, "fit-solver", "nano", "--pictures", 1)
    assert (status, "no folder of yours" in err) == (2, True)
