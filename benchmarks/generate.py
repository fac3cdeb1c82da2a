"""How fast pictures are made: seconds, where they go, bytes moved, memory.

Prints a table and ends with one line of JSON. `--model` is a folder, "nano", or the name of a size
(0.5b, 3b, 14b), which is filled with random numbers layer by layer; with `--head` it takes another
flow head. Several numbers of pictures at once print a line each. Seconds are the least of several
runs, because the machine may be shared, and their median; `--clock cpu` with one thread counts the
processor's. The bound is the time to read every weight as often as sampling must, at the bandwidth
measured in the same run: layers once a token, the head's modulation once a token, the rest of the
head at every call. Weights that stay in the caches beat it. Random weights are numbers of bf16 in
either dtype, as the released ones are. The peak of memory is that of the measured runs, loading
left out. `--alike` shows what is left where memory is no limit.
`--direct` is the way to compare with: torch without kernels, and the whole head at every solver
step, as the released code asks it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from random_weights import make_alike, random_model
from torch import Tensor, nn

from nextstep.config import HEADS, SIZES, NextStepConfig
from nextstep.engine.backends import backend_of
from nextstep.engine.backends import torch as plain_backend
from nextstep.engine.backends.base import Prompt
from nextstep.engine.backends.cpu_kernels import Core, CpuKernels, core_of
from nextstep.engine.backends.sampling_head import SamplingHead, SolverGroup
from nextstep.engine.backends.torch import TorchBackend
from nextstep.engine.decode import DecodeSettings
from nextstep.engine.jacobi import DEFAULT_TOLERANCE, JacobiDecoding
from nextstep.engine.pretrained import load_parts
from nextstep.engine.scheduler import draw
from nextstep.engine.sequence import ImageSequence
from nextstep.flow.guidance import GuidanceSettings
from nextstep.flow.solvers import SolverSettings, request_times
from nextstep.kernels.linear import PackedLinear, huge_pages, packed_bytes
from nextstep.model.nextstep import NextStepModel
from nextstep.model.precision import matmul_rate
from nextstep.model.quantization import (
    pack_for_sampling,
)
from nextstep.vae.config import AutoencoderConfig
from nextstep.vae.tokenizer import ImageTokenizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PROMPT = "red apple, noto style, white background"
WORDS, NOTHING = 24, 8
"""Ids of a made-up prompt, and of the branch without it."""


def read_bandwidth(clock: str) -> float:
    """Bytes per second of adding up memory far larger than most caches, in huge pages."""
    block = huge_pages(2**30).view(torch.float32).fill_(1)
    return 2**30 / min(_seconds(block.sum, clock) for _ in range(10))


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def _seconds(call: Callable[[], object], clock: str = "wall") -> float:
    begun = CLOCKS[clock]()
    call()
    return CLOCKS[clock]() - begun


def load(asked: argparse.Namespace) -> tuple[NextStepModel, ImageTokenizer]:
    """Model and image tokenizer of the options."""
    dtype = DTYPES[asked.dtype]
    if asked.model in SIZES and asked.model != "nano":
        config = NextStepConfig.named(asked.model)
        if asked.head:
            config = config.with_values(**HEADS[asked.head])
        model = random_model(config, dtype, asked.quantize, asked.plain, asked.compressed)
        return model, ImageTokenizer(AutoencoderConfig())
    parts = load_parts(asked.model, dtype, quantize=asked.quantize)
    if not asked.quantize and not asked.plain:
        pack_for_sampling(parts.model)
    return parts.model, parts.image_tokenizer


def bytes_a_token(model: NextStepModel, calls: int) -> tuple[float, float]:
    """Weights read for one token of all pictures together, by backbone and by head."""

    def size(module: nn.Module) -> int:
        return packed_bytes(module)

    head = model.image_head
    once = sum(size(block.adaLN_modulation) for block in head.net.blocks())
    once += size(head.net.final_layer.adaLN_modulation) + size(head.net.cond_embed)
    each = size(head) - once - size(head.net.time_embed)
    return float(size(model.layers)), float(once + calls * each)


def flop_a_token(model: NextStepModel, calls: int, branches: int) -> float:
    """Operations of the products for one token of one picture; a product and a sum are two."""

    def size(module: nn.Module) -> int:
        linear = (p for p in module.modules() if isinstance(p, nn.Linear | PackedLinear))
        return sum(part.out_features * part.in_features for part in linear)

    head = model.image_head
    beside = size(head.net.cond_embed)
    once = size(model.layers) + size(model.image_out_projector) + beside
    each = size(head) - size(head.net.time_embed) - beside
    return 2.0 * branches * (once + calls * each)


def made_up_ids(config: NextStepConfig, length: int) -> list[int]:
    """Text ids that every vocabulary has, over and over where it is small; none with a meaning."""
    special = {
        config.begin_of_image_id, config.end_of_image_id, config.image_placeholder_id,
        config.eos_id, config.pad_id,
    }  # fmt: skip
    ordinary = [number for number in range(min(config.vocab_size, 1000)) if number not in special]
    return [ordinary[place % len(ordinary)] for place in range(length)]


def peak_bytes() -> int:
    """Most memory this process held since the mark was last reset."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


class DirectHead(SamplingHead):
    """The head asked as a plain sampling loop asks: everything anew at every call."""

    def integrate(self, groups: list[SolverGroup]) -> None:
        """Let every group's solver run to its tokens."""
        for group in groups:
            condition = self.model.image_condition(group.hidden)
            for t in request_times(group.solver):
                x = group.x.to(condition.dtype).repeat(len(group.branches), 1)
                group.answer(self.head(x, torch.full((len(x),), t), condition).float())


@contextmanager
def clocks(clock: str) -> Iterator[dict[str, float]]:
    """Seconds inside backbone and head, and in reading prompts."""
    spent: dict[str, float] = defaultdict(float)
    inside: list[str] = []
    timed: list[tuple[Any, str, str]] = [
        (Core, "feed", "backbone"), (Core, "sample", "head"),
        (TorchBackend, "step", "backbone"), (SamplingHead, "sample", "head"),
        (TorchBackend, "prefill", "prompts"), (CpuKernels, "prefill", "prompts"),
    ]  # fmt: skip
    before = [getattr(owner, name) for owner, name, _ in timed]

    def wrapped(inner: Callable[..., Any], part: str) -> Callable[..., Any]:
        def call(*values: Any) -> Any:
            if inside:  # prompts go through the backbone too
                return inner(*values)
            begun = CLOCKS[clock]()
            inside.append(part)
            try:
                return inner(*values)
            finally:
                inside.pop()
                spent[part] += CLOCKS[clock]() - begun

        return call

    for (owner, name, part), inner in zip(timed, before, strict=True):
        setattr(owner, name, wrapped(inner, part))
    try:
        yield spent
    finally:
        for (owner, name, _), inner in zip(timed, before, strict=True):
            setattr(owner, name, inner)


def sampling(
    model: NextStepModel, asked: argparse.Namespace, jacobi: JacobiDecoding
) -> Callable[[], Tensor]:
    """A call that samples the tokens of `asked.batch` pictures."""
    side = asked.size // 16
    solver = SolverSettings(asked.solver, asked.steps)
    guidance = GuidanceSettings(asked.guidance)
    how = DecodeSettings((side, side), solver, guidance, jacobi=jacobi)
    config = model.config
    prompts = {
        name: Prompt([*made_up_ids(config, length), config.begin_of_image_id])
        for name, length in zip(how.branches, (WORDS, NOTHING), strict=False)
    }
    jobs = [ImageSequence(prompts, how, (0, index)) for index in range(asked.batch)]
    return lambda: torch.stack(draw(model, jobs, backend_of(model, block_rows=0)))


def ahead(model: NextStepModel, asked: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """What Jacobi decoding gains over one token after another, and what it costs."""
    jacobi, passes = JacobiDecoding(asked.jacobi_window, asked.jacobi_tolerance), list[int]()
    settle = JacobiDecoding.settle

    def counted(self: JacobiDecoding, *values: Any) -> list[Tensor]:
        known = settle(self, *values)
        passes.append(len(known))
        return known

    plain_call, plain_seconds = sampling(model, asked, JacobiDecoding()), []
    plain = plain_call()
    for _ in range(asked.repeats):
        plain_seconds.append(_seconds(plain_call, asked.clock))
    JacobiDecoding.settle = counted  # type: ignore[method-assign,assignment]
    made = sampling(model, asked, jacobi)()
    JacobiDecoding.settle = settle  # type: ignore[method-assign]
    return {
        "jacobi_window": asked.jacobi_window, "jacobi_tolerance": asked.jacobi_tolerance,
        "tokens_a_pass": round(sum(passes) / len(passes), 3),
        "plain_sampling_s": round(min(plain_seconds), 3),
        "gain": round(min(plain_seconds) / seconds, 3),
        "token_distance": round(float((made - plain).square().mean().sqrt()), 4),
    }  # fmt: skip


class Machine(NamedTuple):
    """What the same process measured of the machine: bytes and operations per second."""

    bandwidth: float
    product: float


def measure(
    asked: argparse.Namespace,
    machine: Machine,
    model: NextStepModel,
    tokenizer: ImageTokenizer,
) -> dict[str, Any]:
    """All figures of `asked.batch` pictures at once."""
    jacobi = JacobiDecoding(asked.jacobi_window, asked.jacobi_tolerance)
    call, solver = sampling(model, asked, jacobi), SolverSettings(asked.solver, asked.steps)
    calls = len(request_times(solver))
    layers, head = bytes_a_token(model, calls)
    weights = packed_bytes(model) / 1e9
    if asked.alike:
        make_alike(model)
    if asked.warm:
        call()
    # From here on the peak is counted anew.
    Path("/proc/self/clear_refs").write_text("5")
    times, parts = [], []
    for _ in range(asked.repeats):
        with clocks(asked.clock) as spent:
            times.append(_seconds(call, asked.clock))
        parts.append(dict(spent))
    seconds, tokens = min(times), (asked.size // 16) ** 2
    spent = parts[times.index(seconds)]
    peak = peak_bytes() / 1e9
    pixels = torch.randn(1, tokens, model.config.token_size)
    grid = (asked.size // 16, asked.size // 16)
    with torch.inference_mode():
        decoding = min(
            _seconds(lambda: tokenizer.decode_tokens(pixels, grid), asked.clock) for _ in range(3)
        )
    bound = tokens * (layers + head) / machine.bandwidth
    branches = 2 if asked.guidance != 1 else 1
    flop = asked.batch * tokens * flop_a_token(model, calls, branches)
    rest = seconds - sum(spent.values())
    return {
        "model": Path(asked.model).name, "head": asked.head or "own", "size": asked.size,
        "solver": asked.solver, "steps": asked.steps, "head_calls": calls,
        "guidance": asked.guidance, "batch": asked.batch, "dtype": asked.dtype,
        "quantize": asked.quantize or "none", "clock": asked.clock,
        "threads": torch.get_num_threads(),
        "kernels": core_of(model) is not None, "direct": asked.direct,
        "sampling_s": round(seconds, 3), "median_s": round(statistics.median(times), 4),
        "gflop": round(flop / 1e9, 4),
        "gflops_per_s": round(flop / statistics.median(times) / 1e9, 1),
        "matmul_gflops_per_s": round(machine.product / 1e9, 1),
        "picture_s": round(seconds / asked.batch, 4), "pixels_s": round(decoding, 4),
        "pictures_per_s": round(asked.batch / (seconds + asked.batch * decoding), 3),
        "token_ms": round(seconds / tokens * 1e3, 3),
        **{f"{part}_ms": round(spent.get(part, 0.0) / tokens * 1e3, 3)
           for part in ("backbone", "head", "prompts")},
        "rest_ms": round(rest / tokens * 1e3, 3),
        "mb_a_token": round((layers + head) / 1e6, 1),
        "bandwidth_gb_s": round(machine.bandwidth / 1e9, 1), "bound_s": round(bound, 3),
        "share_of_bound": round(bound / seconds, 3),
        "weights_gb": round(weights, 3),
        "peak_gb": round(peak, 3),
        **(ahead(model, asked, seconds) if asked.jacobi_window > 1 else {}),
    }  # fmt: skip


def cold_start(model: str, repeats: int = 3) -> float:
    """Median seconds from starting the command to its end, picture written."""
    times = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable,
                "-m",
                "nextstep",
                "generate",
                PROMPT,
                "--seed",
                "1",
                "-m",
                model,
            ]
            call = [*command, "-o", f"{folder}/a.png"]
            times.append(_seconds(lambda: subprocess.run(call, check=True, capture_output=True)))  # noqa: B023
    return statistics.median(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano", help="folder, nano, 0.5b, 3b or 14b")
    parser.add_argument("--head", choices=HEADS, help="another flow head, for sizes")
    parser.add_argument("--size", type=int, default=128, help="pixels of a side")
    parser.add_argument("--solver", default="ab2")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--jacobi-window", type=int, default=1, help="tokens sampled in one pass")
    parser.add_argument("--jacobi-tolerance", type=float, default=DEFAULT_TOLERANCE)
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--quantize", help="int8, int4, bf16 or backbone/head")
    parser.add_argument("--plain", action="store_true", help="through torch, without kernels")
    parser.add_argument(
        "--direct", action="store_true", help="plain, and the whole head at every solver step"
    )
    parser.add_argument(
        "--uncompressed", dest="compressed", action="store_false",
        help="random weights of bf16 in 16 bits (in fp32: 32), as if they did not fit into 12",
    )  # fmt: skip
    parser.add_argument(
        "--alike", action="store_true",
        help="layers share the weights of the first, so that memory is no limit",
    )  # fmt: skip
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-warm-up", dest="warm", action="store_false")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--cold", action="store_true", help="also the command's cold start")
    parser.add_argument("--json", action="store_true", help="only the line of JSON")
    asked = parser.parse_args()
    if asked.alike and len(asked.batch) > 1:
        parser.error("--alike changes the model: give one number of pictures")
    if asked.threads:
        torch.set_num_threads(asked.threads)
    if asked.direct:
        asked.plain, plain_backend.SamplingHead = True, DirectHead  # type: ignore[misc]
    product = matmul_rate("cpu", torch.float32, clock=CLOCKS[asked.clock])
    machine = Machine(read_bandwidth(asked.clock), product)
    model, tokenizer = load(asked)
    batches = asked.batch
    for asked.batch in batches:
        row = measure(asked, machine, model, tokenizer)
        asked.warm = False  # the first number of pictures warmed up for the others
        if asked.cold:
            row["cold_start_s"] = round(cold_start(asked.model), 2)
        if not asked.json:
            for name, value in row.items():
                print(f"{name:<20}{value!s:>12}")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
