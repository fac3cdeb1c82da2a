"""Exponential moving average of the weights.

Legend: parameters of any shape; averages have the shape of their parameter, fp32.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from nextstep.train.parallel import is_sharded, let_go, whole


def local(tensor: Tensor) -> Tensor:
    """The memory of this rank's part of a tensor that may be sharded."""
    inner = getattr(tensor, "_local_tensor", None)
    return tensor if inner is None else inner


@contextlib.contextmanager
def swapped(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside the block the model carries other weights; afterwards its own, to the last bit.

    Args:
        model: whole or sharded; gathered weights are freed on both ways.
        weights: by parameter name, laid out as the model's are; others stay.
    """
    if is_sharded(model):
        let_go(model)  # or the parameters would be the gathered ones
    changed = {name: p for name, p in model.named_parameters() if name in weights}
    kept = {name: local(p).detach().clone() for name, p in changed.items()}
    _put(model, changed, weights)
    try:
        yield
    finally:
        _put(model, changed, kept)


@torch.no_grad()
def _put(model: nn.Module, into: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    if is_sharded(model):
        let_go(model)
    for name, parameter in into.items():
        local(parameter).copy_(local(weights[name]))


def copied(model: nn.Module) -> dict[str, Tensor]:
    """The trained parameters as they are now, by name, laid out as they are."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """A hash of the sums of weights: other weights have other sums.

    Every rank must ask where they are sharded.
    """
    digest = hashlib.blake2b(digest_size=12)
    for name in sorted(weights):
        values = weights[name].detach().double()
        sums = (float(whole(one.sum())) for one in (values, values.square()))
        digest.update(f"{name} {list(sums)!r}".encode())
    return digest.hexdigest()


class EMA:
    """Running mean of a module's trained parameters, with a short horizon at the beginning.

    The decay at step n is min(decay, (1 + n) / (10 + n)), so that the first weights, which are
    noise, are forgotten soon. It is kept in fp32 (or wider, as the parameters are), and sharded as
    they are: every rank averages its own rows. Frozen parameters are their own average.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.shadow = {
            name: p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)
            for name, p in model.named_parameters()
            if p.requires_grad
        }

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's present weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        present = dict(model.named_parameters())
        mean = [local(value) for value in self.shadow.values()]
        now = [local(present[name]).to(m.dtype) for name, m in zip(self.shadow, mean, strict=True)]
        torch._foreach_lerp_(mean, now, 1 - decay)

    def applied(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Inside the block the model carries the averaged weights."""
        return swapped(model, self.shadow)

    def state_dict(self) -> dict[str, object]:
        """Everything `load_state_dict` needs."""
        return {"updates": self.updates, "shadow": self.shadow}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take up a saved average."""
        self.updates = int(state["updates"])  # type: ignore[call-overload]
        self.shadow = dict(state["shadow"])  # type: ignore[call-overload]
