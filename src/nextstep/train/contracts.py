"""What the loop asks of a stage and of a source of batches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn


class Stage(Protocol):
    """One kind of training: which losses, over what.

    The loop minimises sum over parts of weight * (sum of the part over all micro-batches and
    ranks) / (count of the part over the same). So the loss does not depend on how the rows of a
    step were dealt out.
    """

    loss_weights: dict[str, float]

    def prepare(self, batch: Any, device: Any) -> Any:
        """Move a batch to the device and do what needs no gradient (encoding pictures)."""

    def counts(self, batch: Any) -> dict[str, float]:
        """How many things each part of the loss is a sum over, in this micro-batch."""

    def losses(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Each part of the loss as a sum over what `counts` counts, with gradient."""


@dataclass(frozen=True)
class Step:
    """What one rank trains on in one optimizer step.

    Attributes:
        batches: its micro-batches.
        keys: names of the samples in them, for reports.
        tokens: text and image tokens in them, without padding.
        state: `BatchSource.state_dict()` as it is once this step has been taken.
    """

    batches: list[Any]
    keys: list[str] = field(default_factory=list)
    tokens: int = 0
    state: dict[str, Any] = field(default_factory=dict)


class BatchSource(Protocol):
    """A stream of steps that can be taken up again from its state, on any number of ranks."""

    def next_step(self) -> Step:
        """The next step of this rank."""

    def state_dict(self) -> dict[str, Any]:
        """Small, JSON-like, equal on all ranks, and free of the number of ranks."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
