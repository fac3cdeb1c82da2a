"""What a judge can be asked, whatever computes its answers.

Legend: N inputs, D size of an embedding, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from PIL import Image

from nextstep.errors import NextStepError

T = TypeVar("T")

YES = ("Yes", "yes")
ATTEMPTS = 3
"""How often a judge is asked again when its answer cannot be read."""


class UnreadableError(ValueError):
    """An answer that does not have the form that the rule needs. Counts as a failure."""


class RefusedError(RuntimeError):
    """The judge will not look at this picture or question. Counts as a failure."""


class UnavailableError(RuntimeError):
    """The judge cannot be reached. The item stays without a score; a later run goes on."""


@dataclass(frozen=True)
class ScoredBox:
    """An object that a detector found.

    Attributes:
        label: class name as the detector calls it.
        score: confidence, 0 to 1.
        box: left, top, right, bottom in pixels.
        mask: bool [H, W]; None from detectors that give boxes alone.
    """

    label: str
    score: float
    box: tuple[float, float, float, float]
    mask: np.ndarray | None = field(default=None, compare=False)


class Judge:
    """A judge without any ability; a backend overrides the methods for what it can do.

    Attributes:
        name: of the model, as a report prints it.
        concurrency: questions that are worth asking at the same time.
        deterministic: whether it answers the same question alike every time.
    """

    name: str = ""
    concurrency: int = 1
    deterministic: bool = False

    def ask(
        self,
        question: str,
        pictures: Sequence[Image.Image] = (),
        *,
        system: str = "",
        max_tokens: int = 512,
        attempt: int = 0,
    ) -> str:
        """The judge's answer in words.

        Args:
            question: text after the pictures.
            pictures: shown first, in order.
            system: instruction that stands before everything.
            max_tokens: of the answer.
            attempt: 0 for the first time; another number asks anew instead of from the cache.

        Raises:
            NextStepError: when this judge cannot answer in words, or is set up wrongly.
            RefusedError: when it will not answer this.
            UnavailableError: when it cannot be reached.
        """
        raise self._cannot("answer questions")

    def yes_probability(
        self, question: str, pictures: Sequence[Image.Image] = (), answers: Sequence[str] = YES
    ) -> float:
        """Probability that the first token of the answer begins one of `answers`.

        Raises:
            As `ask`.
        """
        raise self._cannot("give the probability of an answer")

    def detect(self, picture: Image.Image) -> list[ScoredBox]:
        """Objects in a picture, with every confidence; the rule chooses its own threshold.

        Raises:
            As `ask`.
        """
        raise self._cannot("detect objects")

    def embed(self, inputs: Sequence[Image.Image | str]) -> np.ndarray:
        """Embeddings [N, D] of length 1, of pictures or texts.

        Raises:
            As `ask`.
        """
        raise self._cannot("embed pictures")

    def _cannot(self, what: str) -> NextStepError:
        return NextStepError(f"the judge {self.name} cannot {what}; choose another one")


def ask_until_read(
    judge: Judge,
    question: str,
    pictures: Sequence[Image.Image],
    read: Callable[[str], T],
    *,
    system: str = "",
    max_tokens: int = 512,
) -> tuple[T, str]:
    """Ask, and ask again while the answer cannot be read.

    Args:
        judge: whom.
        question, pictures, system, max_tokens: as in `Judge.ask`.
        read: answer -> what the rule needs; raises `UnreadableError`.

    Returns:
        What was read, and the answer it was read from.

    Raises:
        UnreadableError: when no answer of `ATTEMPTS` could be read.
    """
    last = ""
    for attempt in range(1 if judge.deterministic else ATTEMPTS):
        last = judge.ask(question, pictures, system=system, max_tokens=max_tokens, attempt=attempt)
        try:
            return read(last), last
        except UnreadableError:
            continue
    raise UnreadableError(f"the answer cannot be read: {last[:120]!r}")
