"""Letting a paradigm answer the world's questions: captions by pictures, questions by text.

Legend: H W pixels, uint8, RGB; N tokens of a picture, D values per token.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from nextstep.evaluate.world.answering import MOST_WORDS, Answer, Output, round_trip
from nextstep.evaluate.world.questions import WorldQuestion
from nextstep.image.pictures import to_bytes, to_pixels
from nextstep.lab.paradigms.fsq import QuantizedTokenizer
from nextstep.lab.paradigms.sampling import DrawSettings, Paradigm, Prompt, draw, write
from nextstep.text.sequence import Part, Picture, build_sequence
from nextstep.text.tokenizer import TextTokenizer
from nextstep.vae.tokenizer import ImageTokenizer
from nextstep.world.examples import Example, ImagePart
from nextstep.world.scenes import render


class ParadigmAnswers:
    """A paradigm that answers; satisfies `evaluate.world.answering.Answerer`.

    Args:
        paradigm: that draws and writes.
        tokenizer: of the text.
        image_tokenizer: of the pictures.
        size: their side in pixels.
        settings: of drawing.

    Attributes:
        computed: positions that went through the backbone for each picture, without the prompt,
            over both branches of guidance.
    """

    def __init__(
        self,
        paradigm: Paradigm,
        tokenizer: TextTokenizer,
        image_tokenizer: ImageTokenizer,
        size: int,
        settings: DrawSettings,
    ) -> None:
        self.paradigm, self.tokenizer, self.image_tokenizer = paradigm, tokenizer, image_tokenizer
        self.size, self.settings, self.computed = size, settings, 0

    def answer(self, questions: Sequence[WorldQuestion]) -> list[Answer]:
        """Answers to questions of one task, in their order."""
        if not questions:
            return []
        begun = time.monotonic()
        first = questions[0]
        pictures = isinstance(first.example.parts[first.asked[0]], ImagePart)
        outputs = self._drawn(questions) if pictures else self._written(questions)
        share = (time.monotonic() - begun) / len(questions)
        return [Answer((output,), share) for output in outputs]

    def _drawn(self, questions: Sequence[WorldQuestion]) -> Sequence[Output]:
        target = Picture(self.settings.grid)
        prompts: list[Prompt] = [
            (build_sequence([*self._before(one), target], self.tokenizer).prompt(), [])
            for one in questions
        ]
        empty: Prompt = (build_sequence([target], self.tokenizer).prompt(), [])
        keys = [(one.seed, 0) for one in questions]
        tokens, rows = draw(self.paradigm, prompts, empty, keys, self.settings)
        self.computed = rows.computed * (1 if self.settings.guidance == 1 else 2)
        return list(to_bytes(self.image_tokenizer.decode_tokens(tokens, self.settings.grid)))

    def _written(self, questions: Sequence[WorldQuestion]) -> Sequence[Output]:
        prompts: list[Prompt] = [
            (build_sequence(self._before(one), self.tokenizer, end=False), self._tokens(one))
            for one in questions
        ]
        said = write(self.paradigm, prompts, MOST_WORDS)
        return [self.tokenizer.decode(ids).strip() for ids in said]

    def _before(self, question: WorldQuestion) -> list[Part]:
        """What stands before the answer."""
        example = question.example
        before = Example(example.task, example.parts[: question.asked[0]])
        return before.sequence_parts(self.settings.grid)

    def _tokens(self, question: WorldQuestion) -> list[torch.Tensor]:
        """Image tokens [N, D] of the pictures that a question shows."""
        shown = [part for part in question.example.parts if isinstance(part, ImagePart)]
        pixels = to_pixels([render(part.scene, self.size) for part in shown])
        return list(self.image_tokenizer.encode_tokens(pixels).clone().float())


class Ceiling:
    """The truth as tokens give it back: what the drawings of an arm can score at most.

    Args:
        image_tokenizer: of the pictures.
        size: their side in pixels.
        quantized: with rounding to codes in between; None without.
    """

    def __init__(
        self,
        image_tokenizer: ImageTokenizer,
        size: int,
        quantized: QuantizedTokenizer | None = None,
    ) -> None:
        self.image_tokenizer, self.size, self.quantized = image_tokenizer, size, quantized

    def answer(self, questions: Sequence[WorldQuestion]) -> list[Answer]:
        """The true pictures of drawing questions, through the tokens."""
        begun = time.monotonic()
        made = [self._through(true_picture(one, self.size)) for one in questions]
        share = (time.monotonic() - begun) / max(1, len(questions))
        return [Answer((picture,), share) for picture in made]

    def _through(self, picture: np.ndarray) -> np.ndarray:
        if self.quantized is None:
            return round_trip(picture, self.image_tokenizer)
        return to_bytes(self.quantized.round_trip(to_pixels([picture])))[0]


def true_picture(question: WorldQuestion, size: int) -> np.ndarray:
    """The picture that a drawing question asks for, uint8 [H, W, 3]."""
    part = question.example.parts[question.asked[0]]
    assert isinstance(part, ImagePart)
    return render(part.scene, size)
