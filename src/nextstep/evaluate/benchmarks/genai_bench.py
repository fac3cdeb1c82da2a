"""GenAI-Bench: the probability that a model answers Yes when asked whether a prompt is shown.

VQAScore (Lin et al. 2024, arXiv 2404.01291) on 1,600 prompts by skill (arXiv 2406.13743).

Legend: R rows of a bootstrap (the set itself and its resamples).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from nextstep.errors import NextStepError
from nextstep.evaluate.benchmarks.base import (
    Benchmark,
    Item,
    ItemOutput,
    Judges,
    Measurement,
    Role,
    column_mean,
    missing_pictures,
)
from nextstep.evaluate.benchmarks.files import read_any_json
from nextstep.evaluate.benchmarks.statistics import Means

QUESTION = 'Does this figure show "{prompt}"? Please answer yes or no.'
ANSWER = ("Yes",)
BASIC = ("attribute", "scene", "spatial relation", "action relation", "part relation")
ADVANCED = ("counting", "comparison", "differentiation", "negation", "universal")
PROMPTS, SKILLS = "genai_image.json", "genai_skills.json"
UNTAGGED = "untagged"


class GenAIBench(Benchmark):
    """1,600 prompts with the skills that they need."""

    name: ClassVar[str] = "genai-bench"
    title: ClassVar[str] = "GenAI-Bench"
    licence: ClassVar[str] = "Apache-2.0"
    source: ClassVar[str] = "huggingface.co/datasets/BaiqiL/GenAI-Bench-1600"
    data_help: ClassVar[str] = f"folder with {PROMPTS} and {SKILLS}"
    data_patterns: ClassVar[Sequence[str]] = (PROMPTS, SKILLS)
    roles: ClassVar[Mapping[str, Role]] = {
        "judge": Role(("clip-flant5-xxl",), ("yes_probability",))
    }
    primary: ClassVar[str] = "advanced"
    sizes: ClassVar[Mapping[str, int]] = {"basic": 722, "advanced": 871, UNTAGGED: 7}
    published: ClassVar[Mapping[str, Mapping[str, float]]] = {
        "NextStep-1": {"basic": 0.88, "advanced": 0.67},
        "NextStep-1 (Self-CoT)": {"basic": 0.90, "advanced": 0.74},
    }

    def read(self, data: Path) -> list[Item]:
        """See `Benchmark.read`."""
        prompts, skills = read_any_json(data / PROMPTS), read_any_json(data / SKILLS)
        if not isinstance(prompts, dict) or not isinstance(skills, dict):
            raise NextStepError(f"{PROMPTS} and {SKILLS} in {data} must hold JSON objects")
        tags: dict[str, list[str]] = {}
        for skill, numbers in skills.items():
            for number in numbers:
                tags.setdefault(f"{int(number):05d}", []).append(skill)
        items = []
        for key, record in prompts.items():
            if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
                raise NextStepError(f"{key} of {data / PROMPTS} has no prompt")
            own = tags.get(key, [])
            group = next((name for name in ("advanced", "basic") if name in own), UNTAGGED)
            items.append(Item(key, record["prompt"], group, {"skills": own}))
        return self.check_items(items, data)

    def files(self, item: Item, model: str) -> list[str]:
        """One folder a sample: the scorer knows one picture of a prompt in a model's folder."""
        return [f"{model}-{number}/{item.key}.jpeg" for number in range(self.repeats)]

    def lowest(self, item: Item) -> dict[str, float]:
        """See `Benchmark.lowest`."""
        return self._values(item, 0.0)

    def measure(self, item: Item, outputs: ItemOutput, judges: Judges) -> Measurement:
        """See `Benchmark.measure`."""
        measured = Measurement(failures=missing_pictures(outputs))
        question, judge = QUESTION.format(prompt=item.prompt), judges["judge"]
        likely = []
        for number, picture in enumerate(outputs.pictures):
            likely.append(0.0)
            if picture is not None:
                likely[-1] = measured.attempt(
                    f"picture {number}", 0.0, judge.yes_probability, question, [picture], ANSWER
                )
        measured.values = self._values(item, column_mean(likely))
        measured.evidence = {"probabilities": likely}
        return measured

    def metrics(self, means: Means) -> dict[str, np.ndarray]:
        """See `Benchmark.metrics`; overall leaves out prompts without a skill, as officially."""
        tagged = ("basic", "advanced")
        return {
            "advanced": means.of("advanced"),
            "basic": means.of("basic"),
            "overall": means.of("score", tagged),
            **{skill: means.of(skill) for skill in (*BASIC, *ADVANCED)},
        }

    def read_results(self, path: Path, items: Sequence[Item]) -> dict[str, Measurement]:
        """From the .pt file of evaluate.py: scores [prompts, 1, 1] of one sample, in order."""
        import torch

        try:
            scores = torch.load(path, map_location="cpu", weights_only=True)
            values = scores.float().reshape(len(scores), -1).mean(1).tolist()
        except Exception as error:  # pickles of anything raise what they like
            raise NextStepError(f"{path} cannot be read as scores: {error}") from None
        if len(values) != len(items):
            raise NextStepError(f"{path} has {len(values)} scores for {len(items)} prompts")
        return {
            item.key: Measurement(self._values(item, value), [], {"probabilities": [value]})
            for item, value in zip(items, values, strict=True)
        }

    def _values(self, item: Item, score: float) -> dict[str, float]:
        return {"score": score, **{skill: score for skill in item.record["skills"]}}
