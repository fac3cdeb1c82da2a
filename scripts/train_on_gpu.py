"""What `train_on_gpu.sh` runs: preflight, two stages by the clock, weights in parts, a short card.

Every part is a process of its own with a time limit, so that one that hangs or fails costs its own
time and no more: a stage whose compiled code does not start is begun again without it, one that
breaks off is finished from its newest checkpoint, and weights are packed before anything is scored.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import split_weights

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "gpu-nano.yaml"
NEEDED = ("torch", "numpy", "PIL", "yaml", "safetensors", "tokenizers", "pydantic")
RUN = [sys.executable, str(Path(__file__).resolve())]

FIRST_STAGE = 0.5
"""Share of the training time that core-144 has, compiling included."""
RESERVE = 1.9
"""Minutes of nine that are kept for starting, packing and scoring."""
START_SECONDS = 150
"""In which a stage must have taken a step, compiling included; else it begins again without."""
WRITING = 6
"""Seconds that opening and writing the model take beside the training."""
FULL = [f"data.sources[{place}].world.options.edition=full" for place in range(5)]
"""What turns the recipe from core-144 to the full edition."""
GROUPS = ("drawing", "editing", "story", "next_state", "recall", "reading")
WAYS = (
    ("compiled", ["compile=true"], "flex"),
    ("plain", ["compile=false"], "flex"),
    ("plain, attention by groups", ["compile=false"], "groups"),
)
"""How a stage is run, best first: (name, changes of the recipe, attention)."""


@dataclass(frozen=True)
class Plan:
    """What a run or a rehearsal does.

    Attributes:
        device: that computes.
        changes: of the recipe in both stages.
        ways: that are tried in turn.
        scored: (edition, items of each task) in order of importance.
        groups: of tasks that are scored.
        tasks: all of a group when empty.
    """

    device: str
    changes: list[str]
    ways: Sequence[tuple[str, list[str], str]] = WAYS
    scored: Sequence[tuple[str, int]] = (("core-48", 8), ("core-144", 8), ("full", 6))
    groups: Sequence[str] = GROUPS


SMALL = ["data.rows=2", "data.micro_batch_rows=2", "data.processes=2", "data.ahead=2"]
PLANS = {
    "": Plan("cuda", []),
    "1": Plan(
        "cpu",
        [*SMALL, "precision=auto"],
        (("compiled", ["compile=true"], "groups"), ("plain", ["compile=false"], "groups")),
        (("core-48", 1),),
    ),
    "tiny": Plan(
        "cpu",
        [*SMALL, "data.rows=1", "data.micro_batch_rows=1", "data.processes=1", "steps=2",
         "schedule.warmup=1", "schedule.decay=1", "data.window_rows=2", "precision=fp32"],
        (("plain", ["compile=false"], "groups"),),
        (("core-48", 1),),
        ("single",),
    ),
}  # fmt: skip


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--rehearse", choices=sorted(PLANS), default="")
    parser.add_argument("--part", help="JSON of a part, which this process is")
    asked = parser.parse_args()
    if asked.part:
        part = json.loads(asked.part)
        return {"train": train, "score": score}[part.pop("name")](**part)
    plan, end = PLANS[asked.rehearse], time.monotonic() + 60 * asked.minutes
    if missing := list(preflight(plan.device)):
        print("\n".join(missing))
        return 2
    work = Path(tempfile.mkdtemp(prefix="nextstep-gpu-"))
    try:
        return run(plan, asked.out, work, end, asked.minutes)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def preflight(device: str) -> Iterator[str]:
    """A sentence for everything without which nothing can start; notes on the rest are printed."""
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            yield f"The Python package {name} is missing: {sys.executable} cannot import it."
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, {os.cpu_count()} cores.")
    if device == "cuda" and not torch.cuda.is_available():
        yield "PyTorch finds no CUDA device here."
    elif device == "cuda":
        print(f"The device is a {torch.cuda.get_device_name()}.")
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        print("There is no C compiler, so training runs without compiled code, and slower.")
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < 4 * 2**30:
        yield f"{tempfile.gettempdir()} has {free / 2**30:.1f} GiB free; 4 are needed."


def run(plan: Plan, out: Path, work: Path, end: float, minutes: float) -> int:
    """Train, pack, score; what there is comes back whatever fails."""
    left = (end - time.monotonic()) / 60 - RESERVE * minutes / 9
    stages = (("core-144", [], FIRST_STAGE * left), ("full", FULL, (1 - FIRST_STAGE) * left))
    model = "nano"
    for name, changes, time_for_it in stages:
        folder = work / name
        trained = stage(plan, folder, [*changes, f"model.folder={model}"], time_for_it)
        append_log(name, work, folder, out / "log.jsonl")
        if trained is None:
            continue
        model = str(trained)
        files = split_weights.split(trained, out)
        print(f"Packed the weights of {name}: {', '.join(files)}.")
        write_readme(out, name)
    if model == "nano":
        print("Nothing was trained: see above and log.jsonl.")
        return 1
    limit = end - time.monotonic() - 8
    part("score", limit, model=model, out=str(out), work=str(work), device=plan.device,
         time_for_it=limit - 5, scored=list(plan.scored), groups=list(plan.groups))  # fmt: skip
    return 0


def stage(plan: Plan, folder: Path, changes: list[str], minutes: float) -> Path | None:
    """Train one stage; the folder of its model, None when no way of training works."""
    end = time.time() + 60 * minutes
    for way, how, attention in plan.ways:
        told = {"folder": str(folder), "device": plan.device, "attention": attention}
        left = (end - time.time()) / 60
        if left <= 0:
            break
        own = [*changes, *plan.changes, *how]
        print(f"{folder.name}: {way}, {left:.1f} minutes.")
        part("train", 60 * left + 40, folder, **told, end=end, changes=own)
        if not (folder / "model").is_dir() and any((folder / "checkpoints").glob("step-*")):
            print(f"{folder.name}: broke off, and is finished from its newest checkpoint.")
            part("train", 60, **told, end=0.0, changes=[*own, "data.processes=0"])
        if (folder / "model").is_dir():
            return folder / "model"
        shutil.rmtree(folder, ignore_errors=True)
    return None


def part(name: str, seconds: float, starts: Path | None = None, **options: Any) -> None:
    """Run a part in a process of its own and end it when it is late.

    Args:
        name: of the part.
        seconds: it may take.
        starts: folder of a run that must have logged a step within `START_SECONDS`.
        options: of the part.
    """
    told = json.dumps({"name": name, **options})
    process = subprocess.Popen([*RUN, "-", "--part", told])
    begun = time.monotonic()
    while process.poll() is None:
        taken = time.monotonic() - begun
        late = starts is not None and taken > START_SECONDS and not has_started(starts)
        if taken > seconds or late:
            print(f"{name}: ended after {taken:.0f} s{', before its first step' if late else ''}.")
            process.kill()  # worker processes end with it
            process.wait()
        time.sleep(0.2)
    print(f"{name}: exit status {process.returncode} after {time.monotonic() - begun:.1f} s.")


def has_started(folder: Path) -> bool:
    """Whether a run has logged a step."""
    log = folder / "log.jsonl"
    return log.is_file() and '"loss"' in log.read_text("utf-8")


def append_log(name: str, work: Path, folder: Path, log: Path) -> None:
    """Put a stage's log behind the others, each line with the stage's name."""
    source = folder / "log.jsonl"
    rows = source.read_text("utf-8").splitlines() if source.is_file() else []
    text = [json.dumps({"stage": name, **json.loads(row)}) for row in rows]
    fresh = not (work / "logged").exists()
    (work / "logged").touch()
    before = "" if fresh or not log.exists() else log.read_text("utf-8")
    log.write_text(before + "".join(f"{row}\n" for row in text), "utf-8")


def train(folder: str, device: str, attention: str, end: float, changes: list[str]) -> int:
    """The part that trains a stage until `end`, in seconds as `time.time` counts them."""
    from nextstep.recipe.load import load_recipe
    from nextstep.recipe.run import run_recipe
    from nextstep.recipe.sequence_parts import SequenceParts

    minutes = max((end - time.time() - WRITING) / 60, 1e-6)
    recipe = load_recipe(RECIPE, [*changes, f"minutes={minutes:.7f}"])

    def parts(*given: Any) -> SequenceParts:
        made = SequenceParts(*given)
        made.stage.attention = attention
        return made

    outcome = run_recipe(recipe, Path(folder), where=RECIPE.name, device=device, make_parts=parts)
    print(f"{Path(folder).name}: {outcome.step} steps.")
    return 0 if outcome.finished else 1


def score(
    model: str, out: str, work: str, device: str, time_for_it: float,
    scored: list[tuple[str, int]], groups: list[str],
) -> int:  # fmt: skip
    """The part that scores the model, group by group while there is time; writes card.json."""
    from nextstep.evaluate.benchmarks import generation, scoring
    from nextstep.evaluate.benchmarks.report import make_report, write_report
    from nextstep.evaluate.benchmarks.world import begin
    from nextstep.evaluate.world.run import Plan as Asked
    from nextstep.pipeline import NextStepPipeline

    begun, cards = time.monotonic(), dict[str, Any]()
    pipeline = NextStepPipeline.from_pretrained(model, device=device)
    for edition, count in scored:
        for group in groups:
            if time.monotonic() - begun > time_for_it:
                return 0
            folder = Path(work) / "scores" / f"{edition}-{group}"
            asked = Asked.of([group], ["seen"], count, edition=edition)
            weights = {"model": model, "vae": None}
            made, settings = begin(asked, folder, pipeline, "gpu", 64, weights=weights)
            generation.generate(made, pipeline, settings)
            scoring.score(
                made, made.benchmark.own_judges(made.manifest, made.items), "world-scorer"
            )
            write_report(make_report(made, "world-scorer", {}))
            card = json.loads((folder / "card.json").read_text("utf-8"))
            cards.setdefault(edition, {})[group] = {
                "items_per_task": count, "groups": card["groups"],
                "tasks": {n: one["seen"]["mean"] for n, one in card["tasks"].items()},
                "seconds_per_picture": card["seconds_per_picture"],
            }  # fmt: skip
            text = json.dumps(cards, indent=1) + "\n"
            (Path(out) / "card.json").write_text(text, "utf-8")
            print(f"{edition}, {group}: {cards[edition][group]['tasks']}")
    return 0


def write_readme(out: Path, stage_name: str) -> None:
    """What lies in the folder and what to do with it."""
    (out / "README.md").write_text(
        f"""# Nano, trained further on a GPU (last whole stage: {stage_name})

* `weights-*.safetensors`, `rest.zip`, `manifest.json`: the model folder in parts. Put it together,
  hashes checked, with

      PYTHONPATH=src python scripts/split_weights.py join THIS_FOLDER runs/gpu-model

* `log.jsonl`: figures of both stages; `console.log`: what the command printed.
* `card.json`: scores of a few items of each task, too few to decide by. Measure, beside the weights
  that ship, before anything is replaced:

      nextstep eval world -m runs/gpu-model --edition core-48 -n 200 --compare nano -o runs/eval-gpu
      nextstep eval world -m runs/gpu-model --edition core-144 -n 200 -o runs/eval-gpu-144
      nextstep eval world -m runs/gpu-model --edition full -n 100 -o runs/eval-gpu-full
""",
        "utf-8",
    )


if __name__ == "__main__":
    sys.exit(main())
