"""Post-training methods compared at equal rollouts, by default on the shipped model.

    python scripts/posttrain_experiment.py --folder runs/posttrain --plan    # what it will take
    python scripts/posttrain_experiment.py --folder runs/posttrain           # all of it

Best-of-n fine-tuning, dpo with three values of beta, nft and grpo start from one model and draw
equally many samples; nft and grpo are rewarded as their recipes say, for lines too. All are judged
on prompts of another split, drawn with the same noise, so that differences are paired. Every job is
a `nextstep` command that goes on where it was interrupted, so the same line takes up a killed
experiment; jobs that do not wait for each other run side by side. The result is FOLDER/report.md,
report.json and curves as PNG.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import torch

from nextstep.engine.pretrained import load_parts, save_parts
from nextstep.errors import NextStepError
from posttrain_report import BASELINE, EDITION, START, TASKS, Curves, write_report

RECIPES = Path(__file__).parents[1] / "recipes"
BETAS = (100, 500, 2000)
ONLINE = {"nft": "rl-nano", "grpo": "rl-grpo-nano"}
"""Method that draws its own samples -> its recipe."""
METHODS = (BASELINE, *ONLINE, *(f"dpo-{beta}" for beta in BETAS))
SAMPLES = 16
"""Of a prompt."""
ONLINE_PROMPTS, ONLINE_PARTS, ONLINE_PASSES = 8, 4, 2
"""Of a rollout of a method that draws its own samples; an update takes one part."""
MIXTURE = f"{{{', '.join(f'{task}: 1' for task in TASKS)}}}"
"""Every task as often as the others: a name of a group alone would have the group's weight."""
HELD_OUT_SAMPLES = 2
ROLLOUT = ["--guidance", "1.0", "--image-guidance", "1.0", "--solver", "ab2", "--steps", "4"]
SETTINGS = {"guided": ["--temperature", "0.01"], "as-rollouts": ROLLOUT}
"""How held-out samples are drawn: as the model recommends, with the likeliest text, and as those
that are learned from, by one branch and with text at temperature 1."""

SECONDS = {"draw": 0.12, "draw cps": 0.23, "judge guided": 0.3, "learn": 0.06, "look": 0.02}
"""Seconds of one core with matrix units for one sample: drawn by four steps and one branch, or by
eight; drawn as recommended; learned; looked at by other weights."""


@dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
        name: of its log.
        command: arguments of `nextstep`.
        seconds: that it will take one core.
        done: what is there when it has ended.
        needs: names of the jobs before it.
    """

    name: str
    command: Sequence[str]
    seconds: float
    done: Path
    needs: Sequence[str] = field(default_factory=tuple)


@dataclass(frozen=True)
class Experiment:
    """What is compared.

    Attributes:
        folder: of all jobs.
        model: that all start from.
        samples: drawn for every method.
        held_out: prompts that models are judged on.
        offline_steps: optimizer steps of the methods that learn from kept samples.
        seed: of everything.
        changes: of recipes, as "NAME:key.path=value".
        methods: some of `METHODS`, in the order in which they run.
    """

    folder: Path
    model: str = "nano"
    samples: int = 9600
    held_out: int = 240
    offline_steps: int = 300
    seed: int = 0
    changes: Sequence[str] = ()
    methods: Sequence[str] = METHODS

    @property
    def names(self) -> list[str]:
        """Of all models that are judged, the one that the others start from first."""
        return [START, *self.methods]

    def model_of(self, name: str) -> str:
        """The folder, or name, of a judged model."""
        return self.model if name == START else str(self.folder / name / "model")

    def jobs(self) -> list[Job]:
        """All commands in the order in which one core runs them."""
        made = []
        if not ONLINE.keys() >= set(self.methods):
            made += [self._rollouts(half) for half in range(2)]
        made += self._judged(START)
        for name in self.methods:
            made += [self._learned(name), *self._judged(name)]
        return made

    def _learned(self, name: str) -> Job:
        """The training of a method."""
        if name in ONLINE:
            return self._online(name, ONLINE[name])
        drawn = [f"rollouts-{half}" for half in range(2)]
        if name == BASELINE:
            return self._offline(name, "best-of-n-nano", self.offline_steps // 2, drawn)
        # The first one works out what the reference says, and the others read it.
        (first, *_) = [one for one in self.methods if one.startswith("dpo-")]
        needs = drawn if name == first else [first]
        beta = int(name.removeprefix("dpo-"))
        return self._offline(name, "dpo-nano", self.offline_steps, needs, beta, name == first)

    def _rollouts(self, half: int) -> Job:
        """Half of the kept samples, so that two cores draw them."""
        folder, count = self.folder / "rollouts" / str(half), self.samples // SAMPLES // 2
        command = [
            *self._drawing("train"), "--count", str(count), "-n", str(SAMPLES), *ROLLOUT, "--seed",
            str(self.seed + half), "-m", self.model, "-o", str(folder),
        ]  # fmt: skip
        last = folder / f"shard-{-(-count // 8) - 1:05d}.safetensors"
        return Job(f"rollouts-{half}", command, count * SAMPLES * SECONDS["draw"], last)

    def _drawing(self, split: str) -> list[str]:
        options = [f"tasks={MIXTURE}", f"edition={EDITION}", f"split={split}"]
        return ["rollout", *(part for one in options for part in ("--world", one)), "--reasoning"]

    def _offline(
        self,
        name: str,
        recipe: str,
        steps: int,
        needs: Sequence[str],
        beta: int | None = None,
        asks: bool = False,
    ) -> Job:
        """A method that learns from kept samples, and perhaps asks the reference about them."""
        rollouts = self.folder / "rollouts"
        changes = [f"steps={steps}", f"data.sources.0.rollouts={rollouts}"]
        if beta is not None:
            changes += [
                f"preference.beta={beta}", f"preference.reference={self.folder / 'reference'}"
            ]  # fmt: skip
        learned = 32 * steps * (SECONDS["learn"] + SECONDS["look"] * asks)
        return self._training(name, recipe, changes, learned, needs)

    def _online(self, name: str, recipe: str) -> Job:
        """A method that draws its own samples."""
        together, updates = ONLINE_PROMPTS * SAMPLES, ONLINE_PARTS * ONLINE_PASSES
        world = f"{{name: world, options: {{edition: {EDITION}, pixels: 128, tasks: {MIXTURE}}}}}"
        changes = [
            f"steps={self.samples // together * updates}", f"data.sources.0.world={world}",
            f"rollouts.prompts={ONLINE_PROMPTS}", f"rollouts.samples={SAMPLES}",
            f"rollouts.updates={updates}", f"rollouts.minibatches={ONLINE_PARTS}",
        ]  # fmt: skip
        drawn = SECONDS["draw" if name == "nft" else "draw cps"]
        learned = SECONDS["learn"] + SECONDS["look"] * (2 if name == "nft" else 3)
        each = drawn + ONLINE_PASSES * learned
        return self._training(name, recipe, changes, self.samples * each)

    def _training(
        self, name: str, recipe: str, changes: list[str], seconds: float, needs: Sequence[str] = ()
    ) -> Job:
        own = [one.removeprefix(f"{name}:") for one in self.changes if one.startswith(f"{name}:")]
        command = [
            "train", str(RECIPES / f"{recipe}.yaml"), f"model.folder={self.model}",
            f"seed={self.seed}", *changes, *own, "--folder", str(self.folder / name),
        ]  # fmt: skip
        return Job(name, command, seconds, self.folder / name / "model", needs)

    def _judged(self, name: str) -> list[Job]:
        """Held-out samples of a model; all models meet the same prompts and noise."""
        return [self._judged_by(name, how) for how in SETTINGS]

    def _judged_by(self, name: str, how: str) -> Job:
        folder = self.held(name, how)
        command = [
            *self._drawing("seen"), "--count", str(self.held_out), "-n", str(HELD_OUT_SAMPLES),
            "--seed", str(self.seed + 1000), *SETTINGS[how], "-m", self.model_of(name), "-o",
            str(folder),
        ]  # fmt: skip
        each = SECONDS["judge guided" if how == "guided" else "draw cps"]
        last = folder / f"shard-{-(-self.held_out // 8) - 1:05d}.safetensors"
        needs = () if name == START else (name,)
        return Job(
            f"held-out-{name}-{how}", command, self.held_out * HELD_OUT_SAMPLES * each, last, needs
        )

    def held(self, name: str, how: str) -> Path:
        """Where a model's held-out samples lie."""
        return self.folder / "held-out" / how / name


def write_unsure(model: str, by: float, folder: Path) -> None:
    """Write a model whose logits of text are divided: what it draws from them is less sure.

    Sampled at temperature 1 it writes what the model itself writes at temperature `by`; its
    likeliest text and its pictures are the same.
    """
    if folder.exists():
        return
    parts = load_parts(model)
    with torch.no_grad():
        # Text and image head read the same normalised states.
        parts.model.norm.weight /= by
        parts.model.image_out_projector.weight *= by
    save_parts(parts, folder)


def told_cost(jobs: Sequence[Job], cores: int) -> str:
    """A table of what is still to be done."""
    left = [job for job in jobs if not job.done.exists()]
    lines = [f"{job.name:<28}{job.seconds / 60:6.1f} min" for job in left]
    total = sum(job.seconds for job in left) / 60
    longest = max((job.seconds for job in left), default=0.0) / 60
    lines.append(f"{'together, of one core':<28}{total:6.1f} min")
    lines.append(f"{f'on {cores} core(s) at least':<28}{max(total / cores, longest):6.1f} min")
    return "\n".join(lines)


def run_all(jobs: Sequence[Job], folder: Path, cores: int) -> None:
    """Run what is not done yet, `cores` jobs at a time, each with one thread.

    Raises:
        NextStepError: when a job fails; the others end first.
    """
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    waiting = {job.name: job for job in jobs if not job.done.exists()}
    done = {job.name for job in jobs} - waiting.keys()
    running: dict[Future[int], Job] = {}
    failed: list[str] = []
    with ThreadPoolExecutor(cores) as pool:
        while waiting or running:
            ready = [job for job in waiting.values() if done.issuperset(job.needs)]
            for job in ready[: 0 if failed else cores - len(running)]:
                print(f"begins  {job.name}", flush=True)
                running[pool.submit(_run, job, folder)] = waiting.pop(job.name)
            if not running:
                break
            ended = next(as_completed(running))
            job = running.pop(ended)
            status = ended.result()
            print(f"{'ends' if status == 0 else 'FAILED':<8}{job.name}", flush=True)
            if status:
                failed.append(job.name)
            done.add(job.name)
    if failed:
        raise NextStepError(f"{failed[0]} failed; see {folder / 'logs' / failed[0]}.log")


def _run(job: Job, folder: Path) -> int:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (folder / "logs" / f"{job.name}.log").open("ab") as log:
        command = [sys.executable, "-m", "nextstep", *job.command]
        return subprocess.run(
            command, stdout=log, stderr=log, env=environment, check=False
        ).returncode


def curves(experiment: Experiment) -> Curves:
    """Which figures of which logs are plotted."""
    each = ONLINE_PROMPTS * SAMPLES // (ONLINE_PARTS * ONLINE_PASSES)
    online = {name: (experiment.folder / name, each) for name in ONLINE}
    betas = {f"beta {beta}": (experiment.folder / f"dpo-{beta}", 1) for beta in BETAS}
    return {
        "reward": ("rollout", "samples", online),
        "winner_change": ("", "step", betas),
        "loser_change": ("", "step", betas),
    }


def main() -> None:
    """Print the cost, run what is not done, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--model", default="nano", help="all methods start from it")
    parser.add_argument(
        "--unsure", type=float, default=1.0, metavar="NUMBER",
        help="divide the logits of text by it in the model that all methods start from, so that "
        "its samples of one prompt differ more",
    )  # fmt: skip
    parser.add_argument("--samples", type=int, default=Experiment.samples, help="of every method")
    parser.add_argument("--held-out", type=int, default=Experiment.held_out, help="prompts")
    parser.add_argument("--offline-steps", type=int, default=Experiment.offline_steps)
    parser.add_argument(
        "--methods", nargs="+", default=METHODS, choices=METHODS, metavar="NAME",
        help="some of " + ", ".join(METHODS) + ", in the order in which they run; default all",
    )  # fmt: skip
    parser.add_argument("--cores", type=int, default=2, help="jobs side by side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME:KEY=VALUE",
        help="change a recipe, such as nft:optimizer.learning_rate=1e-4; repeat for several",
    )  # fmt: skip
    parser.add_argument("--plan", action="store_true", help="print the cost alone")
    asked = parser.parse_args()
    if asked.unsure < 1:
        raise NextStepError(f"--unsure must be at least 1, not {asked.unsure:g}")
    own = asked.folder.absolute() / f"{START}-{asked.unsure:g}"
    start = str(own) if asked.unsure > 1 else asked.model
    experiment = Experiment(
        asked.folder.absolute(), start, asked.samples, asked.held_out, asked.offline_steps,
        asked.seed, asked.set, tuple(dict.fromkeys(asked.methods)),
    )  # fmt: skip
    unknown = [one for one in asked.set if one.partition(":")[0] not in METHODS]
    if unknown:
        raise NextStepError(
            f"'{unknown[0]}' changes none of {', '.join(METHODS)}; write NAME:key=value"
        )
    jobs = experiment.jobs()
    print(told_cost(jobs, asked.cores), flush=True)
    if asked.plan:
        return
    if asked.unsure > 1:
        write_unsure(asked.model, asked.unsure, own)
    run_all(jobs, experiment.folder, asked.cores)
    models = {name: experiment.model_of(name) for name in experiment.names}
    write_report(experiment.folder, models, list(SETTINGS), curves(experiment))


if __name__ == "__main__":
    try:
        main()
    except NextStepError as error:
        sys.exit(f"error: {error}")
