"""Exponential moving average of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


def load_average(model: nn.Module, shadow: dict[str, Tensor]) -> None:
    """Put averaged weights into a model of the same shape.

    Raises:
        ValueError: when names differ; a tied parameter has one name.
    """
    wanted = {name for name, _ in model.named_parameters()}
    if wanted != shadow.keys():
        raise ValueError(f"the average is of another model: {sorted(wanted ^ shadow.keys())[:4]}")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(shadow[name])


class EMA:
    """fp32 running mean of a module's parameters, with a short horizon at the beginning.

    The decay at step n is min(decay, (1 + n) / (10 + n)), so that the first weights, which are
    noise, are forgotten soon.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.shadow = {name: p.detach().float().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's present weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        present = dict(model.named_parameters())
        torch._foreach_lerp_(
            list(self.shadow.values()), [present[name].float() for name in self.shadow], 1 - decay
        )

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Inside the block the model carries the averaged weights."""
        kept = {name: p.detach().clone() for name, p in model.named_parameters()}
        load_average(model, self.shadow)
        try:
            yield
        finally:
            load_average(model, kept)

    def state_dict(self) -> dict[str, object]:
        """Everything `load_state_dict` needs."""
        return {"updates": self.updates, "shadow": self.shadow}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take up a saved average."""
        self.updates = int(state["updates"])  # type: ignore[call-overload]
        self.shadow = dict(state["shadow"])  # type: ignore[call-overload]
