"""What computes in this process: told at a service's start, so that other bytes explain themselves.

A picture's last bits depend on more than its request: kernels or torch, the number format, the
threads, and the instructions that torch found. A process settles all of it when it starts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from nextstep.engine.backends import backend_of
from nextstep.engine.backends.base import Backend
from nextstep.engine.backends.cpu_kernels import KERNELS, number_format
from nextstep.kernels import build
from nextstep.model.nextstep import NextStepModel
from nextstep.model.quantization import OWN, widths_fit

OTHER_MODEL = "the kernels do not know this model's device, widths, number format or layers"


@dataclass(frozen=True)
class RuntimeInfo:
    """How a process computes with a model.

    Attributes:
        backend: its name.
        number_format: of the weights, with what they were rounded to.
        threads: of one operation.
        torch, instructions: its version, and the vector instructions that it uses.
        why_torch: why the kernels are not used, a clause; empty where they are.
        hindered: whether the machine has what kernels need, and they could not be used.
    """

    backend: str
    number_format: str
    threads: int
    torch: str
    instructions: str
    why_torch: str = ""
    hindered: bool = False

    @classmethod
    def of(cls, model: NextStepModel, backend: Backend | None = None) -> RuntimeInfo:
        """With this model and its backend, in this process."""
        name, could = (backend or backend_of(model)).name, _could_be_known(model)
        why = OTHER_MODEL
        if could:
            why = "" if name == KERNELS else build.why_not() or OTHER_MODEL
        return cls(
            name,
            number_format(model),
            torch.get_num_threads(),
            torch.__version__,
            torch.backends.cpu.get_cpu_capability(),
            why,
            could and bool(why) and build.is_hindered(),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def _could_be_known(model: NextStepModel) -> bool:
    """Whether kernels are looked for at all; for other models they are not even compiled."""
    weight = model.embed_tokens.weight
    return weight.device.type == "cpu" and weight.dtype in OWN and widths_fit(model.config)
