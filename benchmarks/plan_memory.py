"""How well `nextstep plan` foresees memory: planned against the measured peak of short CPU runs.

Every run is a process of its own that trains a few steps of a shipped recipe with some values
changed. What is compared is the whole process: the most memory that was resident at any moment
(VmHWM of Linux), interpreter and libraries included. Prints a table and ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from nextstep.estimate.devices import find_device
from nextstep.estimate.plan import make_plan

RECIPES = Path(__file__).parents[1] / "recipes"
BOUND = 0.15
"""Largest relative difference that is called right."""

SMALL = (
    "model.overrides={image_position_side: 8, hidden_size: 512, intermediate_size: 1408, "
    "num_hidden_layers: 12, num_attention_heads: 8, num_key_value_heads: 4}"
)
"""A model of 39 million parameters."""
FRESH = ["model.folder=null", "train_text_tokenizer={vocab_size: 2048}"]
"""Begin without the model of the stage before."""
PLAIN = [*FRESH, "compile=false"]
RUNS: dict[str, tuple[str, list[str]]] = {
    "nano, 128 px": ("singles-nano.yaml", PLAIN),
    "tokenizer, 64 px": ("tokenizer-nano.yaml", []),
    "small, checkpointing": (
        "singles-nano.yaml",
        [
            *PLAIN, SMALL, "activation_checkpointing=true", "data.row_length=1024", "data.rows=4",
            "data.micro_batch_rows=4",
        ],
    ),
    "nano, compiled": ("singles-nano.yaml", FRESH),
    "nano, 64 px": ("pretrain-nano.yaml", ["compile=false"]),
    "nano, checkpointing": ("singles-nano.yaml", [*PLAIN, "activation_checkpointing=true"]),
    "small, fp32": (
        "singles-nano.yaml",
        [*PLAIN, SMALL, "precision=fp32", "data.rows=8", "data.micro_batch_rows=4"],
    ),
    "small, four micro-batches": (
        "singles-nano.yaml", [*PLAIN, SMALL, "data.rows=16", "data.micro_batch_rows=4"],
    ),
}  # fmt: skip
"""Name -> (recipe, changes)."""


PEAK = """
import re, runpy, sys
try:
    runpy.run_module("nextstep", run_name="__main__")
finally:
    with open("/proc/self/status") as status:
        print(re.search(r"VmHWM:\\s+(\\d+) kB", status.read())[1])
"""
"""Runs the `nextstep` command and prints its peak; what `getrusage` tells of a child may be its
parent's."""


def measured_peak(recipe: Path, changes: list[str], folder: Path) -> int:
    """Bytes that were resident at most while `nextstep train` ran."""
    arguments = ["train", str(recipe), *changes, "--folder", str(folder), "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *arguments], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"training ended with status {done.returncode}")
    return int(done.stdout.split()[-1]) * 1024


def main() -> None:
    """Run all, or those named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(RUNS)}; default three")
    parser.add_argument("--steps", type=int, default=6)
    args = parser.parse_args()
    rows = []
    print(f"{'run':<24}{'planned':>12}{'measured':>12}{'difference':>12}")
    for name in args.names or list(RUNS)[:3]:
        recipe, changes = RUNS[name]
        few = [
            f"steps={args.steps}", "samples=null", "schedule={kind: constant, warmup: 0}",
            "saving={minutes: 0, steps: 3}",
        ]  # fmt: skip
        given = [*changes, *few]
        planned = make_plan(RECIPES / recipe, find_device("cpu"), 1, given)
        with tempfile.TemporaryDirectory() as scratch:
            peak = measured_peak(RECIPES / recipe, given, Path(scratch) / "run")
        share = planned.memory_total / peak - 1
        rows.append(
            {
                "run": name,
                "planned_gb": round(planned.memory_total / 1e9, 3),
                "measured_gb": round(peak / 1e9, 3),
                "difference": round(share, 3),
                "parts_gb": {k: round(v / 1e9, 3) for k, v in planned.memory.items()},
            }
        )
        print(
            f"{name:<24}{planned.memory_total / 1e9:>9.3f} GB{peak / 1e9:>9.3f} GB{share:>+12.1%}",
            flush=True,
        )
    worst = max(abs(row["difference"]) for row in rows)
    print(json.dumps({"runs": rows, "worst": worst, "within": worst <= BOUND}))


if __name__ == "__main__":
    main()
