"""The programs of benchmarks/ run and print the figures that docs/benchmarks.md quotes."""

from __future__ import annotations

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
