"""Recipes of dpo and rl that really run: rollouts, rewards, kills, ranks, adapters."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nextstep.errors import NextStepError
from nextstep.pipeline import NextStepPipeline
from nextstep.recipe.load import RecipeError, check_recipe
from nextstep.recipe.run import run_recipe
from nextstep.rollout.pairs import Winners
from nextstep.rollout.store import read_rollouts
from nextstep.text.sequence import IGNORE
from nextstep.text.tokenizer import TextTokenizer
from nextstep.train.launch import launch
from nextstep.train.stages.rl import PolicyStage
from tests.recipe.conftest import QUICK
from tests.train.play import server


def rl(place: Path, tiny: Path, **changes: Any) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "stage": "rl", "steps": 3, "seed": 5, "model": {"folder": str(tiny)},
        "data": {
            "row_length": 64, "rows": 8, "micro_batch_rows": 4, "areas": [32],
            "sources": [{"prompts": str(place / "prompts.txt")}],
        },
        "rollouts": {
            "prompts": 2, "samples": 4, "settings": QUICK,
            "rewards": [{"kind": "python", "argument": f"{place / 'rewards.py'}:red"}],
            "watch": [{"kind": "python", "argument": f"{place / 'rewards.py'}:bright"}],
        },
        "policy": {"method": "nft", "levels": 2},
        "optimizer": {"learning_rate": 2e-3}, "precision": "fp32",
        "saving": {"minutes": 0, "steps": 1, "in_background": False}, "logging": {"every": 1},
    }  # fmt: skip
    return {**raw, **changes}


def rows(folder: Path, event: str = "") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line.get("event", "") == event]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


GRPO = {"method": "grpo", "window": 1, "slide_every": 1, "kl": 0.1, "token_share": 0.5}


@pytest.mark.parametrize("policy", [{"method": "nft", "kl": 0.1}, GRPO])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_run_of_rl_logs_rewards_and_ends_in_a_model(
    place: Path, tiny_folder: Path, tmp_path: Path, policy: dict[str, Any], ema: float
) -> None:
    made = check_recipe(rl(place, tiny_folder, policy=policy, ema=ema), "test")
    run_recipe(made, tmp_path / "run", device="cpu")
    told = rows(tmp_path / "run", "rollout")
    assert [row["step"] for row in told] == [1, 2, 3]
    assert {"reward", "spread", "accepted", "red", "watch/bright"} <= told[0].keys()
    figures = rows(tmp_path / "run")
    assert {"policy_loss", "kl"} <= figures[0].keys()
    if policy["method"] == "grpo":
        assert all(row["ratio"] == 1 for row in figures)
    groups = list(read_rollouts(tmp_path / "run"))
    assert len(groups) == 6 and all(len(group.samples) == 4 for group in groups)
    if policy["method"] == "grpo":
        windows = [group.settings.noise_from for group in groups[::2]]
        assert windows == [0, 1, 0]
    pipeline = NextStepPipeline.from_pretrained(tmp_path / "run" / "model")
    assert pipeline.generate("two cats", **QUICK)[0].image.size == (32, 32)
    assert not same(weights(tmp_path / "run"), load_file(tiny_folder / "model.safetensors"))


def die(folder: Path, raw: dict[str, Any], name: str, count: int) -> None:
    """Run until the `count`-th call of a function, which SIGKILL ends."""
    from nextstep.rollout import online

    torch.set_num_threads(1)
    owner: Any = {"write_shard": online, "losses": PolicyStage}[name]
    kept, calls = getattr(owner, name), 0

    def call(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return kept(*args, **named)

    setattr(owner, name, call)
    torch.set_num_threads(1)
    run_recipe(check_recipe(raw, "test"), folder, device="cpu")


def test_killed_runs_end_with_the_same_samples_and_weights(
    place: Path, tiny_folder: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Kills in the middle of a rollout and in the middle of a step of learning.

    All lives compute with one thread: sums of several threads differ in their last bits.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    raw = rl(place, tiny_folder, ema=0.9)
    run_recipe(check_recipe(raw, "test"), tmp_path / "whole", device="cpu")
    for name, count in (("write_shard", 2), ("losses", 3), ("write_shard", 2)):
        child = server().Process(target=die, args=(tmp_path / "killed", raw, name, count))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        assert not (tmp_path / "killed" / "model").exists()
    run_recipe(check_recipe(raw, "test"), tmp_path / "killed", device="cpu")
    one, two = (list(read_rollouts(tmp_path / name)) for name in ("whole", "killed"))
    assert [g.key for g in one] == [g.key for g in two]
    for group, other in zip(one, two, strict=True):
        assert group.policy == other.policy
        for sample, mate in zip(group.samples, other.samples, strict=True):
            assert sample.tokens is not None and mate.tokens is not None
            assert torch.equal(sample.tokens, mate.tokens)
            assert sample.rewards == mate.rewards
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


def test_a_rollout_serves_several_updates(
    place: Path, tiny_folder: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The ratio is 1 on the first one alone, and a kill between two of them changes nothing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    policy = {"method": "grpo", "clip": 0.2}
    raw = rl(place, tiny_folder, policy=policy, steps=4)
    raw["rollouts"] |= {"updates": 2}
    raw["saving"]["steps"] = 2
    run_recipe(check_recipe(raw, "test"), tmp_path / "whole", device="cpu")
    assert [row["step"] for row in rows(tmp_path / "whole", "rollout")] == [1, 3]
    assert len(list(read_rollouts(tmp_path / "whole"))) == 4
    ratios = [row["ratio"] for row in rows(tmp_path / "whole")]
    assert ratios[0] == ratios[2] == 1
    assert ratios[1] != 1 and ratios[3] != 1
    # Two micro-batches an update: the seventh is of the second update on the second rollout.
    child = server().Process(target=die, args=(tmp_path / "killed", raw, "losses", 7))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    run_recipe(check_recipe(raw, "test"), tmp_path / "killed", device="cpu")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


def test_the_policy_that_drew_is_the_old_one_of_all_updates(
    place: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    """NFT's average moves with every update, its old velocities do not."""
    raw = rl(place, tiny_folder, steps=2, ema=0.5)
    raw["rollouts"] |= {"updates": 2}
    raw["saving"]["steps"] = 2
    seen: list[dict[str, torch.Tensor] | None] = []
    kept = PolicyStage.observed_weights

    def watched(self: PolicyStage, average: Any) -> Any:
        found = kept(self, average)
        seen.append({name: value.clone() for name, value in found["old"].items()})
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PolicyStage, "observed_weights", watched)
        run_recipe(check_recipe(raw, "test"), tmp_path / "run", device="cpu")
    first, second = seen
    assert first is not None and second is not None and same(first, second)


def test_minibatches_share_out_a_rollout_and_text_alone_needs_no_picture(
    place: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    """Two updates see every sample once; with text alone nothing is read after what was written."""
    raw = rl(place, tiny_folder, steps=2, policy={"text": 1.0, "image": 0.0})
    raw["rollouts"] |= {"updates": 2, "minibatches": 2}
    raw["saving"]["steps"] = 2
    seen: list[str] = []
    lengths: list[int] = []
    kept = PolicyStage.batch_of

    def watched(self: PolicyStage, found: Any, *told: Any) -> Any:
        documents = [document for row in found for document, _ in row]
        seen.extend(document.key for document in documents)
        lengths.extend(document.image_tokens for document in documents)
        return kept(self, found, *told)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PolicyStage, "batch_of", watched)
        run_recipe(check_recipe(raw, "test"), tmp_path / "run", device="cpu")
    (first, second) = read_rollouts(tmp_path / "run")
    drawn = [f"{g.key}/{s.index}" for g in (first, second) for s in g.samples]
    assert sorted(seen) == sorted(drawn) and seen != drawn
    assert lengths == [0] * len(drawn)


@pytest.mark.parametrize("stage", ["dpo", "rl", "distill"])
def test_probes_measure_every_stage(
    place: Path, rollouts: Path, tiny_folder: Path, tmp_path: Path, stage: str
) -> None:
    raw = rl(place, tiny_folder) if stage == "rl" else dpo(rollouts, tiny_folder)
    raw |= {"steps": 2, "probes": {"every": 1, "tasks": ["single"], "items": 2}}
    raw["saving"]["steps"] = 0
    if stage == "distill":
        del raw["preference"]
        raw |= {"stage": stage, "distillation": {"teacher_steps": 8, "batch": 16}}
        raw["model"]["overrides"] = {"flow_map": True}
    run_recipe(check_recipe(raw, "test"), tmp_path / "run", device="cpu")
    told = rows(tmp_path / "run", "probe")
    assert [row["step"] for row in told] == [1, 2]
    assert all(row["flow_loss"] > 0 for row in told)


def in_process(raw: dict[str, Any], folder: Path) -> None:
    torch.set_num_threads(1)
    run_recipe(check_recipe(raw, "test"), folder, device="cpu")


@pytest.mark.parametrize("policy", [{"method": "nft", "levels": 2, "kl": 0.1}, GRPO])
def test_two_ranks_learn_as_one(
    place: Path, tiny_folder: Path, tmp_path: Path, policy: dict[str, Any]
) -> None:
    raw = rl(place, tiny_folder, policy=policy, steps=2)
    in_process(raw, tmp_path / "one")
    launch(in_process, (raw, tmp_path / "two"), 2, "fork")
    one, two = (rows(tmp_path / name) for name in ("one", "two"))
    for row, other in zip(one, two, strict=True):
        for name in ("policy_loss", "kl", "loss", "grad_norm"):
            assert row[name] == pytest.approx(other[name], rel=2e-3, abs=1e-5), name
    told = [[row["reward"] for row in rows(tmp_path / n, "rollout")] for n in ("one", "two")]
    assert told[0] == pytest.approx(told[1], abs=1e-4)


def dpo(rollouts: Path, tiny: Path, **changes: Any) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "stage": "dpo", "steps": 6, "seed": 5, "model": {"folder": str(tiny)},
        "data": {
            "row_length": 96, "rows": 2, "micro_batch_rows": 1, "areas": [32],
            "sources": [{"rollouts": str(rollouts)}],
        },
        "preference": {"beta": 100.0, "winners": 2, "levels": 2, "sft": 0.1},
        "optimizer": {"learning_rate": 2e-3}, "precision": "fp32",
        "saving": {"minutes": 0, "steps": 2}, "logging": {"every": 1},
    }  # fmt: skip
    return {**raw, **changes}


def test_a_run_of_dpo_prefers_winners(rollouts: Path, tiny_folder: Path, tmp_path: Path) -> None:
    raw = dpo(rollouts, tiny_folder, steps=12)
    run_recipe(check_recipe(raw, "test"), tmp_path / "run", device="cpu")
    told = rows(tmp_path / "run")
    first, last = told[0], told[-1]
    assert first["dpo_loss"] == pytest.approx(0.6931, abs=1e-3)
    assert first["winner_change"] == pytest.approx(0, abs=1e-5)
    assert first["loser_change"] == pytest.approx(0, abs=1e-5)
    assert last["dpo_loss"] < first["dpo_loss"]
    assert last["loser_change"] > last["winner_change"]
    assert NextStepPipeline.from_pretrained(tmp_path / "run" / "model").generate("two cats")


def test_runs_of_dpo_share_what_the_reference_says(
    rollouts: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    """Other settings of the loss read it, other weights have their own."""
    raw = dpo(rollouts, tiny_folder, steps=3)
    raw["preference"]["reference"] = str(tmp_path / "reference")
    run_recipe(check_recipe(raw, "test"), tmp_path / "one", device="cpu")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "reference").rglob("*.s*")}
    assert kept
    raw["preference"]["beta"] = 500.0
    run_recipe(check_recipe(raw, "test"), tmp_path / "two", device="cpu")
    found = {path: path.stat().st_mtime_ns for path in (tmp_path / "reference").rglob("*.s*")}
    assert found == kept
    raw["model"]["folder"] = str(tmp_path / "one" / "model")
    run_recipe(check_recipe(raw, "test"), tmp_path / "three", device="cpu")
    assert len(list((tmp_path / "reference").iterdir())) == 2
    assert not (tmp_path / "three" / "reference").exists()


def test_dpo_goes_on_to_the_same_weights(rollouts: Path, tiny_folder: Path, tmp_path: Path) -> None:
    raw = dpo(rollouts, tiny_folder)
    run_recipe(check_recipe(raw, "test"), tmp_path / "whole", device="cpu")
    run_recipe(check_recipe({**raw, "steps": 2}, "test"), tmp_path / "cut", device="cpu")
    run_recipe(check_recipe(raw, "test"), tmp_path / "cut", device="cpu")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_two_ranks_prefer_as_one(rollouts: Path, tiny_folder: Path, tmp_path: Path) -> None:
    raw = dpo(rollouts, tiny_folder, steps=4)
    in_process(raw, tmp_path / "one")
    launch(in_process, (raw, tmp_path / "two"), 2, "fork")
    for row, other in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        for name in ("dpo_loss", "sft_loss", "winner_change", "loser_change", "accuracy"):
            assert row[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5), name


def test_an_adapter_is_trained_and_folded(
    rollouts: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    raw = dpo(rollouts, tiny_folder, lora={"rank": 2, "parts": ["attention"]})
    run_recipe(check_recipe(raw, "test"), tmp_path / "run", device="cpu")
    before, after = load_file(tiny_folder / "model.safetensors"), weights(tmp_path / "run")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(".self_attn." in name for name in changed)
    assert rows(tmp_path / "run")[0]["winner_change"] == pytest.approx(0, abs=1e-5)


def test_the_best_samples_are_learned_as_examples(
    rollouts: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    raw = dpo(rollouts, tiny_folder, stage="sft", steps=2)
    del raw["preference"]
    raw["data"]["sources"][0] |= {"best": 2, "no_caption": 0.3}
    run_recipe(check_recipe(raw, "test"), tmp_path / "run", device="cpu")
    assert "im_loss" in rows(tmp_path / "run")[0]
    raw["data"]["sources"][0]["least_reward"] = 100.0
    winners = Winners(rollouts, TextTokenizer.from_folder(tiny_folder))
    document = winners.document(0, 1)
    assert set(document.sequence.labels) == {IGNORE}, "a prompt without a line has no text to learn"
    assert document.sequence.images[-1].learned
    with pytest.raises(NextStepError, match="no sample"):
        run_recipe(check_recipe(raw, "test"), tmp_path / "none", device="cpu")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rollouts": None}, "needs a 'rollouts' section"),
        ({"stage": "sft"}, "'policy' is for rl"),
        ({"policy": {"method": "grpo"}, "rollouts": {"settings": {"steps": 3, "solver": "ode"}}},
         "solver: cps"),
        ({"policy": {"method": "grpo"}, "rollouts": {"settings": {"steps": 3, "solver": "cps"}}},
         "guidance: 1.0"),
        ({"policy": {"method": "grpo"}, "rollouts": {"settings": {**QUICK, "image_guidance": 1.5}}},
         "leave out image_guidance"),
        ({"data": {"sources": [{"shards": "x", "kind": "text"}]}}, "reads world or prompts"),
        ({"rollouts": {"updates": 2, "settings": QUICK}}, "a multiple of rollouts.updates"),
        ({"rollouts": {"minibatches": 2, "settings": QUICK}}, "a multiple of minibatches"),
        ({"rollouts": {"minibatches": 8, "updates": 8, "settings": QUICK}}, "one a sample"),
    ],
)  # fmt: skip
def test_wrong_recipes_are_refused(
    place: Path, tiny_folder: Path, changes: dict[str, Any], told: str
) -> None:
    raw = rl(place, tiny_folder)
    for name, value in changes.items():
        raw[name] = {**raw[name], **value} if isinstance(value, dict) else value
    if "rollouts" in changes and isinstance(changes["rollouts"], dict):
        raw["rollouts"]["settings"] = changes["rollouts"]["settings"]
    with pytest.raises(RecipeError, match=told):
        check_recipe(raw, "test")
