"""Devices by name, and whether this machine has them."""

from __future__ import annotations

from nextstep.errors import NextStepError

KINDS = ("cpu", "cuda", "mps", "xpu")


def check_device(name: str) -> str:
    """The name of a device, such as "cpu" or "cuda:1", if this machine has it.

    Raises:
        NextStepError: when it does not, or there is no such kind.
    """
    kind = name.partition(":")[0]
    if kind not in KINDS:
        raise NextStepError(f"unknown device '{name}'; choose from {', '.join(KINDS)}")
    import torch

    counts = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
        "xpu": torch.xpu.device_count() if torch.xpu.is_available() else 0,
    }
    there = [own for own, count in counts.items() if count]
    try:
        index = torch.device(name).index or 0
    except RuntimeError:
        raise NextStepError(f"'{name}' names no device; give {kind} or {kind}:0") from None
    if index >= counts[kind]:
        found = f"{counts[kind]} of kind {kind}" if counts[kind] else f"no {kind}"
        raise NextStepError(
            f"device '{name}' cannot be used here: PyTorch finds {found} on this machine; "
            f"it can use {', '.join(there)}"
        )
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise NextStepError(f"device '{name}' cannot be used here: {reason}") from None
    return name
