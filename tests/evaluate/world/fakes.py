"""A pipeline that knows the answers, and a detector that knows the scenes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from nextstep.engine.chat.conversation import TextTurn, Turn
from nextstep.engine.settings import ModelDefaults
from nextstep.evaluate.world.questions import WorldQuestion
from nextstep.world.examples import ImagePart, TextPart
from nextstep.world.scenes import Scene, render
from nextstep.world.spec import Detections, detections_of
from tests.conftest import TINY, random_model

SIZE = 128


class FakePipeline:
    """Answers each question, known by its seed, with the truth about another one.

    Args:
        questions: that will be asked.
        other: question -> the one whose truth is given; by default itself.
    """

    def __init__(
        self,
        questions: Sequence[WorldQuestion],
        other: Callable[[WorldQuestion], WorldQuestion] = lambda question: question,
    ) -> None:
        self.model_hash, self.adapter, self.vocabulary = "fake", {}, None
        self.defaults = ModelDefaults()
        self.model = random_model(TINY)  # named in the manifest, never asked
        self.by_seed = {question.seed: question for question in questions}
        assert len(self.by_seed) == len(questions)
        self.other = other
        self.calls: list[str] = []

    def picture(self, seed: int, number: int = 0) -> SimpleNamespace:
        question = self.other(self.by_seed[seed])
        places = question.asked or question.example.targets
        part = question.example.parts[places[min(number, len(places) - 1)]]
        scene = question.example.scenes[-1] if isinstance(part, TextPart) else part.scene
        return SimpleNamespace(image=Image.fromarray(render(scene, SIZE)))

    def text(self, seed: int) -> str:
        part = self.other(self.by_seed[seed]).example.parts[-1]
        return part.text if isinstance(part, TextPart) else "nothing"

    def generate(self, prompts: list[str], *, seed: list[int], **_: Any) -> list[SimpleNamespace]:
        self.calls.append("generate")
        for prompt, one in zip(prompts, seed, strict=True):
            question = self.by_seed[one]
            assert prompt == question.example.prompt(question.asked[0])
        return [self.picture(one) for one in seed]

    def request(
        self, text: str, images: list[Image.Image], *, seed: int, **_: Any
    ) -> tuple[str, list[Image.Image], int]:
        return text, images, seed

    def run(
        self, requests: list[tuple[str, list[Image.Image], int]], batch_size: int
    ) -> list[SimpleNamespace]:
        self.calls.append("edit")
        for text, given, one in requests:
            example = self.by_seed[one].example
            assert example.prompt(len(example.parts) - 1) == "<image>" * len(given) + text
        return [self.picture(one) for _, _, one in requests]

    def conversations(self, seeds: list[int]) -> FakeConversations:
        self.calls.append("conversations")
        return FakeConversations(self, seeds)


class FakeConversations:
    """Conversations about one question each; what is given must be what comes before."""

    def __init__(self, pipeline: FakePipeline, seeds: list[int]) -> None:
        self.pipeline, self.seeds = pipeline, seeds
        self.places = [0] * len(seeds)
        self.drawn = [0] * len(seeds)
        self.prompts = 0

    def read(self, which: int, given: str | Image.Image) -> None:
        part = self._next(which)
        assert given == part.text if isinstance(part, TextPart) else isinstance(given, Image.Image)

    def read_question(self, which: int, question: str) -> None:
        self.read(which, question)

    def read_prompts(self, instructions: dict[int, str], size: tuple[int, int]) -> None:
        assert size == (SIZE, SIZE)
        for which, text in instructions.items():
            self.prompts += 1
            self.read(which, text)

    def take_turns(self, turns: dict[int, Turn]) -> dict[int, str | Image.Image]:
        return {which: self._turn(which, turn) for which, turn in turns.items()}

    def _turn(self, which: int, turn: Turn) -> str | Image.Image:
        assert isinstance(self._next(which), TextPart) == isinstance(turn, TextTurn)
        if isinstance(turn, TextTurn):
            return self.pipeline.text(self.seeds[which])
        self.drawn[which] += 1
        assert self.prompts > 0, "not read as the prompt of a picture"
        return self.pipeline.picture(self.seeds[which], self.drawn[which] - 1).image

    def _next(self, which: int) -> TextPart | ImagePart:
        question = self.pipeline.by_seed[self.seeds[which]]
        self.places[which] += 1
        return question.example.parts[self.places[which] - 1]


class PerfectEye:
    """Sees the truth of every scene that it was told of."""

    def __init__(self) -> None:
        self.detections: dict[bytes, Detections] = {}

    def learn(self, scenes: Sequence[Scene]) -> None:
        for scene in scenes:
            self.detections[render(scene, SIZE).tobytes()] = detections_of(scene)

    def detect(self, pictures: Sequence[np.ndarray]) -> list[Detections]:
        return [self.detections[picture.tobytes()] for picture in pictures]
