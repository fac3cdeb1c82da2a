"""What a processor, or one held to an instruction set, makes of the promises of speed.

Every figure comes from a process of its own, as the median of several runs after a warm-up (14B
and 16 at once: the median of three): a picture of nano by kernels and by torch in fp32, sixteen at
once, the command's cold start, the 0.5b backbone with the base head at 64 px in fp32, int8 and int4
against torch in fp32, the 14B shape in int4, a training step in fp32, and what threads lose by
sleeping at their barrier where each has a core. Shares are of the bandwidth, and of torch's product
in fp32, that are measured in the same processes. Prints a table and ends with one line of JSON;
`--json FILE` also writes it.

    python benchmarks/processors.py --target avx2 --json avx2.json
    python benchmarks/processors.py --target native --json native.json

`--target avx2` leaves out all that a processor has beyond AVX2, for kernels and for torch. With two
threads on two free cores each takes under ten minutes; `--parts` chooses some of it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PROMPT = "red apple, noto style, white background"
HELD = {
    "native": {},
    "avx512": {"NEXTSTEP_KERNELS": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"},
    "avx2": {
        "NEXTSTEP_KERNELS": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
}
"""Environments that hold kernels and torch's libraries to an instruction set."""
HELD["avxvnni"] = {
    **HELD["avx2"], "NEXTSTEP_KERNELS": "avxvnni", "ONEDNN_MAX_CPU_ISA": "AVX2_VNNI",
}  # fmt: skip
PARTS = ("nano", "cold", "half", "many", "large", "training", "barrier")
FORMATS = {"fp32": ("fp32", None), "int8": ("fp32", "int8"), "int4": ("fp32", "int4")}
"""Number format of activations, and of weights where it is another one."""
ASKED = {
    "nano picture, times as fast as torch": 4.0,
    "nano picture, s": 0.25,
    "cold start to the PNG, s": 3.0,
    "0.5b fp32, times as fast as torch": 3.0,
    "0.5b int8, times as fast as torch": 5.0,
    "0.5b int4, times as fast as torch": 4.0,
    "nano, 16 at once, of one's rate": 6.0,
    "0.5b fp32, 16 at once, of one's rate": 6.0,
    "0.5b int8, 16 at once, of one's rate": 6.0,
    "14B int4, peak GB": 12.0,
    "training fp32, share of the peak": 0.6,
    "training fp32 compiled, share of the peak": 0.6,
}
"""What is asked of a machine with two AVX2 cores: at most where the name ends with a unit, else at
least."""


class Runner:
    """Runs programs of this folder under one environment.

    Args:
        environment: beside this process' own.
        python: what runs them.
    """

    def __init__(self, environment: dict[str, str], python: str = sys.executable) -> None:
        source = str(HERE.parent / "src")
        path = [source, str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        self.environment = {
            **os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, path)),
        }  # fmt: skip
        self.python = python

    def row(self, program: str, *options: str, limit: float = 300, **more: str) -> dict[str, Any]:
        """The line of JSON that a program ends with; see `rows`."""
        return self.rows(program, *options, limit=limit, **more)[-1]

    def rows(
        self, program: str, *options: str, limit: float = 300, **more: str
    ) -> list[dict[str, Any]]:
        """The lines of JSON that a program prints, with `process_gb`, the most that it held.

        A program that fails or takes longer gives one, {"failed": why}.
        """
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
            command = [self.python, str(HERE / program), *options]
            started = subprocess.Popen(
                command, stdout=out, stderr=errors, env={**self.environment, **more}
            )
            deadline = time.monotonic() + limit
            while not (ended := os.wait4(started.pid, os.WNOHANG))[0]:
                if time.monotonic() > deadline:
                    started.kill()
                    os.wait4(started.pid, 0)
                    return [{"failed": f"out of {limit:.0f} s"}]
                time.sleep(0.05)
            started.returncode = os.waitstatus_to_exitcode(ended[1])
            for stream in (out, errors):
                stream.seek(0)
            lines, told = out.read().splitlines(), errors.read().splitlines()
        if started.returncode or not lines:
            return [{"failed": (told or ["no output"])[-1]}]
        held = {"process_gb": round(ended[2].ru_maxrss * 1024 / 1e9, 2)}
        return [json.loads(line) | held for line in lines]

    def seconds(self, *command: str) -> float:
        """Of a command, from its start to its end."""
        begun = time.perf_counter()
        subprocess.run(command, env=self.environment, check=True, capture_output=True)
        return time.perf_counter() - begun


def nano_pictures(repeats: int, many: int) -> dict[str, Any]:
    """Pictures of nano through the pipeline, pixels included; median seconds."""
    import torch

    from nextstep.kernels import targets
    from nextstep.pipeline import NextStepPipeline

    pipeline = NextStepPipeline.from_pretrained("nano", dtype=torch.float32)
    ways: dict[str, Callable[[], object]] = {
        "picture_s": lambda: pipeline.generate(PROMPT, reasoning=False, seed=1),
        "with_line_s": lambda: pipeline.generate(PROMPT, reasoning=True, seed=1),
    }
    if many:
        ways["many_s"] = lambda: pipeline.generate(
            [PROMPT] * many, reasoning=False, seed=list(range(many)), batch_size=many
        )
    row: dict[str, Any] = {"computes": targets.in_use(), "threads": torch.get_num_threads()}
    for name, way in ways.items():
        way()
        row[name] = round(statistics.median(timed(way, repeats)), 4)
    return row


def timed(call: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each call."""
    found = []
    for _ in range(repeats):
        begun = time.perf_counter()
        call()
        found.append(time.perf_counter() - begun)
    return found


def hashes() -> dict[str, Any]:
    """Whether the committed hashes of tokens and pixels are met."""
    from tests.kernels.hashes import PICTURES, made_up, nano

    known, found = json.loads(PICTURES.read_text()), made_up() | nano()
    return {"met": found == known, "hashes": len(known)}


def barrier(repeats: int) -> dict[str, Any]:
    """A nano picture with threads that sleep at their barrier against ones that only spin."""
    import ctypes

    import torch

    from nextstep.kernels import build, targets
    from nextstep.pipeline import NextStepPipeline

    own = build.target()
    assert own is not None
    times: dict[str, list[float]] = {"sleeping": [], "spinning": []}
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "spinning.so"
        spinning = own._replace(flags=(*own.flags, "-DNEXTSTEP_SPIN=1000000000"))
        targets.compile_library(spinning, library)
        other = ctypes.CDLL(str(library))
        for name in build.NAMES:
            getattr(other, f"nextstep_{name}").restype = None
        ways = {"sleeping": build.load(own), "spinning": other}
        pipeline = NextStepPipeline.from_pretrained("nano", dtype=torch.float32)
        for number in range(2 + repeats):
            for name, loaded in ways.items():
                build.kernels = lambda loaded=loaded: loaded  # type: ignore[misc]
                took = timed(lambda: pipeline.generate(PROMPT, reasoning=False, seed=1), 1)
                times[name] += took if number > 1 else []
    row = {f"{name}_s": round(statistics.median(found), 4) for name, found in times.items()}
    return row | {
        "threads": torch.get_num_threads(),
        "sleeping_to_spinning": round(row["sleeping_s"] / row["spinning_s"], 3),
    }


def picture_options(
    small: bool, format_: str | None, dtype: str, batches: Sequence[int]
) -> list[str]:
    """Options of generate.py for the 0.5b backbone with the base head; small: for nano."""
    model = ["--model", "nano"] if small else ["--model", "0.5b", "--head", "base"]
    size = ["--size", "32", "--steps", "2"] if small else ["--size", "64", "--steps", "20"]
    quantized = ["--quantize", format_] if format_ else []
    repeats = ["--repeats", "1" if small else "3"]
    shape = ["--solver", "v1", "--dtype", dtype, "--batch", *map(str, batches)]
    return [*model, *size, *shape, *quantized, *repeats, "--json"]


def measure(runner: Runner, parts: Sequence[str], small: bool) -> dict[str, Any]:
    """All parts, as the programs give them."""
    row: dict[str, Any] = {}

    def say(name: str, found: object) -> None:
        row[name] = found
        print(f"{name}: {json.dumps(found)}", file=sys.stderr, flush=True)

    def own(*options: str, **more: str) -> dict[str, Any]:
        return runner.row("processors.py", "--worker", *options, **more)

    repeats = "1" if small else "7"
    if "nano" in parts:
        say("hashes", own("hashes"))
        say("nano", own("nano", "--repeats", repeats))
        say("nano torch", own("nano", "--repeats", repeats, NEXTSTEP_KERNELS="off"))
    if "cold" in parts:
        with tempfile.TemporaryDirectory() as folder:
            command = [runner.python, "-m", "nextstep", "generate", PROMPT, "--seed", "1", "-o"]
            count = 1 if small else 3
            times = [runner.seconds(*command, f"{folder}/{n}.png") for n in range(1 + count)][1:]
        say("cold", {"median_s": round(statistics.median(times), 3)})
    if "half" in parts:
        torch_options = picture_options(small, None, "fp32", [1])
        say("0.5b torch", runner.row("generate.py", *torch_options, NEXTSTEP_KERNELS="off"))
    batches = [1, 16] if "many" in parts else [1] if "half" in parts else []
    for name, (dtype, format_) in FORMATS.items() if batches else ():
        # int4 is bound by the same arithmetic as int8 where there are many.
        numbers = batches[:1] if name == "int4" else batches
        options = picture_options(small, format_, dtype, numbers)
        for found in runner.rows("generate.py", *options):
            say(f"0.5b {name} {found.get('batch', 'of any number')}", found)
    if "large" in parts and not small:
        shape = "--model 14b --quantize int4 --dtype bf16 --size 48 --solver v1 --steps 20"
        options = [*shape.split(), "--repeats", "3", "--no-warm-up", "--json"]
        say("14B int4", runner.row("generate.py", *options, limit=400))
    if "training" in parts:
        rows = ["--rows", "2" if small else "8", "--repeats", "1" if small else "5"]
        options = ["--precision", "fp32", *rows, "--no-unpacked", "--json"]
        say("training", runner.row("train_step.py", *options))
        if not small:
            say("training compiled", runner.row("train_step.py", *options, "--compile"))
    if "barrier" in parts:
        say("barrier", own("barrier", "--repeats", "1" if small else "15"))
    return row


def figures(row: dict[str, Any]) -> dict[str, float]:
    """What is asked for, and what explains it, from what was measured."""
    found: dict[str, float] = {}

    def at(part: str, name: str) -> float:
        return float(row.get(part, {}).get(name) or "nan")

    one, plain = at("nano", "picture_s"), at("nano torch", "picture_s")
    found["nano picture, s"] = one
    found["nano picture, times as fast as torch"] = plain / one
    found["nano picture with its line, s"] = at("nano", "with_line_s")
    found["nano picture with its line, times as fast as torch"] = at(
        "nano torch", "with_line_s"
    ) / at("nano", "with_line_s")
    found["nano, 16 at once, of one's rate"] = 16 * one / at("nano", "many_s")
    found["nano, 16 at once, of torch's rate of one"] = 16 * plain / at("nano", "many_s")
    found["cold start to the PNG, s"] = at("cold", "median_s")
    plain = at("0.5b torch", "median_s")
    found["0.5b torch fp32, s"] = plain
    for name in FORMATS:
        one, many, bound = f"0.5b {name} 1", f"0.5b {name} 16", f"0.5b {name}"
        found[f"{bound}, s"] = at(one, "median_s")
        found[f"{bound}, times as fast as torch"] = plain / at(one, "median_s")
        found[f"{bound}, share of the bandwidth"] = at(one, "bound_s") / at(one, "median_s")
        rate = 16 * at(one, "median_s") / at(many, "median_s")
        found[f"{bound}, 16 at once, of one's rate"] = rate
        found[f"{bound}, 16 at once, of torch's rate of one"] = 16 * plain / at(many, "median_s")
        found[f"{bound}, 16 at once, of torch's product"] = at(many, "gflops_per_s") / at(
            many, "matmul_gflops_per_s"
        )
    large = "14B int4"
    tokens = at(large, "median_s") - at(large, "prompts_ms") / 1e3 * 9
    found["14B int4, s a token"] = tokens / 9
    found["14B int4, share of the bandwidth"] = at(large, "bound_s") / tokens
    found["14B int4, s for its prompts"] = at(large, "prompts_ms") / 1e3 * 9
    found["14B int4, peak GB"] = at(large, "peak_gb")
    found["14B int4, peak GB with loading"] = at(large, "process_gb")
    for name in ("training", "training compiled"):
        told = name.replace("training", "training fp32")
        found[f"{told}, share of the peak"] = at(name, "share_of_peak")
        found[f"{told}, tokens/s"] = at(name, "tokens_per_s")
    found["sleeping barrier, time to a spinning one's"] = at("barrier", "sleeping_to_spinning")
    return {name: round(value, 3) for name, value in found.items() if not math.isnan(value)}


def held(name: str, value: float) -> bool | None:
    """Whether a figure is as asked; none where nothing is."""
    if name not in ASKED:
        return None
    at_most = name.endswith((", s", ", peak GB"))
    return value <= ASKED[name] if at_most else value >= ASKED[name]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", choices=HELD, default="native")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--small", action="store_true", help="nano and few runs, to try it out")
    parser.add_argument("--json", type=Path, help="also write the line of JSON there")
    parser.add_argument("--worker", choices=("nano", "hashes", "barrier"), help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=7, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        workers = {
            "nano": lambda: nano_pictures(asked.repeats, 16 if asked.repeats > 1 else 0),
            "hashes": hashes,
            "barrier": lambda: barrier(asked.repeats),
        }
        print(json.dumps(workers[asked.worker]()))
        return
    begun = time.monotonic()
    measured = measure(
        Runner({**HELD[asked.target], "OMP_NUM_THREADS": str(asked.threads)}),
        asked.parts,
        asked.small,
    )
    failed = {name: part["failed"] for name, part in measured.items() if "failed" in part}
    if not measured.get("hashes", {}).get("met", True):
        failed["hashes"] = "the committed ones are not met"
    found = figures(measured)
    print(f"{'figure':<56}{'measured':>10}{'asked':>8}{'held':>6}")
    for name, value in found.items():
        is_held = {True: "yes", False: "no", None: ""}[held(name, value)]
        print(f"{name:<56}{value:>10}{ASKED.get(name, '')!s:>8}{is_held:>6}")
    for name, why in failed.items():
        print(f"{name:<56}failed: {why}")
    line = json.dumps(
        {"target": asked.target, "threads": asked.threads, "small": asked.small,
         "took_s": round(time.monotonic() - begun), "figures": found, "measured": measured}
    )  # fmt: skip
    if asked.json:
        asked.json.write_text(line + "\n")
    print(line)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
