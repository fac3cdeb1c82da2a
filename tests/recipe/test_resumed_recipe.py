"""What stands in a run's recipe.yaml when the run goes on with another recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nextstep.errors import NextStepError
from nextstep.recipe.run import run_recipe
from tests.recipe.test_run import recipe, shards  # noqa: F401


def test_the_recipe_of_a_run_is_the_one_that_it_went_on_with(
    shards: Path,  # noqa: F811
    tiny_folder: Path,
    tmp_path: Path,
) -> None:
    """A recipe that is refused, or adds nothing, leaves it alone; other values are told."""
    kept, run = tmp_path / "run" / "recipe.yaml", tmp_path / "run"
    run_recipe(recipe(shards, tiny_folder, steps=2), run, device="cpu")
    first = kept.read_bytes()
    run_recipe(recipe(shards, tiny_folder, steps=1), run, device="cpu")
    other = recipe(shards, tiny_folder, steps=3, model={"size": "nano"})
    with pytest.raises(NextStepError):
        run_recipe(other, run, device="cpu")
    assert kept.read_bytes() == first
    run_recipe(recipe(shards, tiny_folder, loss={"context_noise": 0.1}), run, device="cpu")
    told = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    (row,) = [line for line in told if line.get("event") == "recipe"]
    assert row["detail"] == "steps 2 -> 4; loss.context_noise 0.3 -> 0.1"
    assert b"context_noise: 0.1" in kept.read_bytes()
    kept.write_text("steps: [")
    run_recipe(recipe(shards, tiny_folder, steps=5), run, device="cpu")
    assert b"steps: 5" in kept.read_bytes()
