"""Judges as rewards, on fakes and on tiny random weights of the real architectures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from nextstep.errors import NextStepError
from nextstep.evaluate.judges.protocol import Judge
from nextstep.evaluate.judges.rewards import (
    MEAN,
    STD,
    EmbeddingReward,
    ImageReward,
    JudgeReward,
    OcrReward,
    scoring_mlp,
)
from nextstep.rollout.prompts import RolloutPrompt
from nextstep.rollout.reward_kinds import KINDS, open_reward
from nextstep.rollout.rewards import Candidate

PICTURE = Image.new("RGB", (32, 32), "red")


class FakeJudge(Judge):
    def ask(self, question, pictures=(), **_):
        return "OP EN"

    def yes_probability(self, question, pictures=(), answers=("Yes",)):
        assert question == "Is it two cats?" and pictures == [PICTURE]
        return 0.25

    def embed(self, inputs):
        return np.array([[0.6, 0.8]]) if isinstance(inputs[0], str) else np.array([[1.0, 0.0]])


def candidate(text: str, image=PICTURE, **facts) -> Candidate:
    return Candidate(RolloutPrompt("k", text, facts=facts), image)


def test_words_are_compared_letter_by_letter() -> None:
    reward = OcrReward(FakeJudge())
    asked = [
        candidate('a sign that says "open"'), candidate("a sign", words="OPUN"), candidate("a dog"),
        candidate('"open"', None), candidate('"x"'),
    ]  # fmt: skip
    assert [score.value for score in reward.score(asked)] == [1.0, 0.75, 0.0, 0.0, 0.0]


def test_cosines_and_probabilities_are_rewards() -> None:
    two = [candidate("two cats"), candidate("two cats", None)]
    assert [s.value for s in EmbeddingReward(FakeJudge()).score(two)] == [0.6, 0.0]
    judge = JudgeReward(FakeJudge(), "Is it {prompt}?")
    assert [s.value for s in judge.score(two)] == [0.25, 0.0]
    with pytest.raises(NextStepError, match="lacks"):
        JudgeReward(FakeJudge(), "Is it?")


def test_image_reward_is_a_standardised_score_of_the_looking_token() -> None:
    from transformers import BlipConfig, BlipForImageTextRetrieval

    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
            "num_attention_heads": 2}  # fmt: skip
    torch.manual_seed(0)
    config = BlipConfig(
        text_config={**size, "vocab_size": 50, "encoder_hidden_size": 16, "is_decoder": True},
        vision_config={**size, "image_size": 32, "patch_size": 16}, image_text_hidden_size=8,
    )  # fmt: skip
    model, scorer = BlipForImageTextRetrieval(config), scoring_mlp(16)

    class Given(dict):
        def to(self, device):
            return self

    def processor(images, text, **_):
        pixels = torch.from_numpy(np.asarray(images).copy()).permute(2, 0, 1)[None] / 255
        ids = torch.tensor([[len(word) for word in text.split()]])
        return Given(pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids))

    reward = ImageReward(model, processor, scorer)
    blue = Image.new("RGB", (32, 32), "blue")
    found = [s.value for s in reward.score([candidate("two cats"), candidate("two cats", blue)])]
    assert found[0] != found[1]
    with torch.no_grad():
        for linear in (layer for layer in scorer if hasattr(layer, "weight")):
            linear.weight.zero_()
            linear.bias.zero_()
    (zero,) = reward.score([candidate("two cats")])
    assert zero.value == pytest.approx(-MEAN / STD)


def test_every_kind_can_be_found() -> None:
    import importlib

    for place in KINDS.values():
        module, _, name = place.partition(":")
        assert callable(getattr(importlib.import_module(module), name).open)
    with pytest.raises(NextStepError):
        open_reward("imagereward", "/nowhere")
