"""How fast a training step is, what share of the machine that is, and what packing gains.

One set of packed rows of captions with pictures and edits goes through forward, backward and update
again and again. Image tokens are given, so nothing is encoded. The same samples then go through the
same step one by one, unpacked, their gradients added up. Times are medians after a warm-up; on a
machine that does other work too, `--clock cpu` with one thread counts the processor alone.
The peak is the best matrix product of the same number format before and after, in the same process.
Prints a table and ends with one line of JSON; with --json prints that line alone.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextstep.config import PRECISIONS, SIZES, NextStepConfig
from nextstep.data.documents import Document, derived_seed
from nextstep.data.planning import pack_window
from nextstep.data.steps import Step
from nextstep.model.folder import SHIPPED, find_folder
from nextstep.model.nextstep import NextStepModel
from nextstep.model.precision import DTYPES, matmul_rate, resolved
from nextstep.recipe import host
from nextstep.text.sequence import build_sequence, editing, text_to_image
from nextstep.text.tokenizer import TextTokenizer
from nextstep.train.config import TrainConfig
from nextstep.train.metrics import StepReport
from nextstep.train.parallel import Peers
from nextstep.train.stages.pretrain import PretrainStage
from nextstep.train.step import Stepper
from nextstep.world.captions import caption, style_edit
from nextstep.world.vocabulary import COLOURS, STYLES, sample_objects

Sample = tuple[Document, list[Tensor]]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
EDITS = 0.3
"""Share of samples with two pictures, as in the second stage of nano."""


def sample(number: int, side: int, tokenizer: TextTokenizer, values: int) -> Sample:
    """A captioned picture or an edit of one, its tokens noise; a function of the number alone."""
    rng = random.Random(derived_seed("train_step", number))
    grid, style = (side, side), rng.choice(STYLES)
    if rng.random() < EDITS:
        parts = editing(style_edit(rng, style), [grid], grid)
    else:
        name = sample_objects(1, rng.randrange(2**31))[0]
        parts = text_to_image(caption(rng, name, style, rng.choice(list(COLOURS))), grid)
    sequence = build_sequence(parts, tokenizer)
    generator = torch.Generator().manual_seed(number)
    pictures = [torch.randn(s.count, values, generator=generator) for s in sequence.images]
    images = tuple(range(len(pictures)))
    return Document(f"bench/0/{number}", sequence, images, number), pictures


def packed_rows(args: argparse.Namespace, config: NextStepConfig) -> list[list[Sample]]:
    """Exactly the asked rows, out of somewhat more samples than they hold."""
    folder = find_folder(args.model) if args.model not in SIZES else SHIPPED["nano"]
    tokenizer = TextTokenizer.from_folder(folder)
    made: list[Sample] = []
    while sum(len(document) for document, _ in made) < args.rows * args.row_length:
        made.append(sample(len(made), args.side, tokenizer, config.token_size))
    plan = pack_window([len(document) for document, _ in made], args.row_length)
    plan.sort(key=lambda row: -sum(len(made[index][0]) for index in row))
    return [[made[index] for index in row] for row in plan[: args.rows]]


def build(args: argparse.Namespace) -> NextStepModel:
    """Fresh weights for the name of a size, a folder's weights otherwise; always fp32 masters."""
    if args.model not in SIZES:
        return NextStepModel.from_pretrained(find_folder(args.model), torch.float32, args.device)
    changes = {"image_position_side": args.side} | {
        key: int(value) for key, _, value in (pair.partition("=") for pair in args.set)
    }
    torch.manual_seed(0)
    with torch.device(args.device):
        model = NextStepModel(NextStepConfig.named(args.model).with_values(**changes))
    model.reset_parameters()
    return model


def median_step(
    stepper: Stepper, step: Step, repeats: int, args: argparse.Namespace
) -> tuple[float, StepReport]:
    """Median seconds of a step after two to warm up, and what the last one reports."""
    clock = CLOCKS[args.clock]
    times = []
    for number in range(2 + repeats):
        begun = clock()
        report = stepper.take(step, number)
        if args.device == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - begun)
    return statistics.median(times[2:]), report


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All figures of one model."""
    model = build(args)
    rows = packed_rows(args, model.config)
    samples: Sequence[Sample] = [sample for row in rows for sample in row]
    precision = resolved(args.precision, args.device)
    dtype = DTYPES[precision]
    config = TrainConfig(steps=10**6, learning_rate=1e-5, ema=0.999, precision=precision)
    clock = CLOCKS[args.clock]
    best = matmul_rate(args.device, dtype, seconds=1.0, clock=clock)

    def timed(together: bool) -> tuple[float, StepReport]:
        # Each sample has its own length, for which compiled code would be written anew.
        stage = PretrainStage(
            model.config, row_length=args.row_length, compile=args.compile and together
        )
        if together:
            batches = [stage.batch_of(rows)]
        else:
            alone = lambda one: PretrainStage(model.config, row_length=len(one[0]))  # noqa: E731
            batches = [alone(one).batch_of([[one]]) for one in samples]
        step = Step(batches, tokens=sum(len(document) for document, _ in samples))
        stepper = Stepper(model, stage, config, Peers(None))
        return median_step(stepper, step, args.repeats if together else 3, args)

    alone = timed(together=False)[0] if args.unpacked else None
    seconds, report = timed(together=True)
    best = max(best, matmul_rate(args.device, dtype, seconds=1.0, clock=clock))
    positions = args.rows * args.row_length
    return {
        "model": Path(args.model).name + "".join(f" {pair}" for pair in args.set),
        "parameters_m": round(sum(p.numel() for p in model.parameters()) / 1e6, 2),
        "device": args.device,
        "threads": torch.get_num_threads(),
        "clock": args.clock,
        "precision": precision,
        "compile": args.compile,
        "positions": positions,
        "padding_share": round(1 - report.tokens / positions, 3),
        "step_s": round(seconds, 4),
        "tokens_per_s": round(report.tokens / seconds),
        "gflops_per_s": round(report.flops / seconds / 1e9, 1),
        "matmul_peak_gflops_per_s": round(best / 1e9, 1),
        "share_of_peak": round(report.flops / seconds / best, 3),
        "unpacked_step_s": None if alone is None else round(alone, 4),
        "gain_of_packing": None if alone is None else round(alone / seconds, 2),
        "losses": {name: round(value, 4) for name, value in report.parts().items()},
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano", help="a folder, or the name of a size")
    parser.add_argument(
        "--set", nargs="*", default=[], help="changes of a size, e.g. hidden_size=384"
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--row-length", type=int, default=256)
    parser.add_argument("--side", type=int, default=8, help="image tokens along a picture's side")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--no-unpacked", dest="unpacked", action="store_false")
    parser.add_argument("--json", action="store_true", help="print the line of JSON alone")
    args = parser.parse_args()
    host.settle()
    row = measure(args)
    if not args.json:
        for name, value in row.items():
            print(f"{name:<28}{value!s:>40}")
    print(json.dumps(row))


if __name__ == "__main__":
    main()
