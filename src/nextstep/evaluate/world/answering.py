"""Letting somebody answer: a model with its default settings, or the truth itself.

The truth, drawn or as the image tokenizer gives it back, is the best that any model could do; what
the scorer says about it is the ceiling of every score.

Legend: H W pixels, RGB.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from nextstep.engine.chat.conversation import PictureTurn, TextTurn, Turn
from nextstep.evaluate.world.questions import WorldQuestion
from nextstep.image.pictures import to_bytes, to_pixels
from nextstep.world.examples import ImagePart, TextPart
from nextstep.world.scenes import render
from nextstep.world.tasks import TASKS

if TYPE_CHECKING:
    from nextstep.pipeline import NextStepPipeline
    from nextstep.vae.tokenizer import ImageTokenizer

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

    def answer(self, questions: Sequence[WorldQuestion]) -> list[Answer]:
        """Answers to questions of one task, in their order."""


class Truth:
    """Answers everything right.

    Args:
        size: side of the pictures in pixels.
        tokenizer: through which its pictures go; None leaves them as drawn.
    """

    def __init__(self, size: int, tokenizer: ImageTokenizer | None = None) -> None:
        self.size, self.tokenizer = size, tokenizer

    def answer(self, questions: Sequence[WorldQuestion]) -> list[Answer]:
        """The true answers."""
        begun = time.monotonic()
        made = [[self._true(one, place) for place in one.asked] for one in questions]
        share = (time.monotonic() - begun) / max(1, len(questions))
        return [Answer(tuple(outputs), share) for outputs in made]

    def _true(self, question: WorldQuestion, place: int) -> Output:
        part = question.example.parts[place]
        if isinstance(part, TextPart):
            return part.answers[0]
        picture = render(part.scene, self.size)
        return picture if self.tokenizer is None else round_trip(picture, self.tokenizer)


class ModelAnswerer:
    """A model that answers with its default settings.

    Captions and edits are answered in batches; what follows step by step are conversations side by
    side.

    Args:
        pipeline: model and tokenizers.
        size: side of the pictures in pixels.
        batch_size: pictures made together.
    """

    def __init__(self, pipeline: NextStepPipeline, size: int, batch_size: int = 8) -> None:
        self.pipeline, self.size, self.batch_size = pipeline, size, batch_size

    def answer(self, questions: Sequence[WorldQuestion]) -> list[Answer]:
        """The model's answers."""
        if not questions:
            return []
        group = TASKS[questions[0].task].group
        begun = time.monotonic()
        outputs: list[tuple[Output, ...]]
        if group == "drawing":
            outputs = [(picture,) for picture in self._drawn(questions)]
        elif group == "editing" and questions[0].task != "turns":
            outputs = [(picture,) for picture in self._edited(questions)]
        else:
            outputs = self._turn_by_turn(questions)
        share = (time.monotonic() - begun) / len(questions)
        return [Answer(made, share) for made in outputs]

    def _drawn(self, questions: Sequence[WorldQuestion]) -> list[np.ndarray]:
        made = self.pipeline.generate(
            [one.example.prompt(one.asked[0]) for one in questions],
            height=self.size,
            width=self.size,
            seed=[one.seed for one in questions],
            batch_size=self.batch_size,
        )
        return [np.asarray(one.image) for one in made]

    def _edited(self, questions: Sequence[WorldQuestion]) -> list[np.ndarray]:
        sources, instructions = [], []
        for one in questions:
            before = one.example.parts[: one.asked[0]]
            sources.append([self._shown(part) for part in before if isinstance(part, ImagePart)])
            instructions.append("".join(part.text for part in before if isinstance(part, TextPart)))
        requests = [
            self.pipeline.request(text, given, height=self.size, width=self.size, seed=one.seed)
            for text, given, one in zip(instructions, sources, questions, strict=True)
        ]
        made = self.pipeline.run(requests, self.batch_size)
        return [np.asarray(one.image) for one in made]

    def _turn_by_turn(self, questions: Sequence[WorldQuestion]) -> list[tuple[Output, ...]]:
        """Conversations side by side, each a part further whenever it is the model's turn."""
        talks = self.pipeline.conversations([one.seed for one in questions])
        places = [0] * len(questions)
        outputs: list[list[Output]] = [[] for _ in questions]
        while True:
            turns: dict[int, Turn] = {}
            prompts: dict[int, str] = {}
            for number, one in enumerate(questions):
                if len(outputs[number]) == len(one.asked):
                    continue
                place = one.asked[len(outputs[number])]
                picture = isinstance(one.example.parts[place], ImagePart)
                before = one.example.parts[places[number] : place]
                for nth, part in enumerate(before, 1):
                    if isinstance(part, ImagePart):
                        talks.read(number, self._shown(part))
                    elif picture and nth == len(before):
                        prompts[number] = part.text
                    elif nth == len(before):
                        talks.read_question(number, part.text)
                    else:
                        talks.read(number, part.text)
                turns[number] = (
                    PictureTurn(self.size, self.size) if picture else TextTurn(MOST_WORDS)
                )
                places[number] = place + 1
            if not turns:
                return [tuple(made) for made in outputs]
            talks.read_prompts(prompts, (self.size, self.size))
            for number, made in talks.take_turns(turns).items():
                outputs[number].append(made.strip() if isinstance(made, str) else np.asarray(made))

    def _shown(self, part: ImagePart) -> Image.Image:
        return Image.fromarray(render(part.scene, self.size))


def round_trip(picture: np.ndarray, tokenizer: ImageTokenizer) -> np.ndarray:
    """A picture as the image tokenizer gives it back, uint8 [H, W, 3]."""
    return to_bytes(tokenizer.decode(tokenizer.encode(to_pixels([picture]))))[0]
