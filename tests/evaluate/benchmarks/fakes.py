"""Judges for tests alone: they answer by a plan, or always the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from nextstep.evaluate.judges.protocol import YES, Judge, ScoredBox

Answer = str | BaseException


class FakeJudge(Judge):
    """Says what a test wants it to say.

    Args:
        answers: question -> answer, or one answer for all; an exception is raised instead.
        likely: what every probability is.
        found: what is in every picture.
        embedding: input -> vector.
    """

    def __init__(
        self,
        answers: Callable[[str], Answer] | Answer = "",
        likely: float = 0.5,
        found: Sequence[ScoredBox] = (),
        embedding: Callable[[Image.Image | str], Sequence[float]] | None = None,
        name: str = "fake",
    ) -> None:
        self.name, self.likely, self.found = name, likely, list(found)
        self.answers, self.embedding = answers, embedding
        self.asked: list[tuple[str, int]] = []

    def ask(
        self, question: str, pictures: Sequence[Image.Image] = (), *, system: str = "",
        max_tokens: int = 512, attempt: int = 0,
    ) -> str:  # fmt: skip
        self.asked.append((question, len(pictures)))
        answer = self.answers(question) if callable(self.answers) else self.answers
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def yes_probability(
        self, question: str, pictures: Sequence[Image.Image] = (), answers: Sequence[str] = YES
    ) -> float:
        self.asked.append((question, len(pictures)))
        return self.likely

    def detect(self, picture: Image.Image) -> list[ScoredBox]:
        return list(self.found)

    def embed(self, inputs: Sequence[Image.Image | str]) -> np.ndarray:
        make = self.embedding or (lambda _: (1.0, 0.0))
        vectors = np.array([make(one) for one in inputs], float)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


GOOD = {
    "wise": "Consistency: 2\nRealism: 1\nAesthetic Quality: 1",
    "wise-verified": "Score: 1",
    "imgedit": "fine\nPrompt Compliance: 4\nVisual Seamlessness: 4\nPhysical & Detail Fidelity: 3",
    "gedit": '{"score": [8, 7], "reasoning": "fine"}',
    "dpg-bench": "yes",
    "oneig": "Yes",
    "oneig-zh": "Yes",
    "unigenbench": '<analysis>["a", "b"]</analysis><score>[1, 0]</score>',
    "unigenbench-zh": '<analysis>["a", "b"]</analysis><score>[1, 0]</score>',
    "ueval": '{"criteria_met": true}',
}
"""An answer of the form that each benchmark wants."""
