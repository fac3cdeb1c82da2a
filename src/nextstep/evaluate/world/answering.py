"""Letting somebody answer: a model with its default settings, or the truth itself.

The truth, drawn or as the image tokenizer gives it back, is the best that any model could do; what
the scorer says about it is the ceiling of every score.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from nextstep.evaluate.world.questions import Question
from nextstep.image.pictures import to_bytes, to_pixels
from nextstep.world.examples import Said, Shown
from nextstep.world.scenes import render
from nextstep.world.tasks import TASKS

if TYPE_CHECKING:
    from nextstep.image.tokenizer import ImageTokenizer
    from nextstep.pipeline import NextStepPipeline

MOST_WORDS = 64
"""Text tokens of an answer at most."""

Output = str | np.ndarray
"""Text, or a picture as uint8 [H, W, 3]."""


@dataclass(frozen=True)
class Answer:
    """What was made for one question.

    Attributes:
        outputs: one for each part that was asked for.
        seconds: of wall time, its share where several questions were answered together.
    """

    outputs: tuple[Output, ...]
    seconds: float


class Answerer(Protocol):
    """Somebody who answers questions."""

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """Answers to questions of one task, in their order."""


class Truth:
    """Answers everything right.

    Args:
        size: side of the pictures in pixels.
        tokenizer: through which its pictures go; None leaves them as drawn.
    """

    def __init__(self, size: int, tokenizer: ImageTokenizer | None = None) -> None:
        self.size, self.tokenizer = size, tokenizer

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """The true answers."""
        begun = time.monotonic()
        made = [[self._true(one, place) for place in one.asked] for one in questions]
        share = (time.monotonic() - begun) / max(1, len(questions))
        return [Answer(tuple(outputs), share) for outputs in made]

    def _true(self, question: Question, place: int) -> Output:
        part = question.example.parts[place]
        if isinstance(part, Said):
            return part.answers[0]
        picture = render(part.scene, self.size)
        return picture if self.tokenizer is None else round_trip(picture, self.tokenizer)


class Model:
    """A model that answers with its default settings.

    Captions and edits are answered in batches; what follows step by step is a conversation.

    Args:
        pipeline: model and tokenizers.
        size: side of the pictures in pixels.
        batch_size: pictures made together.
    """

    def __init__(self, pipeline: NextStepPipeline, size: int, batch_size: int = 8) -> None:
        self.pipeline, self.size, self.batch_size = pipeline, size, batch_size

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """The model's answers."""
        group = TASKS[questions[0].task].group if questions else "drawing"
        together = group == "drawing" or (group == "editing" and questions[0].task != "turns")
        if not together:
            return [self._step_by_step(one) for one in questions]
        begun = time.monotonic()
        pictures = self._drawn(questions) if group == "drawing" else self._edited(questions)
        share = (time.monotonic() - begun) / max(1, len(questions))
        return [Answer((picture,), share) for picture in pictures]

    def _drawn(self, questions: Sequence[Question]) -> list[np.ndarray]:
        made = self.pipeline.generate(
            [one.example.prompt(one.asked[0]) for one in questions],
            height=self.size,
            width=self.size,
            seed=[one.seed for one in questions],
            batch_size=self.batch_size,
        )
        return [np.asarray(one.image) for one in made]

    def _edited(self, questions: Sequence[Question]) -> list[np.ndarray]:
        sources, instructions = [], []
        for one in questions:
            before = one.example.parts[: one.asked[0]]
            sources.append([self._shown(part) for part in before if isinstance(part, Shown)])
            instructions.append("".join(part.text for part in before if isinstance(part, Said)))
        made = self.pipeline.edit_each(
            sources,
            instructions,
            height=self.size,
            width=self.size,
            seed=[one.seed for one in questions],
            batch_size=self.batch_size,
        )
        return [np.asarray(one.image) for one in made]

    def _step_by_step(self, question: Question) -> Answer:
        begun = time.monotonic()
        turns = self.pipeline.conversation(question.seed)
        outputs: list[Output] = []
        for place, part in enumerate(question.example.parts[: question.asked[-1] + 1]):
            if place not in question.asked:
                turns.read(part.text if isinstance(part, Said) else self._shown(part))
            elif isinstance(part, Said):
                outputs.append(turns.write(MOST_WORDS).strip())
            else:
                outputs.append(np.asarray(turns.draw(self.size, self.size).image))
        return Answer(tuple(outputs), time.monotonic() - begun)

    def _shown(self, part: Shown) -> Image.Image:
        return Image.fromarray(render(part.scene, self.size))


def round_trip(picture: np.ndarray, tokenizer: ImageTokenizer) -> np.ndarray:
    """A picture as the image tokenizer gives it back, uint8 [H, W, 3]."""
    return to_bytes(tokenizer.decode(tokenizer.encode(to_pixels([picture]))))[0]
