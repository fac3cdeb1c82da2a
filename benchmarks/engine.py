"""What byte-equal pictures cost: the engine's fixed blocks against the pipeline's free shapes.

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

import torch
from torch import Tensor

from nextstep.engine.decode import decode_tokens
from nextstep.engine.engine import Engine
from nextstep.engine.request import Request
from nextstep.engine.scheduler import Limits
from nextstep.flow.noise import KeyedNoise
from nextstep.model.pretrained import load_parts

PROMPTS = ("red apple, noto style, white background", "two cats", "blue house", "green car")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def by_engine(engine: Engine, requests: list[Request]) -> list[Tensor]:
    """Tokens of every picture, made together."""
    jobs = [request.job(engine.text_tokenizer, 10**9) for request in requests]
    tickets = [engine.scheduler.submit(job) for job in jobs]
    done = {e.ticket: e.tokens for e in engine.scheduler.run_until_idle() if e.kind == "finished"}
    return [done[ticket] for ticket in tickets]


def by_decoding(engine: Engine, requests: list[Request]) -> list[Tensor]:
    """The same as one batch of free shapes."""
    jobs = [request.job(engine.text_tokenizer, 10**9) for request in requests]
    how = jobs[0].decode
    rows = {name: [job.prompts[name] for job in jobs] for name in how.branches}
    noise = KeyedNoise([job.key for job in jobs], how.solver.draws, engine.model.config.token_size)
    return list(decode_tokens(engine.model, rows, how, noise))


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
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    engine = Engine.of_parts(load_parts(asked.model, DTYPES[asked.dtype]), Limits(2**36))
    rows = []
    print("pictures  free s  blocks s  ratio  blocks: pictures/s  equal free  equal blocks")
    for batch in asked.batch:
        requests = [
            engine.request(PROMPTS[i % len(PROMPTS)], height=asked.size, width=asked.size, index=i)
            for i in range(batch)
        ]
        calls = {"free": lambda r=requests: by_decoding(engine, r),
                 "blocks": lambda r=requests: by_engine(engine, r)}  # fmt: skip
        took = seconds(calls, asked.repeats)
        equal = {}
        for name, make in (("free", by_decoding), ("blocks", by_engine)):
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
