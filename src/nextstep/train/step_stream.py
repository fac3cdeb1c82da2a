"""Steps for the loop, the next one made while this one is trained."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from nextstep.train.contracts import BatchSource, Step


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
