"""Text inside the scheduler: one id a step, beside the pictures' tokens.

Legend: E hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nextstep.engine.backends.base import Backend, Place, Prefilled, Prompt
from nextstep.engine.backends.torch import cache_bytes
from nextstep.engine.text_sampling import Choose
from nextstep.errors import NextStepError
from nextstep.model.nextstep import NextStepModel

if TYPE_CHECKING:
    from nextstep.engine.image_sequence import ImageJob


@dataclass(frozen=True, eq=False)
class TextJob:
    """Text to be written.

    Attributes:
        prompt: what stands before it, text and pictures.
        limit: most ids to write.
        choose: logits [V] -> id; called once an id, in order.
        forbidden: ids that are never written.
        ends: ids that end it; they are told and not written.
        priority, deadline, client: as of a picture's `ImageJob`.
        then: ids written -> the picture that the text was written for, under the same ticket; None
            is nothing.
    """

    prompt: Prompt
    limit: int
    choose: Choose
    forbidden: tuple[int, ...]
    ends: tuple[int, ...]
    priority: int = 0
    deadline: float = math.inf
    client: str = ""
    then: Callable[[Sequence[int]], ImageJob] | None = None

    @property
    def size(self) -> int:
        """Steps it may take."""
        return self.limit

    def with_written(self, ids: list[int]) -> Prompt:
        """The prompt with ids that are written already behind it."""
        return Prompt([*self.prompt.ids, *ids], self.prompt.image_tokens, self.prompt.grids)

    def check(self, model: NextStepModel, budget: int) -> int:
        """Bytes its cache takes.

        Raises:
            NextStepError: when it can never run, whatever else does.
        """
        length, most = len(self.prompt.ids) + self.limit, model.config.max_position_embeddings
        if not self.prompt.ids:
            raise NextStepError("there is nothing to go on from: read a text or a picture first")
        if length > most:
            raise NextStepError(
                f"text and pictures together take {length} tokens; this model reads at most {most}"
            )
        needed = cache_bytes(model, length)
        if needed > budget:
            raise NextStepError(
                f"this text needs {needed:,} bytes of key/value cache and the engine may use "
                f"{budget:,}; write less or give the engine more"
            )
        return needed


class TextSequence:
    """A text with its cache.

    Args:
        job: what to write.
        ids: written so far; the list stays the caller's.
        prefilled: the job's prompt with those ids behind it.
    """

    def __init__(self, job: TextJob, ids: list[int], prefilled: Prefilled) -> None:
        self.job, self.ids = job, ids
        self.slots, self.hidden = [prefilled.slot], prefilled.hidden
        self.next = len(job.prompt.ids) + len(ids)

    def place(self) -> Place:
        """Where the last id is stored."""
        return Place(self.slots[0], self.next)

    def take(self, hidden: Tensor) -> None:
        """Take up the state [E] behind the last id."""
        self.hidden = hidden
        self.next += 1


def choose_ids(backend: Backend, texts: list[TextSequence]) -> list[int]:
    """The next id of every text."""
    logits = backend.logits(torch.stack([text.hidden for text in texts]))
    chosen = []
    for row, text in zip(logits, texts, strict=True):
        own = row.clone()
        own[list(text.job.forbidden)] = -torch.inf
        chosen.append(text.job.choose(own))
    return chosen
