"""What makers print of their accelerators. Nothing here needs torch."""

from __future__ import annotations

from nextstep.errors import NextStepError

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
NAMES = (*PRINTED, "cpu")


def check_name(name: str) -> None:
    """Refuse a device that nobody printed anything of.

    Raises:
        NextStepError: for one.
    """
    if name not in NAMES:
        raise NextStepError(f"unknown device '{name}'; choose from {', '.join(NAMES)}")
