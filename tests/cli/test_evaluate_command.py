"""`nextstep eval world`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_commands import nextstep


def test_a_model_is_scored_and_compared(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "eval"
    ask = ("eval", "world", "-m", tiny_folder, "-t", "single", "-t", "add", "--split", "seen",
           "-n", 2)  # fmt: skip
    status, said, _ = nextstep(capsys, *ask, "-o", out)
    assert status == 0
    assert "ceiling" in said
    told = json.loads((out / "card.json").read_text())
    assert set(told["tasks"]) == {"single", "add"}
    assert told["tasks"]["add"]["seen"]["n"] == 2
    assert told["model_hash"] and told["settings"]["generate"]["steps"] == 2
    assert (out / "failures.png").exists()
    assert len(list((out / "answers").rglob("*.png"))) == 4
    # Everything is answered already, so the second time only judges.
    status, said, _ = nextstep(capsys, *ask, "-o", out, "--compare", out, "--json")
    assert status == 0
    again = json.loads(said)
    assert again["tasks"] == told["tasks"]
    assert again["differences"]["all"]["mean"] == 0.0


def test_the_truth_is_scored_through_the_tokenizer(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for who, out in (("drawn", tmp_path / "drawn"), ("decoded", tmp_path / "decoded")):
        status, said, _ = nextstep(
            capsys, "eval", "world", "-m", tiny_folder, "-t", "read_count", "-n", 3, "-o", out,
            "--answers", who, "--json",
        )  # fmt: skip
        assert status == 0
        assert json.loads(said)["tasks"]["read_count"]["seen"]["mean"] == 1.0


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (("-t", "nothing"), "no task 'nothing'"),
        (("--split", "train"), "no test split 'train'"),
        (("--answers", "me"), "answers come from"),
    ],
)
def test_bad_wishes_are_named(
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    more: tuple[str, ...],
    why: str,
) -> None:
    status, _, err = nextstep(
        capsys, "eval", "world", "-m", tiny_folder, "-o", tmp_path / "e", *more
    )
    assert status == 2
    assert why in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "e").exists()
