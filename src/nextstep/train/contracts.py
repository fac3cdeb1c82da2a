"""What the loop asks of a stage and of a source of batches.

Legend: losses and counts are scalars by their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from nextstep.data.steps import BatchSource, Step

__all__ = ["BatchSource", "Observer", "Stage", "Step"]


class Stage(Protocol):
    """One kind of training: which losses, over what.

    The loop minimises sum over parts of weight * (sum of the part over all micro-batches and
    ranks) / (count of the part over the same). So the loss does not depend on how the rows of a
    step were dealt out.

    A stage may also have `flops(batch)`, the operations of forward and backward on a prepared
    micro-batch; the log then tells FLOP/s and the share of the device's measured peak.
    """

    loss_weights: dict[str, float]

    def prepare(self, batch: Any, device: Any) -> Any:
        """Move a batch to the device and do what needs no gradient (encoding pictures)."""

    def counts(self, batch: Any) -> dict[str, float]:
        """How many things each part of the loss is a sum over, in this micro-batch."""

    def losses(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Each part of the loss as a sum over what `counts` counts, with gradient."""


class Observer(Stage, Protocol):
    """A stage that also compares the model with other weights of itself, such as a reference."""

    def observed_weights(
        self, average: Mapping[str, Tensor] | None
    ) -> Mapping[str, Mapping[str, Tensor] | None]:
        """Which weights look at every batch of a step before its gradients, by name.

        Args:
            average: the loop's averaged weights, None where it keeps none.

        Returns:
            Weights by parameter name; None stands for the present ones.
        """

    def observe(self, model: nn.Module, batch: Any, name: str) -> Any:
        """The batch with what the weights called `name` say of it; called without gradients."""
