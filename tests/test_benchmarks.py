"""The programs of benchmarks/ run and print the figures that docs/benchmarks.md quotes."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nextstep.model.folder import SHIPPED

FOLDER = Path(__file__).parents[1] / "benchmarks"
SMALL = {
    "generate.py": ["--size", "32", "--solver", "v1", "--steps", "2", "--repeats", "1"],
    "engine.py": ["--size", "32", "--batch", "1", "--repeats", "1"],
    "train_step.py": ["--rows", "2", "--row-length", "96", "--side", "4", "--repeats", "1"],
}


def _run(name: str, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, str(FOLDER / name), *options],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def _row(name: str, *options: str) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(_run(name, *SMALL[name], *options).splitlines()[-1])
    return row


def test_generate_tells_where_the_time_goes() -> None:
    row, direct = _row("generate.py"), _row("generate.py", "--direct")
    assert row["head_calls"] == direct["head_calls"] == 2
    assert not direct["kernels"]
    assert row["head_ms"] > 0
    assert direct["head_ms"] > 0
    parts = sum(row[f"{part}_ms"] for part in ("backbone", "head", "prompts", "rest"))
    assert parts == pytest.approx(row["token_ms"], abs=0.01)


def test_generate_measures_several_numbers_of_pictures_with_one_model() -> None:
    lines = _run("generate.py", *SMALL["generate.py"], "--json", "--batch", "1", "3").splitlines()
    one, three = map(json.loads, lines)
    assert (one["batch"], three["batch"]) == (1, 3)
    assert three["gflop"] == pytest.approx(3 * one["gflop"], rel=0.001)


def test_processors_compares_and_says_what_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "told.json"
    _run("processors.py", "--small", "--threads", "1", "--parts", "cold", "--json", str(told))
    row = json.loads(told.read_text())
    assert row["figures"]["cold start to the PNG, s"] == row["measured"]["cold"]["median_s"] > 0
    monkeypatch.syspath_prepend(FOLDER)
    processors = importlib.import_module("processors")
    found = processors.figures(
        {
            "0.5b torch": {"median_s": 6.0},
            "0.5b fp32 1": {"median_s": 2.0, "bound_s": 1.0},
            "0.5b fp32 16": {"median_s": 8.0},
        }
    )
    assert found["0.5b fp32, times as fast as torch"] == 3.0
    assert found["0.5b fp32, share of the bandwidth"] == 0.5
    assert found["0.5b fp32, 16 at once, of one's rate"] == 4.0
    assert "14B int4, s a token" not in found
    assert processors.held("nano picture, s", 0.2) and not processors.held("nano picture, s", 0.3)
    assert processors.held("0.5b fp32, times as fast as torch", 3.0)
    assert processors.held("0.5b torch fp32, s", 1.0) is None
    assert "failed" in processors.Runner({}).row("processors.py", "--target", "abacus")


def test_generate_runs_with_a_model_of_a_small_vocabulary(tiny_folder: Path) -> None:
    row = _row("generate.py", "--model", str(tiny_folder))
    assert row["token_ms"] > 0


def test_train_step_gives_a_share_of_the_peak() -> None:
    for model in ("nano", str(SHIPPED["nano"])):
        row = _row("train_step.py", "--json", "--model", model)
        assert row["share_of_peak"] > 0


def test_engine_compares_ways_of_sampling() -> None:
    assert "free" in _run("engine.py", *SMALL["engine.py"])


def test_the_others_can_be_imported() -> None:
    names = sorted(
        {path.stem for path in FOLDER.glob("*.py")} - {Path(name).stem for name in SMALL}
    )
    code = f"import sys; sys.path.insert(0, {str(FOLDER)!r}); import {', '.join(names)}"
    subprocess.run([sys.executable, "-c", code], check=True)
