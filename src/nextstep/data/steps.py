"""What passes from the data to the loop: steps, the stream that gives them, makers of crops.

It lies below both, because neither may know the other.
"""

from __future__ import annotations

from collections.abc import Callable
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
