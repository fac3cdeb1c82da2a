"""Judges as rewards: words that can be read, dual encoders, ImageReward, questions to a judge.

ocr         1 - edit distance / length of what was asked for, by PP-OCR
clip        cosine of picture and text; PickScore (arXiv 2305.01569) and HPSv2 (arXiv
2306.09341) are of this form and differ in weights
imagereward BLIP with an MLP on the text token that has looked at the picture (arXiv
2304.05977), standardised as published
judge       probability of "Yes" to a question about picture and prompt
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nextstep.errors import NextStepError
from nextstep.evaluate.judges import load_judge
from nextstep.evaluate.judges.protocol import Judge
from nextstep.evaluate.text_match import edit_distance
from nextstep.rollout.rewards import Candidate, Score

QUOTED = re.compile(r"[\"“](.+?)[\"”]")
QUESTION = 'Does this picture show "{prompt}"? Please answer yes or no.'
SCORER, MEAN, STD = "scorer.safetensors", 0.16717362830052426, 1.0333394966054072
"""File of ImageReward's MLP; mean and standard deviation of its published scores."""


class OcrReward:
    """How well the words that were asked for can be read.

    They are the prompt's `words`, else what stands in quotes in it; without any every sample is
    worth 0, so the prompt teaches nothing.

    Args:
        judge: whose answer is the text of a picture.
    """

    name = "ocr"

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    @classmethod
    def open(cls, argument: str = "") -> OcrReward:
        """By name; there is nothing to read."""
        return cls(load_judge("ocr"))

    def score(self, candidates: Sequence[Candidate]) -> list[Score]:
        """Scores in the order of the candidates."""
        return [Score(self._one(candidate)) for candidate in candidates]

    def _one(self, candidate: Candidate) -> float:
        told = candidate.prompt.facts.get("words")
        wanted = _plain(str(told) if told else "".join(QUOTED.findall(candidate.prompt.text)))
        if candidate.image is None or not wanted:
            return 0.0
        seen = _plain(self.judge.ask("", [candidate.image]))
        return max(0.0, 1 - edit_distance(seen, wanted) / len(wanted))


def _plain(text: str) -> str:
    return "".join(text.lower().split())


class EmbeddingReward:
    """Cosine of picture and prompt by a dual encoder.

    Args:
        judge: that embeds both.
    """

    name = "clip"

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    @classmethod
    def open(cls, argument: str, device: str = "cpu") -> EmbeddingReward:
        """A model folder or hub id of transformers."""
        return cls(load_judge(f"transformers:{argument}", device=device))

    def score(self, candidates: Sequence[Candidate]) -> list[Score]:
        """Scores in the order of the candidates; text without a picture is worth 0."""
        found = []
        for one in candidates:
            if one.image is None:
                found.append(Score(0.0))
                continue
            picture, text = self.judge.embed([one.image]), self.judge.embed([one.prompt.text])
            found.append(Score(float((picture * text).sum())))
        return found


class JudgeReward:
    """How likely a judge says yes.

    Args:
        judge: that is asked.
        question: with `{prompt}` in it.
    """

    name = "judge"

    def __init__(self, judge: Judge, question: str = QUESTION) -> None:
        if "{prompt}" not in question:
            raise NextStepError("the question of the reward 'judge' lacks {prompt}")
        self.judge, self.question = judge, question

    @classmethod
    def open(
        cls, argument: str, question: str = QUESTION, cache: str = "", device: str = "cpu"
    ) -> JudgeReward:
        """A judge by its specification; see `load_judge`."""
        return cls(load_judge(argument, Path(cache) if cache else None, device=device), question)

    def score(self, candidates: Sequence[Candidate]) -> list[Score]:
        """Scores in the order of the candidates; text without a picture is worth 0."""
        found = []
        for one in candidates:
            asked = self.question.replace("{prompt}", one.prompt.text)
            shown = [one.image] if one.image is not None else []
            found.append(Score(self.judge.yes_probability(asked, shown) if shown else 0.0))
        return found


class ImageReward:
    """BLIP's text encoder looks at the picture; an MLP scores its first token.

    Args:
        model: a `BlipForImageTextRetrieval`, of which vision model and text encoder are used.
        processor: that belongs to it.
        scorer: the MLP.
    """

    name = "imagereward"

    def __init__(self, model: Any, processor: Any, scorer: nn.Module) -> None:
        self.model, self.processor, self.scorer = model.eval(), processor, scorer.eval()

    @classmethod
    def open(cls, argument: str, device: str = "cpu") -> ImageReward:
        """A folder with such a model, its processor and `scorer.safetensors`.

        Raises:
            NextStepError: when it cannot be read.
        """
        try:
            from safetensors.torch import load_file
            from transformers import AutoProcessor, BlipForImageTextRetrieval

            model: Any = BlipForImageTextRetrieval.from_pretrained(argument)
            scorer = scoring_mlp(model.config.text_config.hidden_size)
            scorer.load_state_dict(load_file(Path(argument) / SCORER))
            processor = AutoProcessor.from_pretrained(argument)
        except (ImportError, OSError, ValueError, KeyError, RuntimeError) as error:
            told = " ".join(str(error).split())[:200]
            raise NextStepError(f"the reward model {argument} cannot be read: {told}") from None
        return cls(model.to(device), processor, scorer.to(device))

    @torch.inference_mode()
    def score(self, candidates: Sequence[Candidate]) -> list[Score]:
        """Scores in the order of the candidates; text without a picture is worth 0."""
        return [Score(0.0 if one.image is None else self._one(one)) for one in candidates]

    def _one(self, one: Candidate) -> float:
        given = self.processor(
            images=one.image, text=one.prompt.text, truncation=True, max_length=35,
            return_tensors="pt",
        ).to(self.model.device)  # fmt: skip
        seen = self.model.vision_model(given["pixel_values"]).last_hidden_state
        every = torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device)
        read = self.model.text_encoder(
            given["input_ids"], attention_mask=given["attention_mask"],
            encoder_hidden_states=seen, encoder_attention_mask=every,
        ).last_hidden_state  # fmt: skip
        return (float(self.scorer(read[:, 0].float())[0, 0]) - MEAN) / STD


def scoring_mlp(size: int) -> nn.Sequential:
    """ImageReward's head: Linears to 1024, 128, 64, 16 and 1, without activations between them."""
    layers: list[nn.Module] = []
    for place, (before, after) in enumerate(pairwise([size, 1024, 128, 64, 16, 1])):
        layers.append(nn.Linear(before, after))
        if place < 3:
            layers.append(nn.Dropout(0.2 if place < 2 else 0.1))
    return nn.Sequential(*layers)
