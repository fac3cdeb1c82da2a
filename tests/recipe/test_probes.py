"""Figures of the emoji world during training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nextstep.engine.pretrained import load_parts
from nextstep.recipe import probes
from nextstep.recipe.probes import Probe, held
from nextstep.recipe.run_schema import Probes


def probe(**settings: object) -> tuple[Probe, torch.nn.Module]:
    parts = load_parts("nano")
    made = Probes(every=1, items=6, **settings)
    asked = made, parts.model.config, parts.image_tokenizer, parts.text_tokenizer
    return Probe(*asked, 128), parts.model


def test_the_gap_is_what_other_names_cost() -> None:
    made, model = probe(tasks=["single"])
    assert made(model)["name_gap"] > 0.02, "the shipped model reads the names of single objects"
    for item in made.items:
        object.__setattr__(item, "wrong", item.right)
    told = made(model)
    assert told["name_gap"] == 0
    assert 0 < told["flow_loss"] < 1


def test_only_names_differ_between_right_and_wrong() -> None:
    made, _ = probe(tasks=["drawing", "move"])
    for item in made.items:
        right, wrong = item.right.sequence, item.wrong.sequence
        assert [span.grid for span in right.images] == [span.grid for span in wrong.images]
        assert [span.region for span in right.images] == [span.region for span in wrong.images]
        assert right.ids != wrong.ids
        regions = [span.region is not None for span in right.images]
        assert regions == ([False, True] if "move" in item.right.key else [False])
    assert probes._swapped("two cats and a red apple", {"cat": "lion", "red apple": "sun"}) == (
        "two lions and a sun"
    )


def test_a_line_is_right_when_its_ids_are_the_likeliest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, model = probe(tasks=["two_objects"])
    batches = list(made._rows([item.right for item in made.items]))
    targets = [made.stage.batch_of(rows).text_targets for rows in batches]
    targets[-1][-1] += 1  # one id of the last line is another
    told, size = iter(targets), model.config.vocab_size

    def likeliest(hidden: torch.Tensor) -> torch.Tensor:
        ids = next(told)
        assert len(ids) == len(hidden)
        return torch.nn.functional.one_hot(ids, size).float()

    monkeypatch.setattr(model, "text_logits", likeliest)
    right, _ = made._measured(model, [item.right for item in made.items])
    assert right == [True] * 5 + [False]


def test_a_gate_holds_when_every_figure_is_reached() -> None:
    assert held({"lines_right": 0.95, "name_gap": 0.1}, {"lines_right": 0.95})
    assert not held({"lines_right": 0.95}, {"lines_right": 0.95, "name_gap": 0.05})
    with pytest.raises(ValueError, match="no edition 'core'"):
        Probes(every=1, edition="core")
    with pytest.raises(ValueError, match="no task 'x'"):
        Probes(every=1, tasks=["x"])


def test_figures_are_logged(tmp_path: Path) -> None:
    from nextstep.recipe.load import load_recipe
    from nextstep.recipe.run import run_recipe

    recipe = load_recipe(
        Path(__file__).parents[2] / "recipes" / "core-nano.yaml",
        ["steps=1", "schedule.kind=constant", "schedule.warmup=0", "schedule.decay=0",
         "compile=false", "precision=fp32", "probes.every=1", "probes.items=2", "data.rows=1",
         "data.micro_batch_rows=1", "data.window_rows=1"],
    )  # fmt: skip
    run_recipe(recipe, tmp_path / "run")
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    (told,) = [row for row in map(json.loads, lines) if row.get("event") == "probe"]
    assert told["step"] == 1
    assert 0 <= told["lines_right"] <= 1
    assert told["gate"] in ("held", "open")
