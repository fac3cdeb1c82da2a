"""What passes from the data to the loop: steps, the stream that gives them, makers of crops.

It lies below both, because neither may know the other.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

MakeCrop = Callable[[int, int], np.ndarray]
"""(number of the picture in the run, seed of its draws) -> uint8 [S, S, 3]."""


@dataclass(frozen=True)
class Step:
    """What one rank trains on in one optimizer step.

    Attributes:
        batches: its micro-batches; every rank has the same number of them.
        keys: names of the samples in them, for reports.
        tokens: text and image tokens in them, without padding.
        state: `BatchSource.state_dict()` as it is once this step has been taken.
        resumable: whether a run can be taken up after it; not where the next step needs what is in
            memory alone, so that no checkpoint is taken and no signal ends the run.
    """

    batches: list[Any]
    keys: list[str] = field(default_factory=list)
    tokens: int = 0
    state: dict[str, Any] = field(default_factory=dict)
    resumable: bool = True


class BatchSource(Protocol):
    """A stream of steps that can be taken up again from its state, on any number of ranks."""

    def next_step(self) -> Step:
        """The next step of this rank."""

    def state_dict(self) -> dict[str, Any]:
        """Small, JSON-like, equal on all ranks, and free of the number of ranks."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""


class StepStream:
    """Takes steps from a source, and makes the next one while this one is trained.

    Args:
        batches: the source.
        ahead: whether to make the next step in a thread.
    """

    def __init__(self, batches: BatchSource, ahead: bool = True) -> None:
        self.batches, self.ahead = batches, ahead
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self.pending: Future[Step] | None = None

    def take(self, more: bool = True) -> Step:
        """The next step; `more` says whether another one will be asked for."""
        pending, self.pending = self.pending, None
        step = pending.result() if pending else self.batches.next_step()
        if self.ahead and more:
            self.pending = self.pool.submit(self.batches.next_step)
        return step

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on elsewhere; a step that was made ahead is dropped."""
        pending, self.pending = self.pending, None
        if pending:
            pending.result()
        self.batches.load_state_dict(state)
