"""Post-training on answers in words beside pictures: steps and micro-batches of either alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file

from nextstep.data.documents import Document
from nextstep.engine.engine import Engine
from nextstep.engine.pretrained import load_parts
from nextstep.engine.sequence import TextSequence
from nextstep.recipe.load import check_recipe
from nextstep.recipe.run import run_recipe
from nextstep.rollout import online
from nextstep.rollout.prompts import ListedPrompts, RolloutPrompt
from nextstep.rollout.reward_kinds import open_reward
from nextstep.rollout.rewards import Rewards
from nextstep.rollout.sampler import Sampler, SamplingOptions, make_rollouts
from nextstep.rollout.store import RolloutStore
from nextstep.text.sequence import IGNORE, Sequence
from tests.recipe.test_posttrain import QUICK, dpo, rl, rows, same, weights

REWARD = '''
def length(image, text, line, facts):
    """Answers that differ in length differ in worth; pictures differ by their first pixel."""
    return float(len(line) % 7 if image is None else image.getpixel((0, 0))[0] / 40)
'''


@pytest.fixture(scope="module", autouse=True)
def plain_answers() -> Iterator[None]:
    """A random model writes bytes that are no text; here it writes two letters, or ends."""
    kept = Sampler._answer

    def answer(self: Sampler, draft: Any) -> TextSequence:
        tokenizer, job = self.engine.text_tokenizer, kept(self, draft)
        letters = tokenizer.encode("q!")
        assert tokenizer.encode("q!!qq!q") == [letters[n] for n in (0, 1, 1, 0, 0, 1, 0)]
        every = range(self.engine.model.config.vocab_size)
        allowed = {*letters, tokenizer.ids.eos}
        return replace(job, forbidden=tuple(one for one in every if one not in allowed))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sampler, "_answer", answer)
        yield


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("reward") / "rewards.py"
    path.write_text(REWARD)
    return f"{path}:length"


@pytest.fixture(scope="module")
def mixed(reward: str, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rollouts of three questions about a picture and one drawing."""
    source = Image.new("RGB", (32, 32), "red")
    asked = [
        RolloutPrompt(f"q/{n}", f"<image>how many cats {n}?", (source,), draws=False)
        for n in range(3)
    ]
    prompts = ListedPrompts([*asked, RolloutPrompt("p/0", "two cats")], None)
    folder = tmp_path_factory.mktemp("mixed") / "rollouts"
    sampler = Sampler(Engine.of_parts(load_parts(tiny_folder)), SamplingOptions(4, settings=QUICK))
    rewards = Rewards([(open_reward("python", reward), 1.0)])
    make_rollouts(RolloutStore(folder, {"model": "tiny"}), prompts, sampler, rewards, 4)
    return folder


@pytest.mark.parametrize("safety", [0.0, 1.0])
def test_pairs_of_answers_are_preferred_beside_pictures(
    mixed: Path, tiny_folder: Path, tmp_path: Path, safety: float
) -> None:
    """With one pair a micro-batch, some hold no image token at all."""
    raw = dpo(mixed, tiny_folder, steps=8)
    raw["preference"] = {"beta": 100.0, "text": 0.5, "safety": safety, "levels": 2, "sft": 0.1}
    run_recipe(check_recipe(raw, "test"), tmp_path / "run", device="cpu")
    told = rows(tmp_path / "run")
    assert told[0]["text_dpo_loss"] == pytest.approx(0.6931, abs=1e-3)
    assert min(row["text_dpo_loss"] for row in told[4:]) < told[0]["text_dpo_loss"]
    raw["data"]["micro_batch_rows"] = 2
    run_recipe(check_recipe(raw, "test"), tmp_path / "together", device="cpu")
    for one, other in zip(told, rows(tmp_path / "together"), strict=True):
        assert one["text_dpo_loss"] == pytest.approx(other["text_dpo_loss"], rel=1e-3)


def test_best_answers_are_learned_as_examples(
    mixed: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    raw = dpo(mixed, tiny_folder, stage="sft", steps=3)
    del raw["preference"]
    raw["data"]["sources"][0] |= {"best": 1, "no_caption": 0.3}
    run_recipe(check_recipe(raw, "test"), tmp_path / "run", device="cpu")
    assert {"im_loss", "lm_loss"} <= {name for row in rows(tmp_path / "run") for name in row}


def asked_questions(reward: str, tiny: Path, method: str, tasks: list[str]) -> dict[str, Any]:
    """A recipe of rl on questions of the world, and perhaps drawings."""
    policy: dict[str, Any] = {"method": method, "text": 0.5, "levels": 2}
    world = {"name": "world", "options": {"edition": "core-48", "pixels": 32, "tasks": tasks}}
    raw = rl(Path("unused"), tiny, policy=policy)
    raw["data"] |= {"sources": [{"world": world, "kind": "image_text"}], "row_length": 128}
    raw["rollouts"] |= {"rewards": [{"kind": "python", "argument": reward}], "watch": []}
    return raw


@pytest.mark.parametrize("method", ["nft", "grpo"])
@pytest.mark.parametrize("tasks", [["read_count"], ["read_count", "single"]])
def test_questions_are_learned_online(
    reward: str, tiny_folder: Path, tmp_path: Path, method: str, tasks: list[str]
) -> None:
    raw = asked_questions(reward, tiny_folder, method, tasks)
    run_recipe(check_recipe(raw, "test"), tmp_path / "run", device="cpu")
    told = rows(tmp_path / "run")
    assert any(row.get("text_policy_loss") for row in told)
    begun = weights(tmp_path / "run")
    run_recipe(check_recipe({**raw, "seed": 6}, "test"), tmp_path / "other", device="cpu")
    assert not same(begun, weights(tmp_path / "other"))


def test_answers_that_read_otherwise_than_written_teach_nothing(
    reward: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of such samples alone leaves the weights as they are."""
    kept = online.weighed_document

    def unread(*given: Any) -> Document:
        document = kept(*given)
        sequence = document.sequence
        blank = Sequence(sequence.ids, [IGNORE] * len(sequence.ids), sequence.images)
        return replace(document, sequence=blank)

    monkeypatch.setattr(online, "weighed_document", unread)
    raw = asked_questions(reward, tiny_folder, "nft", ["read_count"])
    raw |= {"steps": 1, "optimizer": {"learning_rate": 2e-3, "weight_decay": 0.0}}
    run_recipe(check_recipe(raw, "test"), tmp_path / "run", device="cpu")
    assert same(weights(tmp_path / "run"), load_file(tiny_folder / "model.safetensors"))
