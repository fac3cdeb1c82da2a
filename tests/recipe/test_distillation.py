"""Distillation: one call and one branch; edits have a third branch on the teacher's paths."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from nextstep.engine.engine import Engine
from nextstep.engine.pretrained import load_parts
from nextstep.errors import NextStepError
from nextstep.flow.noise import KeyedNoise
from nextstep.pipeline import NextStepPipeline
from nextstep.recipe.load import check_recipe
from nextstep.recipe.run import run_recipe
from nextstep.rollout.prompts import RolloutPrompt
from nextstep.rollout.sampler import Sampler, SamplingOptions
from nextstep.rollout.store import RolloutStore
from nextstep.rollout.teacher import TeacherOptions, make_parts
from nextstep.train.stages.distill import teacher_path
from nextstep.vae.latents import token_norm
from tests.recipe.test_posttrain import dpo, same, weights


def test_edits_are_distilled_with_their_third_branch(tiny_folder: Path, tmp_path: Path) -> None:
    """Paths follow the three branches of the engine; given tokens have none."""
    parts = load_parts(tiny_folder)
    settings = {"solver": "midpoint", "steps": 24, "guidance": 2.0, "image_guidance": 1.5}
    sampler = Sampler(Engine.of_parts(parts), SamplingOptions(2, settings=settings))
    red = Image.new("RGB", (32, 32), "red")
    asked = ["<image>make it blue", "<image>make it\nred; change rows 2-2 columns 1-2; blue"]
    groups = sampler.draw([(RolloutPrompt(text, text, (red,)), 3) for text in asked])
    groups = [
        replace(g, samples=tuple(replace(s, rewards={"reward": 0.0}) for s in g.samples))
        for g in groups
    ]
    options = TeacherOptions([2.0], 1.5, 24)
    head = parts.model.image_head
    make_parts(parts.model, head, groups, parts.text_tokenizer, options, tmp_path)
    whole, cut = (load_file(path) for path in sorted((tmp_path / "teacher").iterdir()))
    assert whole["hidden"].shape[:2] == (8, 3) and cut["hidden"].shape[:2] == (4, 3)
    assert torch.allclose(whole["weights"], torch.tensor([2.0, -0.5, -0.5]))
    # The first token of a picture is the path's end from its own noise, all branches mixed alike.
    (sample, *_), group = groups[0].samples, groups[0]
    noise = KeyedNoise([(group.seed, sample.index)], 1, 64).token(0)[0]
    condition = parts.model.image_condition(whole["hidden"][:1].float())
    end = teacher_path(head, condition, whole["weights"][:1], noise, 24)[:, -1]
    assert sample.tokens is not None
    assert torch.allclose(token_norm(end)[0], sample.tokens[0], atol=2e-2)
    with pytest.raises(NextStepError, match="drawings"):
        make_parts(
            parts.model, head, groups, parts.text_tokenizer, TeacherOptions(), tmp_path / "none"
        )
    store = RolloutStore(tmp_path / "edits", {"model": "tiny"})
    store.write(0, groups)
    raw = dpo(tmp_path / "edits", tiny_folder, stage="distill", steps=2, ema=0.0)
    del raw["preference"]
    raw["model"]["overrides"] = {"flow_map": True}
    raw["distillation"] = {"image_guidance": 1.5, "teacher_steps": 8, "batch": 8}
    run_recipe(check_recipe(raw, "test"), tmp_path / "run", device="cpu")
    pipeline = NextStepPipeline.from_pretrained(tmp_path / "run" / "model")
    edit = pipeline.defaults.edit
    assert (edit.solver, edit.steps, edit.image_guidance) == ("flow_map", 1, 1.5)
    assert edit.decoding((2, 2), True).branches == ["conditional"]
    assert pipeline.edit(red, "make it blue")[0].settings["solver"] == "flow_map"


@pytest.mark.parametrize("method", ["regression", "meanflow"])
def test_a_distilled_model_draws_by_one_call_and_one_branch(
    rollouts: Path, tiny_folder: Path, tmp_path: Path, method: str
) -> None:
    raw = dpo(rollouts, tiny_folder, stage="distill", steps=4, ema=0.0)
    del raw["preference"]
    raw["model"]["overrides"] = {"flow_map": True}
    raw["distillation"] = {
        "method": method, "calls": [1, 2], "guidance": [2.0, 3.0], "teacher_steps": 8, "batch": 64,
    }  # fmt: skip
    run_recipe(check_recipe({**raw, "steps": 2}, "test"), tmp_path / "run", device="cpu")
    parts = sorted((tmp_path / "run" / "teacher").iterdir())
    times = [path.stat().st_mtime_ns for path in parts]
    run_recipe(check_recipe(raw, "test"), tmp_path / "run", device="cpu")
    assert [path.stat().st_mtime_ns for path in parts] == times
    run_recipe(check_recipe(raw, "test"), tmp_path / "whole", device="cpu")
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    pipeline = NextStepPipeline.from_pretrained(tmp_path / "run" / "model")
    own = pipeline.defaults.generate
    assert (own.solver, own.steps, own.guidance) == ("flow_map", 1, 2.0)
    assert own.decoding((2, 2), False).branches == ["conditional"]
    assert pipeline.generate("two cats")[0].settings["solver"] == "flow_map"
    before, after = load_file(tiny_folder / "model.safetensors"), weights(tmp_path / "run")
    kept = [name for name in before if not name.startswith("image_head.")]
    assert all(torch.equal(before[name], after[name]) for name in kept)
