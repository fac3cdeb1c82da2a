"""How fast pictures are made on one CUDA device: seconds, share of its bandwidth, memory.

Models of random weights in bf16, pictures of 512 x 512 pixels, 1, 4 and 16 at once. Tokens of a
picture take nearly the same time each, so as many are drawn as `--seconds` allow and the rest is
reckoned from them; `tokens` says how many. The share is of the bandwidth that copying memory
reaches in the same run, counting every weight as often as sampling must read it. Prints one line of
JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from generate import bytes_a_token, made_up_ids
from torch import nn

from nextstep.config import HEADS, NextStepConfig
from nextstep.engine.backends import backend_of
from nextstep.engine.backends.base import Prompt
from nextstep.engine.decode import DecodeSettings
from nextstep.engine.scheduler import EngineLimits, Scheduler
from nextstep.engine.sequence import ImageSequence
from nextstep.flow.guidance import GuidanceSettings
from nextstep.flow.solvers import SolverSettings, request_times
from nextstep.model.nextstep import NextStepModel

DEVICE = "cuda"
SIDE, CPU_SIDE = 512, 96
"""Pixels of a picture; on a CPU, which only shows that the program runs, few."""
BATCHES = (1, 4, 16)
MODELS = {"0.5b": "base", "14b": ""}
"""What a GPU is measured with, and the head beside its own."""
WARM_UP = 3
"""Tokens before the clock starts: the first learns the solver's times, the next are recorded."""


def random_model(config: NextStepConfig) -> NextStepModel:
    """Random weights that never lie in the processor's memory."""
    with torch.device("meta"):
        model = NextStepModel(config).to(torch.bfloat16)
    model = model.to_empty(device=DEVICE)
    for name, weight in model.named_parameters():
        is_norm = "norm" in name or ("in_ln" in name and name.endswith("weight"))
        weight.data.fill_(1.0) if is_norm else weight.data.normal_(std=0.02)
    return model.eval().requires_grad_(False)


def synchronize() -> None:
    """Wait for what the device was given; a CPU has done it."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def bandwidth() -> float:
    """Bytes per second of copying 4 GB (a CPU: 64 MB), read and written."""
    size = 2**32 if DEVICE == "cuda" else 2**26
    source = torch.empty(size, dtype=torch.uint8, device=DEVICE)
    target, best = torch.empty_like(source), 0.0
    for _ in range(5):
        synchronize()
        begun = time.perf_counter()
        target.copy_(source)
        synchronize()
        best = max(best, 2 * size / (time.perf_counter() - begun))
    return best


def measure(model: NextStepModel, batch: int, seconds: float, best: float) -> dict[str, Any]:
    """Figures of one number of pictures at once."""
    side = SIDE if DEVICE == "cuda" else CPU_SIDE
    config, grid = model.config, (side // 16, side // 16)
    how = DecodeSettings(grid, SolverSettings("ab2", 12), GuidanceSettings(7.5))
    ids = made_up_ids(config, 48)
    prompts = {
        name: Prompt([*ids[: 48 - 36 * place], config.begin_of_image_id])
        for place, name in enumerate(how.branches)
    }
    limits = EngineLimits(cache_bytes=2**36, running=batch)
    scheduler = Scheduler(model, limits, backend=backend_of(model))
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for index in range(batch):
        scheduler.submit(ImageSequence(prompts, how, (0, index)))
    for _ in range(WARM_UP):
        scheduler.step()
    synchronize()
    begun, done = time.perf_counter(), 0
    while done < how.tokens - WARM_UP and time.perf_counter() - begun < seconds:
        scheduler.step()
        synchronize()
        done += 1
    token = (time.perf_counter() - begun) / done
    layers, head = bytes_a_token(model, len(request_times(how.solver)))
    return {
        "batch": batch, "tokens": done, "token_ms": round(token * 1e3, 3),
        "picture_s": round(token * how.tokens / batch, 3),
        "share_of_bandwidth": round((layers + head) / token / best, 3),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if DEVICE == "cuda" else None,
    }  # fmt: skip


@torch.inference_mode()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20, help="for each number of pictures")
    parser.add_argument("--models", nargs="*", choices=[*MODELS, "nano"], default=list(MODELS))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    asked = parser.parse_args()
    global DEVICE  # noqa: PLW0603
    DEVICE = asked.device
    best = bandwidth()
    row: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu",
        "torch": torch.__version__,
        "bandwidth_gb_s": round(best / 1e9, 1),
    }
    for name in asked.models:
        config = NextStepConfig.named(name)
        if MODELS.get(name):
            config = config.with_values(**HEADS[MODELS[name]])
        model: nn.Module = random_model(config)
        assert isinstance(model, NextStepModel)
        row[name] = [measure(model, batch, asked.seconds, best) for batch in BATCHES]
        del model
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
    print(json.dumps(row))


if __name__ == "__main__":
    main()
