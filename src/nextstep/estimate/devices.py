"""Devices that `plan` knows, with what their makers print of them."""

from __future__ import annotations

import os
from dataclasses import dataclass

from nextstep.errors import NextStepError

GB = 10**9
GPU_EFFICIENCY = 0.40
"""Share of the peak that large dense runs reach: 38 to 43 % in arXiv 2407.21783 section 3.3."""
CPU_EFFICIENCY = 0.45
"""Share of the matmul peak that the training step of the nano model reaches; docs/benchmarks.md."""
USABLE = 0.92
"""Share of a device's memory that a run may fill; the rest is context and fragments."""


@dataclass(frozen=True)
class Device:
    """One accelerator or machine.

    Attributes:
        name: as it is called on the command line.
        flops: peak of dense bf16 matrix products with fp32 sums, per second.
        memory: bytes.
        efficiency: share of the peak that is reckoned with.
        source: where the figures are printed.
    """

    name: str
    flops: float
    memory: float
    efficiency: float
    source: str

    @property
    def is_cpu(self) -> bool:
        """Whether it is this machine's processor."""
        return self.name == "cpu"


PRINTED: dict[str, tuple[float, float, str]] = {
    "b200": (2250, 180, "NVIDIA HGX B200 data sheet"),
    "h200": (989, 141, "NVIDIA H200 data sheet, SXM"),
    "h100": (989, 80, "NVIDIA H100 data sheet, SXM"),
    "h100-pcie": (756, 80, "NVIDIA H100 data sheet, PCIe"),
    "a100": (312, 80, "NVIDIA A100 data sheet, 80 GB"),
    "a100-40": (312, 40, "NVIDIA A100 data sheet, 40 GB"),
    "l40s": (362, 48, "NVIDIA L40S data sheet"),
    "rtx5090": (209.5, 32, "NVIDIA RTX Blackwell white paper"),
    "rtx4090": (165.2, 24, "NVIDIA Ada white paper"),
    "mi300x": (1307, 192, "AMD MI300X data sheet"),
}
"""Name -> (dense bf16 TFLOP/s without sparsity, GB, source)."""
CPU_TFLOPS = 0.4
"""Measured on two AVX-512 cores: docs/log.md, 2026-11-22."""
NAMES = (*PRINTED, "cpu")


def find_device(name: str) -> Device:
    """A device by its name; `cpu` has this machine's memory.

    Raises:
        NextStepError: for an unknown name.
    """
    if name == "cpu":
        memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        return Device(name, CPU_TFLOPS * 1e12, memory, CPU_EFFICIENCY, "docs/log.md, measured")
    if name not in PRINTED:
        raise NextStepError(f"unknown device '{name}'; choose from {', '.join(NAMES)}")
    tflops, memory_gb, source = PRINTED[name]
    return Device(name, tflops * 1e12, memory_gb * GB, GPU_EFFICIENCY, source)
