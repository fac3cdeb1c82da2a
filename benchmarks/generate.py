"""How fast pictures are made, and whether company changes them.

Prints a table and ends with one line of JSON. Times are medians after a warm-up, in one process but
for the cold start, which is a fresh one. The bound is the time to read every weight as often as it
is used at the read bandwidth measured in the same run; weights that stay in the caches can beat it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from nextstep import NextStepPipeline
from nextstep.results import GeneratedPicture
from nextstep.world.captions import default_caption
from nextstep.world.vocabulary import COLOURS, sample_objects

PROMPT = "red apple, noto style, white background"
EVALUATIONS = {"midpoint": 2, "heun": 2}


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    """Median over `repeats` calls after one that is thrown away."""
    call()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def cold_start(model: str, repeats: int) -> float:
    """Median seconds from starting the command to its end, picture written."""
    times = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "nextstep", "generate", PROMPT, "--seed", "1"]
            begun = time.perf_counter()
            subprocess.run(
                [*command, "-m", model, "-o", f"{folder}/a.png"], check=True, capture_output=True
            )
            times.append(time.perf_counter() - begun)
    return statistics.median(times)


def read_bandwidth() -> float:
    """Bytes per second of summing a tensor far larger than the caches."""
    block = torch.ones(128 * 2**20)
    return block.numel() * block.element_size() / median_seconds(block.sum, 5)


def bytes_per_picture(pipeline: NextStepPipeline) -> float:
    """Weights read for one picture: the backbone once a token, the head at every evaluation."""
    size = lambda module: sum(p.numel() * p.element_size() for p in module.parameters())  # noqa: E731
    settings = pipeline.defaults.generate
    side = pipeline.image_tokenizer.config.token_pixels
    tokens = pipeline.defaults.height * pipeline.defaults.width // side**2
    asked = settings.steps * EVALUATIONS.get(settings.solver, 1)
    layers = size(pipeline.model.layers)
    return float(tokens * (layers + asked * size(pipeline.model.image_head)))


def differences(pipeline: NextStepPipeline) -> int:
    """Largest pixel difference between a picture alone, in a batch of 8, and in another order."""
    names = sample_objects(8, 3)
    prompts = [default_caption(n, "noto", c) for n, c in zip(names, COLOURS, strict=False)]
    seeds = list(range(8))
    as_array = lambda made: np.asarray(made.image).astype(int)  # noqa: E731
    together = pipeline.generate(prompts, seed=seeds, batch_size=8)
    turned: list[GeneratedPicture] = pipeline.generate(
        prompts[::-1], seed=seeds[::-1], batch_size=8
    )[::-1]
    largest = 0
    for i in range(8):
        alone = as_array(pipeline.generate(prompts[i], seed=seeds[i])[0])
        for other in (together[i], turned[i]):
            largest = max(largest, int(np.abs(alone - as_array(other)).max()))
    return largest


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    begun = time.perf_counter()
    pipeline = NextStepPipeline.from_pretrained(args.model)
    loading = time.perf_counter() - begun
    one = median_seconds(lambda: pipeline.generate(PROMPT), args.repeats)
    eight = median_seconds(lambda: pipeline.generate([PROMPT] * 8, batch_size=8), args.repeats)
    bound = bytes_per_picture(pipeline) / read_bandwidth()
    row = {
        "cold_start_s": round(cold_start(args.model, 3), 2),
        "load_s": round(loading, 2),
        "one_picture_s": round(one, 3),
        "picture_in_batch_of_8_s": round(eight / 8, 3),
        "batch_gain": round(8 * one / eight, 2),
        "memory_bound_s": round(bound, 3),
        "share_of_bound": round(bound / one, 2),
        "largest_pixel_difference": differences(pipeline),
        "threads": torch.get_num_threads(),
        "model": Path(args.model).name,
    }
    for name, value in row.items():
        print(f"{name:<28}{value!s:>10}")
    print(json.dumps(row))


if __name__ == "__main__":
    main()
