"""Which number format a device computes fast, found by trying it.

A processor without bf16 arithmetic still computes in bf16, because torch emulates it: on two AVX2
cores a bf16 product runs at 1.3 GFLOP/s where fp32 runs at 100. What the processor says of itself
does not decide this: with AVX-512 and bf16 instructions, but without matrix units, oneDNN's bf16
product was measured at 0.6 of the fp32 rate on one processor and at twice that rate on another. So
a small product of each format is timed once in a process, by the processor time that it takes, so
that other work on the machine does not change the answer; the formats lie far apart (0.01, 0.2,
0.6, 2, 2.8 and 5 times fp32 were measured).
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable

import torch

from nextstep.config import PRECISIONS
from nextstep.errors import NextStepError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SLOW = 3.0
"""Slowdown from which on somebody who asked for a format is warned. Below it what is saved in
reading weights may outweigh it."""
PROBED_SIDE = 256
"""Side of the matrices that are timed: 25 ms for a product at 1.3 GFLOP/s."""


def matmul_rate(
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    seconds: float = 0.3,
    side: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Measured operations per second of one square matrix product, the best of several.

    Args:
        device: where.
        dtype: of the matrices.
        seconds: how long to measure, after a warm-up; at least two products are timed.
        side: of the matrices; default 8192 on a GPU, 1024 on a CPU.
        clock: seconds; one of processor time leaves out what else the machine does.
    """
    place = torch.device(device)
    n = side or (8192 if place.type == "cuda" else 1024)
    a, b = (torch.ones(n, n, device=place, dtype=dtype) for _ in range(2))
    out = a @ b
    best, timed = float("inf"), 0
    begun = time.perf_counter()
    while timed < 2 or time.perf_counter() - begun < seconds:
        _wait_for(place)
        start = clock()
        torch.mm(a, b, out=out)
        _wait_for(place)
        best = min(best, max(clock() - start, 1e-9))
        timed += 1
    return 2 * n**3 / best


def _wait_for(place: torch.device) -> None:
    if place.type == "cuda":
        torch.cuda.synchronize(place)


@functools.cache
def slowdown(kind: str, dtype: torch.dtype) -> float:
    """How many times as long a matrix product takes as in fp32; below 1 where it is faster.

    Measured on a CPU. A GPU counts as 0, which is fast, where it has the format.

    Args:
        kind: of the device, such as "cpu".
        dtype: of the matrices.
    """
    if dtype == torch.float32:
        return 1.0
    if kind == "cuda" and dtype == torch.bfloat16:
        return 0.0 if torch.cuda.is_bf16_supported(including_emulation=False) else float("inf")
    if kind != "cpu":
        return 0.0
    fp32, other = (
        matmul_rate(kind, format_, seconds=0.02, side=PROBED_SIDE, clock=time.thread_time)
        for format_ in (torch.float32, dtype)
    )
    return fp32 / other


def fastest(device: torch.device | str) -> str:
    """The name of bf16 where the device computes it at least as fast as fp32, else of fp32."""
    return "bf16" if slowdown(torch.device(device).type, torch.bfloat16) <= 1 else "fp32"


def resolved(precision: str, device: torch.device | str) -> str:
    """A precision with "auto" replaced by what is fastest on a device.

    Raises:
        NextStepError: for an unknown precision.
    """
    if precision not in PRECISIONS:
        raise NextStepError(
            f"precision '{precision}' is unknown; choose from {', '.join(PRECISIONS)}"
        )
    return fastest(device) if precision == "auto" else precision


def explained(device: torch.device | str) -> str:
    """What `fastest` found, as a clause for people."""
    factor = slowdown(torch.device(device).type, torch.bfloat16)
    if factor == 0:
        return "this device computes bf16"
    if factor <= 1:
        return f"a bf16 product is {1 / factor:.1f} times as fast as an fp32 one here"
    return f"a bf16 product takes {factor:.3g} times as long as an fp32 one here"


@functools.cache
def warn_if_slow(kind: str, dtype: torch.dtype) -> None:
    """Warn once where a number format that somebody asked for is emulated.

    Args:
        kind: of the device, such as "cpu".
        dtype: what was asked for.
    """
    factor = slowdown(kind, dtype)
    if factor >= SLOW:
        name = next(name for name, known in DTYPES.items() if known == dtype)
        warnings.warn(
            f"{name} is emulated on this processor: a product takes {factor:.3g} times as long "
            "as in fp32; choose fp32, or auto",
            stacklevel=2,
        )
