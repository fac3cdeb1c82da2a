"""Text inside the scheduler: one id a step, beside the pictures' tokens.

Legend: E hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nextstep.engine.backends.torch import Place, blockwise, cache_bytes, read_prompt
from nextstep.engine.decode import Prompt
from nextstep.errors import NextStepError
from nextstep.model.nextstep import NextStepModel

Choose = Callable[[Tensor], int]


@dataclass(frozen=True, eq=False)
class TextJob:
    """Text to be written.

    Attributes:
        prompt: what stands before it, text and pictures.
        limit: most ids to write.
        choose: logits [V] -> id; called once an id, in order.
        forbidden: ids that are never written.
        ends: ids that end it; they are told and not written.
        priority, deadline, client: as of a picture's `Job`.
    """

    prompt: Prompt
    limit: int
    choose: Choose
    forbidden: tuple[int, ...]
    ends: tuple[int, ...]
    priority: int = 0
    deadline: float = math.inf
    client: str = ""

    @property
    def size(self) -> int:
        """Steps it may take."""
        return self.limit

    def check(self, model: NextStepModel, budget: int) -> int:
        """Bytes its cache takes.

        Raises:
            NextStepError: when it can never run, whatever else does.
        """
        length, most = len(self.prompt.ids) + self.limit, model.config.max_position_embeddings
        if not self.prompt.ids:
            raise NextStepError("there is nothing to go on from: give a text or a picture")
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


class Writing:
    """A text with its cache.

    Args:
        model: in eval mode.
        job: what to write.
        ids: written so far.
    """

    def __init__(self, model: NextStepModel, job: TextJob, ids: list[int]) -> None:
        self.model, self.job, self.ids = model, job, ids
        prompt = Prompt([*job.prompt.ids, *ids], job.prompt.image_tokens, job.prompt.grids)
        self.cache, self.hidden = read_prompt(model, prompt, job.limit - len(ids))
        self.next = len(prompt.ids)

    def rows(self) -> tuple[Tensor, list[Place]]:
        """What the backbone is fed after the last id: embedding [1, E], place."""
        weight = self.model.embed_tokens.weight
        embedded = self.model.embed_tokens(torch.tensor([self.ids[-1]], device=weight.device))
        return embedded, [Place(self.cache, self.next)]

    def take(self, hidden: Tensor) -> None:
        """Take up what the backbone made of `rows`, [1, E]."""
        self.hidden = hidden[0]
        self.next += 1


@torch.inference_mode()
def choose_ids(model: NextStepModel, texts: list[Writing]) -> list[int]:
    """The next id of every text; logits are made in blocks, so company changes none."""
    hidden = torch.stack([text.hidden for text in texts])
    logits = blockwise(model.text_logits, hidden)
    chosen = []
    for row, text in zip(logits, texts, strict=True):
        own = row.clone()
        own[list(text.job.forbidden)] = -torch.inf
        chosen.append(text.job.choose(own))
    return chosen
