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
    assert (out / "worst.png").exists()
    assert len(list((out / "images").rglob("*.png"))) == 4
    # Everything is answered already, so the second time only judges.
    status, said, _ = nextstep(capsys, *ask, "-o", out, "--compare", out, "--json")
    assert status == 0
    again = json.loads(said)
    assert again["tasks"] == told["tasks"]
    assert again["differences"]["all"]["mean"] == 0.0


def test_the_three_commands_are_what_the_one_does(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    one, three = tmp_path / "one", tmp_path / "three"
    plan = ("-m", tiny_folder, "-t", "single", "-t", "read_count", "--split", "seen", "-n", 2)
    assert nextstep(capsys, "eval", "world", *plan, "-o", one, "--json")[0] == 0
    status, said, _ = nextstep(capsys, "eval", "world", "generate", *plan, "-o", three)
    assert status == 0
    assert "4 items in" in said
    status, said, _ = nextstep(capsys, "eval", "world", "score", three, "--json")
    assert json.loads(said) == {
        "run": str(three), "scores": "world-scorer", "items": 4, "failures": 0,
    }  # fmt: skip
    status, said, _ = nextstep(capsys, "eval", "world", "report", three, "--compare", one)
    assert status == 0
    assert "| **all** |" in said
    cards = [json.loads((folder / "card.json").read_text()) for folder in (one, three)]
    assert {tuple(split) for split in cards[0]["tasks"].values()} == {("seen",)}
    for task, splits in cards[0]["tasks"].items():
        other = cards[1]["tasks"][task]["seen"]
        seconds = ("seconds", "seconds_per_picture")
        assert {k: v for k, v in splits["seen"].items() if k not in seconds} == {
            k: v for k, v in other.items() if k not in seconds
        }
    assert set(cards[1]["differences"]) == {"all", "single/seen", "read_count/seen"}
    pictures = sorted(path.relative_to(one) for path in one.rglob("images/**/*.png"))
    assert len(pictures) == 2
    assert all((one / name).read_bytes() == (three / name).read_bytes() for name in pictures)
    # The plan of a run can be given to another one.
    again = tmp_path / "again"
    status, said, _ = nextstep(
        capsys, "eval", "world", "generate", "--data", one / "set.json", "-m", tiny_folder,
        "-o", again, "--workers", 2, "--json",
    )  # fmt: skip
    assert status == 0
    assert (again / "set.json").read_bytes() == (one / "set.json").read_bytes()
    assert all((one / name).read_bytes() == (again / name).read_bytes() for name in pictures)


def test_another_model_is_asked_beside_the_first(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    status, said, _ = nextstep(
        capsys, "eval", "world", "-m", tiny_folder, "-t", "single", "--split", "seen", "-n", 2,
        "-o", tmp_path / "e", "--compare", tiny_folder, "--sheets", 1, "--json",
    )  # fmt: skip
    assert status == 0
    assert json.loads(said)["compared_with"] == str(tiny_folder)
    assert json.loads(said)["differences"]["all"] == {"mean": 0, "low": 0, "high": 0, "n": 2}
    assert (tmp_path / "e/other/manifest.json").exists()
    assert (tmp_path / "e/sheets/single-seen.png").exists()


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


def test_a_model_to_compare_with_is_looked_for_before_anything_is_drawn(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    status, _, err = nextstep(
        capsys, "eval", "world", "-m", tiny_folder, "-t", "single", "-n", 1, "-o", tmp_path / "e",
        "--compare", tmp_path / "gone",
    )  # fmt: skip
    assert status == 2 and "no model folder" in err
    assert not (tmp_path / "e").exists()
