"""What batch invariance costs: blocks of fixed size against free shapes.

Prints a table and ends with one line of JSON. Both sample the tokens of the same pictures with the
model's own settings; nothing is decoded to pixels. Seconds are the processor's, the least of
several runs that take turns, because the machine may be shared. Also says whether the
last picture of a batch has the bytes that it has alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from nextstep.engine.backends import backend_of
from nextstep.engine.backends.base import ROWS
from nextstep.engine.engine import Engine
from nextstep.engine.pretrained import load_parts
from nextstep.engine.request import Request
from nextstep.engine.scheduler import EngineLimits, draw
from nextstep.model.quantization import pack_for_sampling

PROMPTS = ("red apple, noto style, white background", "two cats", "blue house", "green car")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def tokens(engine: Engine, requests: list[Request], invariant: bool) -> list[Tensor]:
    """Tokens of every picture, made together."""
    jobs = [request.sequence(engine.text_tokenizer, 10**9) for request in requests]
    return draw(engine.model, jobs, backend_of(engine.model, ROWS if invariant else 0))


by_blocks, by_free_shapes = partial(tokens, invariant=True), partial(tokens, invariant=False)


def seconds(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Least processor time of each, taken in turns."""
    least = dict.fromkeys(calls, float("inf"))
    for _ in range(repeats):
        for name, call in calls.items():
            begun = time.process_time()
            call()
            least[name] = min(least[name], time.process_time() - begun)
    return least


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--size", type=int, default=128, help="pixels of a side")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kernels", action="store_true", help="with kernels, which need no blocks")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    own = load_parts(asked.model, DTYPES[asked.dtype])
    if asked.kernels:
        pack_for_sampling(own.model)
    engine = Engine(
        own.model, own.text_tokenizer, own.image_tokenizer, own.defaults, EngineLimits(2**36)
    )
    rows = []
    print("pictures  free s  blocks s  ratio  blocks: pictures/s  equal free  equal blocks")
    for batch in asked.batch:
        requests = [
            engine.request(PROMPTS[i % len(PROMPTS)], height=asked.size, width=asked.size, index=i)
            for i in range(batch)
        ]
        calls = {"free": lambda r=requests: by_free_shapes(engine, r),
                 "blocks": lambda r=requests: by_blocks(engine, r)}  # fmt: skip
        took = seconds(calls, asked.repeats)
        equal = {}
        for name, make in (("free", by_free_shapes), ("blocks", by_blocks)):
            last = make(engine, requests)[-1]
            equal[name] = torch.equal(last, make(engine, requests[-1:])[0])
        row = {"pictures": batch, "last_equal_alone": equal}
        row |= {f"{name}_s": round(value, 3) for name, value in took.items()}
        row["ratio"] = round(took["blocks"] / took["free"], 2)
        rows.append(row)
        print(
            f"{batch:8d}{took['free']:8.2f}{took['blocks']:10.2f}{row['ratio']:7.2f}"
            f"{batch / took['blocks']:20.2f}{equal['free']!s:>12}{equal['blocks']!s:>14}",
            flush=True,
        )
    told = {"model": asked.model, "dtype": asked.dtype, "size": asked.size,
            "threads": asked.threads, "clock": "cpu", "rows": rows}  # fmt: skip
    print(json.dumps(told))


if __name__ == "__main__":
    main()
