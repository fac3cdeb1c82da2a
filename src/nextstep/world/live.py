"""The world as a live source: samples are drawn when they are asked for, and never repeat.

Legend: pixels: of a picture's side, RGB, uint8.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nextstep.data.documents import Document, derived_seed
from nextstep.data.sources import Stills
from nextstep.errors import NextStepError
from nextstep.text.sequence import build_sequence
from nextstep.text.tokenizer import TextTokenizer
from nextstep.world.descriptions import describe
from nextstep.world.draw import Draw
from nextstep.world.examples import Example, ImagePart, TextPart
from nextstep.world.lines import with_lines, with_regions
from nextstep.world.scenes import Scene, check_side, render
from nextstep.world.signs import longest_word_at
from nextstep.world.tasks import TASKS, choose_tasks, example, tasks_with_split
from nextstep.world.tasks.plain import plain, read_glosses

_SPELLED = re.compile(r'"[A-Z]+"')
_CONDITIONED = ("drawing", "letters", "editing", "story", "next_state", "recall")
_REASONED = (*_CONDITIONED, "reading", "names", "steps")


@dataclass(frozen=True)
class LiveDrawing:
    """What `WorldSource.pictures` needs.

    Attributes:
        task: of the sample.
        scenes: in reading order.
    """

    task: str
    scenes: tuple[Scene, ...]


class WorldSource:
    """Samples of all tasks in given shares.

    Args:
        tokenizer: of the text.
        pixels: side of the pictures, a multiple of 16.
        tasks: names of tasks or groups, alike or with weights; None for the usual mixture.
        split: one of `splits.SPLITS`; with another than "train", tasks without it are left out.
        edition: of the world, see `editions`.
        no_caption: share of samples that lose their text, for guidance; half of those with
            several pictures lose all but the last of them too.
        sentences: share of captions and instructions with a capital letter and a full stop.
        reasoning_prob: share of samples with a line before every picture that they draw and every
            answer, see `lines.with_lines`.
        text_only_prob: share of the samples with lines that leave out their pictures, so that
            lines are learned from many more texts than pictures are drawn.
        train_prompts: whether captions, instructions and questions are learned too, as released;
            otherwise lines and answers alone are.
        longest_word: letters on a sign at most; None for 8, or 4 in pictures below 96 pixels.
        glosses: file or folder for `tasks.plain.read_glosses`, read beside our own sentences.
        length: samples of an epoch.
        fresh: draw new samples in every epoch; otherwise the same `length` samples come back, in
            other orders and with other draws of noise, and can be encoded once.
        name: in mixes and reports.

    Raises:
        NextStepError: for a wrong value of one of these.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        pixels: int = 128,
        tasks: Mapping[str, float] | Sequence[str] | None = None,
        split: str = "train",
        edition: str = "full",
        no_caption: float = 0.1,
        sentences: float = 0.1,
        reasoning_prob: float = 0.0,
        text_only_prob: float = 0.0,
        train_prompts: bool = True,
        longest_word: int | None = None,
        glosses: str | Path | None = None,
        length: int = 100_000,
        fresh: bool = True,
        name: str = "world",
    ) -> None:
        check_side(pixels)
        for option, share in (
            ("no_caption", no_caption), ("sentences", sentences),
            ("reasoning_prob", reasoning_prob), ("text_only_prob", text_only_prob),
        ):  # fmt: skip
            if not 0 <= share <= 1:
                raise NextStepError(f"{option} is a share from 0 to 1, not {share}")
        if length < 1:
            raise NextStepError(f"an epoch has at least 1 sample, not {length}")
        self.tokenizer, self.pixels, self.split, self.edition = tokenizer, pixels, split, edition
        self.no_caption, self.sentences, self.length, self.name = (
            no_caption, sentences, length, name,
        )  # fmt: skip
        self.fresh, self.train_prompts = fresh, train_prompts
        self.reasoning_prob, self.text_only_prob = reasoning_prob, text_only_prob
        self.longest_word = longest_word or longest_word_at(pixels)
        if not 1 <= self.longest_word <= 8:
            raise NextStepError(f"a sign has 1 to 8 letters, not {longest_word}")
        self.glosses = None if glosses is None else Path(glosses)
        if self.glosses is not None:
            read_glosses(self.glosses)
        self.tasks = tasks_with_split(choose_tasks(tasks, edition), split, edition)
        self.grid = pixels // 16, pixels // 16
        kinds = {TASKS[task].kind for task in self.tasks}
        self.kind = kinds.pop() if len(kinds) == 1 else "interleaved"

    def __len__(self) -> int:
        return self.length

    def example(self, index: int, seed: int) -> Example:
        """Sample `index` of `seed`, whole, before anything is left out for guidance."""
        if not self.fresh:
            index, seed = index % self.length, 0
        rng = random.Random(derived_seed("task", self.name, index, seed))
        names, weights = zip(*self.tasks.items(), strict=True)
        task = rng.choices(names, weights)[0]
        number = derived_seed("sample", self.name, index, seed)
        if task == "plain" and self.glosses is not None:
            draw = Draw(number, self.split, self.edition, self.longest_word)
            return plain(draw, self.glosses)
        return example(task, number, self.split, self.edition, self.longest_word)

    def document(self, index: int, seed: int) -> Document:
        """Sample `index` of `seed` as a sequence, its pictures not drawn yet."""
        made = self.example(index, seed)
        rng = random.Random(derived_seed("choices", self.name, index, seed))
        parts, images = self._augmented(made, rng)
        return Document(
            key=self._key(made.task, index, seed),
            sequence=build_sequence(
                Example(made.task, parts).sequence_parts(self.grid), self.tokenizer
            ),
            images=images,
            seed=seed,
            payload=LiveDrawing(made.task, tuple(made.scenes[image] for image in images)),
        )

    def _key(self, task: str, index: int, seed: int) -> str:
        use = f"{index}-{seed}" if self.fresh else f"{index % self.length}"
        return f"{self.name}/{self.split}-{task}/{use}"

    def pictures(self, document: Document) -> list[np.ndarray]:
        """The document's pictures, uint8 [pixels, pixels, 3]."""
        return [render(scene, self.pixels) for scene in document.payload.scenes]

    @property
    def token_pixels(self) -> int:
        """Side of an image token in pixels."""
        return self.pixels // self.grid[0]

    @property
    def is_still(self) -> bool:
        """Whether a sample shows the same pictures at every use."""
        return not self.fresh

    def stills(self, index: int) -> Stills:
        """Every picture of sample `index`, whatever is left out of it for guidance."""
        made = self.example(index, 0)
        pictures = [render(scene, self.pixels) for scene in made.scenes]
        return Stills(self._key(made.task, index, 0), [self.grid] * len(pictures), pictures)

    def shown(self) -> dict[str, Any]:
        """What the pictures depend on."""
        options = {
            "name": self.name, "pixels": self.pixels, "split": self.split,
            "edition": self.edition,
            "longest_word": self.longest_word, "tasks": dict(self.tasks),
        }  # fmt: skip
        return {"world": json.loads(json.dumps(options)), "token_pixels": self.token_pixels}

    def texts(self, count: int = 100_000) -> Iterator[str]:
        """What a text tokenizer for this source should know.

        Words on signs are left out, so that they stay spelled in letters.
        """
        for index in range(count):
            for part in self.example(index, derived_seed("texts")).parts:
                if isinstance(part, TextPart):
                    yield _SPELLED.sub('""', part.text)

    def _augmented(
        self, made: Example, rng: random.Random
    ) -> tuple[tuple[TextPart | ImagePart, ...], tuple[int, ...]]:
        """(parts that are left, which of the pictures they show)."""
        parts = made.parts
        every = tuple(range(len(made.scenes)))
        group = TASKS[made.task].group
        reasons = group in _REASONED and rng.random() < self.reasoning_prob
        if group in _CONDITIONED and rng.random() < self.no_caption:
            if reasons:
                parts = tuple(with_regions(parts, self.grid))
            pictures = tuple(part for part in parts if isinstance(part, ImagePart))
            alone = len(pictures) > 1 and rng.random() < 0.5
            if not alone:
                return pictures, every
            return (replace(pictures[-1], region=None),), every[-1:]
        if group in ("drawing", "editing") and rng.random() < self.sentences:
            parts = tuple(_as_sentence(part) for part in parts)
        if not self.train_prompts and TASKS[made.task].kind != "text" and group != "names":
            parts = tuple(_untrained(part) for part in parts)
        if reasons:
            text_only = rng.random() < self.text_only_prob
            lined = with_lines(with_regions(parts, self.grid), self.grid, not text_only)
            if not text_only:
                return tuple(lined), every
            return tuple(_as_text(lined, group in ("recall", "names"))), ()
        return parts, every


def _as_text(
    parts: Sequence[TextPart | ImagePart], describes_given: bool
) -> Iterator[TextPart | ImagePart]:
    """The parts without pictures; given ones, which no line tells of, as their descriptions."""
    for part in parts:
        if isinstance(part, TextPart):
            yield part
        elif describes_given and not part.trained:
            yield TextPart(f" {describe(part.scene)}.", trained=False)


def _untrained(part: TextPart | ImagePart) -> TextPart | ImagePart:
    """A prompt that is read and not learned; answers stay as they are."""
    return part if isinstance(part, ImagePart) or part.answers else replace(part, trained=False)


def _as_sentence(part: TextPart | ImagePart) -> TextPart | ImagePart:
    if isinstance(part, ImagePart):
        return part
    return replace(part, text=f"{part.text[0].upper()}{part.text[1:]}.")
