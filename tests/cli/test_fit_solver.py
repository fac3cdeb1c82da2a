"""`nextstep fit-solver`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from nextstep.settings import FILE, ModelDefaults
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
        "fit-solver", folder, "--steps", 3, "--pictures", 6, "--iterations", 5, "--prompts",
        tmp_path / "prompts.txt", "--json",
    )  # fmt: skip
    status, said, _ = nextstep(capsys, *call, "-o", target)
    assert status == 0
    told = json.loads(said)
    assert (told["steps"], told["tokens"], told["written"]) == (3, 24, str(target))
    assert told["after"] <= told["before"] * 1.5
    assert ModelDefaults.of_folder(folder) == before
    assert nextstep(capsys, *call)[0] == 0
    made = ModelDefaults.of_folder(folder)
    assert (folder / FILE).read_bytes() == target.read_bytes()
    assert (made.generate.solver, made.generate.steps) == ("multistep", 3)
    assert made.generate.solver_settings.table == tuple(told["table"])
    assert made.edit == before.edit.with_values(table=made.generate.table)

    picture = tmp_path / "a.png"
    assert nextstep(capsys, "generate", "a red apple", "-m", folder, "-o", picture)[0] == 0
    _, said, _ = nextstep(capsys, "show-settings", picture, "--json")
    assert json.loads(said)["table"] == told["table"]
    assert nextstep(capsys, "verify", picture, "-m", folder)[0] == 0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--steps", "1"], "2 to 16 steps"),
        (["--prompts", "EMPTY"], "holds no prompts"),
        (["--prompts", "BYTES"], "is no text"),
        (["--prompts", "MISSING"], "No such file"),
        (["--pictures", "2", "-o", "NONE/settings.json"], "does not exist"),
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
