"""Steps of numbered items, the same on any number of ranks."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from nextstep.data.documents import Document, derived_seed
from nextstep.data.steps import Step
from nextstep.errors import NextStepError

Row = list[tuple[Document, Sequence[Any]]]
"""Documents of one row, each with its pictures."""


class NumberedBatches:
    """A `BatchSource` of rows that are made from their number in the run.

    Step s takes rows s*R to (s+1)*R; micro-batch m of all of them belongs to rank m modulo the
    number of ranks.

    Args:
        make: number -> row.
        batch_of: rows -> micro-batch.
        rows: R, of a step over all ranks.
        micro: rows of a micro-batch at most.
        rank, world: which part of every step this process gets.

    Raises:
        NextStepError: when a step has fewer rows than there are ranks.
    """

    def __init__(
        self,
        make: Callable[[int], Row],
        batch_of: Callable[[list[Row]], Any],
        rows: int,
        micro: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if rows < world:
            raise NextStepError(f"{rows} row(s) a step leave some of {world} ranks without any")
        self.make, self.batch_of, self.rows = make, batch_of, rows
        self.micro = max(1, min(micro, rows // world))
        self.rank, self.world, self.step = rank, world, 0

    def next_step(self) -> Step:
        """The next step of this rank."""
        starts = range(self.step * self.rows, (self.step + 1) * self.rows, self.micro)
        end = (self.step + 1) * self.rows
        batches, keys, tokens = [], [], 0
        for start in list(starts)[self.rank :: self.world]:
            rows = [self.make(number) for number in range(start, min(start + self.micro, end))]
            batches.append(self.batch_of(rows))
            documents = [document for row in rows for document, _ in row]
            keys += [document.key for document in documents]
            tokens += sum(len(document) for document in documents)
        self.step += 1
        return Step(batches, keys, tokens, self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """The number of the next step."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved step."""
        self.step = int(state["step"])

    def close(self) -> None:
        """Nothing runs beside it."""


def shuffled(count: int, number: int, *seed: int | str) -> tuple[int, int]:
    """(epoch, item) of item `number` of a run over `count` items in another order every epoch."""
    epoch, place = divmod(number, count)
    order = list(range(count))
    random.Random(derived_seed(*seed, epoch)).shuffle(order)
    return epoch, order[place]
