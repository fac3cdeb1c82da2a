"""The world as a live source: samples are drawn when they are asked for, and never repeat."""

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
from nextstep.text.sequence import build_sequence, thought
from nextstep.text.tokenizer import TextTokenizer
from nextstep.world.descriptions import describe
from nextstep.world.draw import Draw
from nextstep.world.examples import Example, Said, Shown
from nextstep.world.grid_aligned import tidy
from nextstep.world.scenes import Scene, render
from nextstep.world.signs import longest_word_at
from nextstep.world.tasks import TASKS, choose_tasks, example, tasks_with_split
from nextstep.world.tasks.plain import plain, read_glosses

_SPELLED = re.compile(r'"[A-Z]+"')
_CONDITIONED = ("drawing", "editing", "story", "next_state", "recall")


@dataclass(frozen=True)
class Drawn:
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
        core: draw things from `vocabulary.OBJECTS` alone.
        no_caption: share of samples that lose their text, for guidance; half of those with
            several pictures lose all but the last of them too.
        sentences: share of captions and instructions with a capital letter and a full stop.
        thought_share: how many of the edits say behind the instruction what the result shows, see
            `text.sequence.thought`.
        tidy_share: how many of the drawings have their things on the grid of image tokens, see
            `tidy`.
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
        core: bool = False,
        no_caption: float = 0.1,
        sentences: float = 0.1,
        thought_share: float = 0.0,
        tidy_share: float = 0.0,
        longest_word: int | None = None,
        glosses: str | Path | None = None,
        length: int = 100_000,
        fresh: bool = True,
        name: str = "world",
    ) -> None:
        if pixels < 16 or pixels % 16:
            raise NextStepError(f"pixels must be a positive multiple of 16, not {pixels}")
        for option, share in (
            ("no_caption", no_caption), ("sentences", sentences), ("thought_share", thought_share),
            ("tidy_share", tidy_share),
        ):  # fmt: skip
            if not 0 <= share <= 1:
                raise NextStepError(f"{option} is a share from 0 to 1, not {share}")
        if length < 1:
            raise NextStepError(f"an epoch has at least 1 sample, not {length}")
        self.tokenizer, self.pixels, self.split, self.core = tokenizer, pixels, split, core
        self.no_caption, self.sentences, self.length, self.name = (
            no_caption, sentences, length, name,
        )  # fmt: skip
        self.fresh, self.thought_share, self.tidy_share = fresh, thought_share, tidy_share
        self.longest_word = longest_word or longest_word_at(pixels)
        if not 1 <= self.longest_word <= 8:
            raise NextStepError(f"a sign has 1 to 8 letters, not {longest_word}")
        self.glosses = None if glosses is None else Path(glosses)
        if self.glosses is not None:
            read_glosses(self.glosses)
        self.tasks = tasks_with_split(choose_tasks(tasks, core), split)
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
            draw = Draw(number, self.split, self.core, self.longest_word)
            return plain(draw, self.glosses)
        made = example(task, number, self.split, self.core, self.longest_word)
        if TASKS[task].group != "drawing" or rng.random() >= self.tidy_share:
            return made
        return replace(made, parts=tuple(self._tidied(part) for part in made.parts))

    def _tidied(self, part: Said | Shown) -> Said | Shown:
        if isinstance(part, Said):
            return part
        return replace(part, scene=tidy(part.scene, self.pixels, self.token_pixels, part.spec))

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
            payload=Drawn(made.task, tuple(made.scenes[image] for image in images)),
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
            "name": self.name, "pixels": self.pixels, "split": self.split, "core": self.core,
            "longest_word": self.longest_word, "tasks": dict(self.tasks),
        }  # fmt: skip
        if self.tidy_share:
            options["tidy_share"] = self.tidy_share
        return {"world": json.loads(json.dumps(options)), "token_pixels": self.token_pixels}

    def texts(self, count: int = 100_000) -> Iterator[str]:
        """What a text tokenizer for this source should know.

        Words on signs are left out, so that they stay spelled in letters.
        """
        for index in range(count):
            for part in self.example(index, derived_seed("texts")).parts:
                if isinstance(part, Said):
                    yield _SPELLED.sub('""', part.text)

    def _augmented(
        self, made: Example, rng: random.Random
    ) -> tuple[tuple[Said | Shown, ...], tuple[int, ...]]:
        """(parts that are left, which of the pictures they show)."""
        parts = made.parts
        every = tuple(range(len(made.scenes)))
        if TASKS[made.task].group in _CONDITIONED and rng.random() < self.no_caption:
            pictures = tuple(part for part in parts if isinstance(part, Shown))
            alone = len(pictures) > 1 and rng.random() < 0.5
            return (pictures[-1:], every[-1:]) if alone else (pictures, every)
        if TASKS[made.task].group in ("drawing", "editing") and rng.random() < self.sentences:
            parts = tuple(_as_sentence(part) for part in parts)
        if TASKS[made.task].group == "editing" and rng.random() < self.thought_share:
            parts = _with_thoughts(parts)
        return parts, every


def _with_thoughts(parts: Sequence[Said | Shown]) -> tuple[Said | Shown, ...]:
    """The parts with a line before every trained picture that says what it shows."""
    found: list[Said | Shown] = []
    for part in parts:
        asked = found[-1] if found else None
        if isinstance(part, Shown) and part.trained and isinstance(asked, Said):
            found[-1] = replace(asked, text=thought(asked.text, ""))
            found.append(Said(describe(part.scene)))
        found.append(part)
    return tuple(found)


def _as_sentence(part: Said | Shown) -> Said | Shown:
    if isinstance(part, Shown):
        return part
    return replace(part, text=f"{part.text[0].upper()}{part.text[1:]}.")
