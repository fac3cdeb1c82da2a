"""Three figures that tell more than the loss while a model learns to draw what its text says.

* `lines_right`: share of lines that the model would write itself. A line is written greedily, so it
  is right exactly when every id of it is the likeliest after the true ones before it.
* `name_gap`: flow-matching loss with wrong object names in the text less the loss with the right
  ones, for the same pictures, noise and levels. Near 0 the model does not read the names.

* `flow_loss`: that loss with the right names, on scenes that training does not draw.

Legend: P positions whose next id is learned, T learned image tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nextstep.data.documents import Document, derived_seed
from nextstep.text.sequence import build_sequence
from nextstep.train.stages.pretrain import PretrainStage, states
from nextstep.world.examples import Example, ImagePart, TextPart
from nextstep.world.lines import with_lines, with_regions
from nextstep.world.scenes import Scene, render
from nextstep.world.tasks import TASKS, choose_tasks, example, tasks_with_split

if TYPE_CHECKING:
    from nextstep.config import NextStepConfig
    from nextstep.model.nextstep import NextStepModel
    from nextstep.recipe.run_schema import Probes
    from nextstep.text.tokenizer import TextTokenizer
    from nextstep.vae.tokenizer import ImageTokenizer

Pictures = list[np.ndarray]
ROWS = 2
"""Rows that go through the model together."""
LEAST_ROW = 512
"""Positions of a row at least, so that several short samples share one."""


@dataclass(frozen=True)
class _Item:
    """A sample with its pictures, and the same with other names in its text."""

    right: Document
    wrong: Document
    pictures: list[np.ndarray]


class Probe:
    """Measures a model on fixed scenes of the emoji world.

    Args:
        settings: which scenes.
        config: of the model.
        image_tokenizer, tokenizer: of its pictures and text.
        pixels: side of the pictures.
    """

    def __init__(
        self,
        settings: Probes,
        config: NextStepConfig,
        image_tokenizer: ImageTokenizer,
        tokenizer: TextTokenizer,
        pixels: int,
    ) -> None:
        self.tokenizer, self.pixels = tokenizer, pixels
        self.grid = pixels // 16, pixels // 16
        weights = choose_tasks(settings.tasks, settings.edition)
        drawn = [
            task
            for task in weights
            if TASKS[task].kind != "text" and TASKS[task].group != "reading"
        ]
        self.tasks = list(tasks_with_split({task: 1.0 for task in drawn}, "seen", settings.edition))
        self.items = [
            self._item(self.tasks[n % len(self.tasks)], n, settings.edition)
            for n in range(settings.items)
        ]
        longest = max(len(one) for item in self.items for one in (item.right, item.wrong))
        length = max(LEAST_ROW, -(-longest // 16) * 16)
        self.stage = PretrainStage(config, image_tokenizer, row_length=length)

    def _item(self, task: str, number: int, edition: str) -> _Item:
        one = example(task, derived_seed("probe", task, number), "seen", edition)
        parts = with_regions([_quiet(part) for part in one.parts], self.grid)
        lined = with_lines(parts, self.grid, source_line=True)
        renamed = with_lines(_renamed(parts, edition), self.grid, source_line=True)
        images = [render(scene, self.pixels) for scene in one.scenes]
        right, wrong = (self._document(task, number, said) for said in (lined, renamed))
        return _Item(right, wrong, images)

    def _document(self, task: str, number: int, parts: Sequence[TextPart | ImagePart]) -> Document:
        sequence = build_sequence(
            Example(task, tuple(parts)).sequence_parts(self.grid), self.tokenizer
        )
        images = tuple(range(len(sequence.images)))
        return Document(f"probe/{task}/{number}", sequence, images, derived_seed("probe", number))

    @torch.no_grad()
    def __call__(self, model: NextStepModel) -> dict[str, float]:
        """The figures of a model in eval mode."""
        right, loss = self._measured(model, [item.right for item in self.items])
        _, without = self._measured(model, [item.wrong for item in self.items])
        return {
            "lines_right": round(sum(right) / len(right), 4),
            "name_gap": round(without - loss, 5),
            "flow_loss": round(loss, 5),
        }

    def _measured(
        self, model: NextStepModel, documents: list[Document]
    ) -> tuple[list[bool], float]:
        """Whether every document's learned text is the likeliest; mean loss of image tokens."""
        right, total, count = list[bool](), 0.0, 0
        device = model.embed_tokens.weight.device
        for rows in self._rows(documents):
            prepared = self.stage.prepare(self.stage.batch_of(rows), device)
            packed = prepared.batch
            hidden = states(model, prepared)
            likeliest = model.text_logits(hidden[packed.text_places]).argmax(-1)
            hit = likeliest == packed.text_targets
            numbers = packed.documents.flatten()[packed.text_places]
            row = packed.text_places // packed.ids.shape[1]
            for place, documents_of in enumerate(rows):
                for number in range(len(documents_of)):
                    mine = (row == place) & (numbers == number)
                    right.append(bool(hit[mine].all()))
            assert packed.u is not None and packed.noise is not None
            condition = model.image_condition(hidden[packed.condition_places])
            u, noise = packed.u.flatten(), packed.noise.flatten(0, 1)
            total += float(model.image_loss_sum(condition, prepared.targets, u, noise))
            count += len(prepared.targets)
        return right, total / count

    def _rows(self, documents: list[Document]) -> Iterator[list[list[tuple[Document, Pictures]]]]:
        """Batches of `ROWS` rows, in which the documents lie in order."""
        rows: list[list[tuple[Document, Pictures]]] = [[]]
        used = 0
        for document, item in zip(documents, self.items, strict=True):
            if used + len(document) > self.stage.row_length:
                rows, used = [*rows, []], 0
            rows[-1].append((document, item.pictures))
            used += len(document)
        yield from (rows[first : first + ROWS] for first in range(0, len(rows), ROWS))


def _quiet(part: TextPart | ImagePart) -> TextPart | ImagePart:
    """A prompt that is read and not learned."""
    return replace(part, trained=False) if isinstance(part, TextPart) else part


def _renamed(parts: Sequence[TextPart | ImagePart], edition: str) -> list[TextPart | ImagePart]:
    """The parts with every object called by the name of the next one of the edition."""
    from nextstep.world.editions import editions
    from nextstep.world.lexicon import world_objects

    objects = editions()[edition].objects
    following = dict(zip(objects, (*objects[1:], objects[0]), strict=True))
    words = {world_objects()[a].word: world_objects()[b].word for a, b in following.items()}

    def other(scene: Scene) -> Scene:
        items = tuple(replace(item, name=following[item.name]) for item in scene.items)
        return replace(scene, items=items)

    return [
        replace(part, scene=other(part.scene))
        if isinstance(part, ImagePart)
        else replace(part, text=_swapped(part.text, words))
        for part in parts
    ]


def _swapped(text: str, words: dict[str, str]) -> str:
    """A text with words of the table in place of those that stand there."""
    longest = sorted(words, key=len, reverse=True)
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, longest)) + r")(?=s?\b)")
    return pattern.sub(lambda found: words[found.group(1)], text)


def held(figures: Mapping[str, float], gate: Mapping[Any, float]) -> bool:
    """Whether every figure of a gate is reached."""
    return all(figures.get(name, float("-inf")) >= least for name, least in gate.items())
