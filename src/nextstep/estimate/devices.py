"""Devices that `plan` knows, with what their makers print of them."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection
from dataclasses import dataclass, replace

import torch

from nextstep.estimate.printed import PRINTED, check_name
from nextstep.kernels.targets import processor_flags
from nextstep.model.precision import (
    DTYPES,
    PROBED_SIDE,
    SLOW,
    fastest,
    matmul_rate,
    slowdown,
)

GB = 10**9
GPU_EFFICIENCY = 0.40
"""Share of the peak that large dense runs reach: 38 to 43 % in arXiv 2407.21783 section 3.3."""
CPU_EFFICIENCY = {
    ("fp32", "avx2"): 0.59,
    ("fp32", "avx512"): 0.50,
    ("bf16", "avx512"): 0.65,
    ("bf16", "matrix units"): 0.15,
}
"""Share of the matmul peak that the training step of the nano model reaches, by number format and
instructions: the faster the products, the more of a step is something else. docs/benchmarks.md."""
USABLE = 0.92
"""Share of a device's memory that a run may fill; the rest is context and fragments."""


@dataclass(frozen=True)
class Device:
    """One accelerator or machine.

    Attributes:
        name: as it is called on the command line.
        flops: peak of dense matrix products with fp32 sums, per second.
        memory: bytes.
        efficiency: share of the peak that is reckoned with.
        source: where the figures are printed.
        precision: what those products are computed in.
    """

    name: str
    flops: float
    memory: float
    efficiency: float
    source: str
    precision: str = "bf16"

    @property
    def is_cpu(self) -> bool:
        """Whether it is this machine's processor."""
        return self.name == "cpu"


def at_precision(device: Device, precision: str) -> Device:
    """A device as it computes in a precision; of a GPU the bf16 figure stands for all.

    Args:
        device: as `find_device` gives it.
        precision: "bf16" or "fp32".
    """
    if not device.is_cpu:
        return device
    threads = torch.get_num_threads()
    return replace(
        device, flops=_cpu_rate(precision, threads), precision=precision,
        efficiency=_cpu_efficiency(precision, processor_flags()),
        source=f"measured now, {threads} thread(s)",
    )  # fmt: skip


def _cpu_efficiency(precision: str, flags: Collection[str]) -> float:
    """Share of the peak to be reckoned with, by what the processor can; see `CPU_EFFICIENCY`.

    bf16 without instructions for it is emulated, at a small rate that a step reaches nearly whole:
    taken as the best of the measured ones.
    """
    if precision == "bf16" and "amx_bf16" in flags:
        return CPU_EFFICIENCY["bf16", "matrix units"]
    wide = precision == "bf16" or "avx512f" in flags
    return CPU_EFFICIENCY[precision, "avx512" if wide else "avx2"]


@functools.cache
def _cpu_rate(precision: str, threads: int) -> float:
    """Operations a second of a few products on this machine; `threads` marks the measurement."""
    dtype = DTYPES[precision]
    slow = slowdown("cpu", dtype) >= SLOW
    return matmul_rate("cpu", dtype, seconds=0.2, side=PROBED_SIDE if slow else None)


def find_device(name: str) -> Device:
    """A device by its name; `cpu` is this machine, whose memory is read and products are timed.

    Raises:
        NextStepError: for an unknown name.
    """
    if name == "cpu":
        memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        return at_precision(Device(name, 0.0, memory, 0.0, ""), fastest("cpu"))
    check_name(name)
    tflops, memory_gb, source = PRINTED[name]
    return Device(name, tflops * 1e12, memory_gb * GB, GPU_EFFICIENCY, source)
