"""Post-training methods compared on the shipped model at equal rollouts.

    python scripts/posttrain_experiment.py --folder runs/posttrain --plan    # what it will take
    python scripts/posttrain_experiment.py --folder runs/posttrain           # all of it

Best-of-n fine-tuning, dpo with three values of beta, nft and grpo start from one model and draw
equally many samples. All are judged on prompts of another split, drawn with the same noise, so that
differences are paired. Every job is a `nextstep` command that goes on where it was interrupted, so
the same line takes up a killed experiment; jobs that do not wait for each other run side by side.
The result is FOLDER/report.md, report.json and curves as PNG.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nextstep.engine.pretrained import load_parts
from nextstep.errors import NextStepError
from nextstep.evaluate.benchmarks.statistics import (
    Estimate,
    Means,
    Row,
    differences,
    estimates,
)
from nextstep.recipe.probes import Probe
from nextstep.recipe.run_schema import Probes
from nextstep.rollout.samples import RolloutGroup
from nextstep.rollout.store import read_rollouts
from nextstep.train.loss_plot import curve_plot
from nextstep.utils.files import write_json, write_whole

RECIPES = Path(__file__).parents[1] / "recipes"
GROUPS = {
    "colours": ["colours"], "attributes": ["attributes", "sizes"],
    "edits": ["recolour", "move", "remove", "replace"],
}  # fmt: skip
"""Groups of tasks that differences are told of."""
TASKS = [task for group in GROUPS.values() for task in group]
START, BASELINE = "start", "best-of-n"
BETAS = (100, 500, 2000)
ONLINE = ("nft", "grpo")
SAMPLES, ONLINE_PROMPTS, ONLINE_SAMPLES = 16, 8, 8
HELD_OUT_SAMPLES = 3
SETTINGS = {"guided": [], "unguided": ["--guidance", "1.0", "--image-guidance", "1.0"]}
"""How held-out samples are drawn: as the model recommends, and by one branch."""

SECONDS = {"draw": 0.16, "draw cps": 0.26, "judge guided": 0.33, "learn": 0.11, "look": 0.04}
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
    """

    folder: Path
    model: str = "nano"
    samples: int = 9600
    held_out: int = 240
    offline_steps: int = 300
    seed: int = 0
    changes: Sequence[str] = ()

    @property
    def names(self) -> list[str]:
        """Of all models that are judged, the one that the others start from first."""
        return [START, BASELINE, *(f"dpo-{beta}" for beta in BETAS), *ONLINE]

    def model_of(self, name: str) -> str:
        """The folder, or name, of a judged model."""
        return self.model if name == START else str(self.folder / name / "model")

    def jobs(self) -> list[Job]:
        """All commands, each after those that it needs."""
        made = [self._rollouts(half) for half in range(2)]
        drawn = [job.name for job in made]
        made.append(self._offline(BASELINE, "best-of-n-nano", self.offline_steps // 2, drawn))
        for beta in BETAS:
            # The first one works out what the reference says, and the others read it.
            needs = drawn if beta == BETAS[0] else [f"dpo-{BETAS[0]}"]
            made.append(self._offline(f"dpo-{beta}", "dpo-nano", self.offline_steps, needs, beta))
        made += [self._online("nft", "rl-nano"), self._online("grpo", "rl-grpo-nano")]
        made += [self._judged(name, how) for name in self.names for how in SETTINGS]
        return made

    def _rollouts(self, half: int) -> Job:
        """Half of the kept samples, so that two cores draw them."""
        folder, count = self.folder / "rollouts" / str(half), self.samples // SAMPLES // 2
        command = [
            *self._drawing("train"), "--count", str(count), "-n", str(SAMPLES), "--solver", "ab2",
            "--steps", "4", *SETTINGS["unguided"], "--seed", str(self.seed + half), "-m",
            self.model, "-o", str(folder),
        ]  # fmt: skip
        last = folder / f"shard-{-(-count // 8) - 1:05d}.safetensors"
        return Job(f"rollouts-{half}", command, count * SAMPLES * SECONDS["draw"], last)

    def _drawing(self, split: str) -> list[str]:
        options = [f"tasks=[{','.join(TASKS)}]", "edition=core-48", f"split={split}"]
        return ["rollout", *(part for one in options for part in ("--world", one)), "--reasoning"]

    def _offline(
        self, name: str, recipe: str, steps: int, needs: Sequence[str], beta: int | None = None
    ) -> Job:
        """A method that learns from kept samples."""
        rollouts = self.folder / "rollouts"
        changes = [f"steps={steps}", f"data.sources.0.rollouts={rollouts}"]
        if beta is not None:
            changes += [
                f"preference.beta={beta}", f"preference.reference={self.folder / 'reference'}"
            ]  # fmt: skip
        learned = 32 * steps * (SECONDS["learn"] + SECONDS["look"] * (beta == BETAS[0]))
        return self._training(name, recipe, changes, learned, needs)

    def _online(self, name: str, recipe: str) -> Job:
        """A method that draws its own samples."""
        together = ONLINE_PROMPTS * ONLINE_SAMPLES
        world = f"{{name: world, options: {{edition: core-48, pixels: 128, tasks: {TASKS}}}}}"
        changes = [
            f"steps={self.samples // together}", f"data.sources.0.world={world}",
            f"rollouts.prompts={ONLINE_PROMPTS}", f"rollouts.samples={ONLINE_SAMPLES}",
            "rollouts.rewards=[{kind: world}]", "rollouts.updates=1",
        ]  # fmt: skip
        each = SECONDS["draw" if name == "nft" else "draw cps"] + SECONDS["learn"]
        looks = SECONDS["look"] * (1 if name == "nft" else 3)
        return self._training(name, recipe, changes, self.samples * (each + looks))

    def _training(
        self, name: str, recipe: str, changes: list[str], seconds: float, needs: Sequence[str] = ()
    ) -> Job:
        own = [one.removeprefix(f"{name}:") for one in self.changes if one.startswith(f"{name}:")]
        command = [
            "train", str(RECIPES / f"{recipe}.yaml"), f"model.folder={self.model}",
            f"seed={self.seed}", *changes, *own, "--folder", str(self.folder / name),
        ]  # fmt: skip
        return Job(name, command, seconds, self.folder / name / "model", needs)

    def _judged(self, name: str, how: str) -> Job:
        """Held-out samples of a model; all models meet the same prompts and noise."""
        folder = self.held(name, how)
        command = [
            *self._drawing("seen"), "--count", str(self.held_out), "-n", str(HELD_OUT_SAMPLES),
            "--temperature", "0.01", "--seed", str(self.seed + 1000), *SETTINGS[how], "-m",
            self.model_of(name), "-o", str(folder),
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


@dataclass(frozen=True)
class Judged:
    """What the held-out samples of a model tell.

    Attributes:
        rows: a prompt each, in the group of its task: share of its samples that are right in all,
            and mean reward.
        variance: of image tokens over seeds, the mean over prompts.
    """

    rows: Sequence[Row]
    variance: float

    @classmethod
    def of(cls, groups: Sequence[RolloutGroup]) -> Judged:
        """From judged groups, whose keys are "world/TASK/..."."""
        rows = []
        for group in groups:
            right = _mean([sample.rewards["world/right"] for sample in group.samples])
            told = {"right": right, "reward": _mean([sample.reward for sample in group.samples])}
            rows.append(Row(group.key, group.key.split("/")[1], told))
        return cls(rows, _mean([token_variance(group) for group in groups]))


def token_variance(group: RolloutGroup) -> float:
    """Variance of image tokens over the samples of a prompt, the mean over places and values."""
    tokens = torch.stack([s.tokens for s in group.samples if s.tokens is not None])
    return float(tokens.var(0).mean())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def metrics(means: Means) -> dict[str, np.ndarray]:
    """Shares right by group of tasks and over all, and the mean reward over all."""
    every = {**GROUPS, "all": TASKS}
    found = {name: means.of("right", tasks) for name, tasks in every.items()}
    return {**found, "reward": means.of("reward")}


def report(judged: Mapping[str, Judged], flow_losses: Mapping[str, float]) -> dict[str, Any]:
    """Everything as plain values: means, and paired differences with 95 % intervals.

    Args:
        judged: model -> its held-out samples.
        flow_losses: model -> flow loss on held-out scenes.
    """
    found: dict[str, Any] = {}
    for name, one in judged.items():
        told: dict[str, Any] = {
            "score": _rounded(estimates(one.rows, metrics)),
            "flow_loss_ratio": round(flow_losses[name] / flow_losses[START], 4),
            "diversity_ratio": round(one.variance / judged[START].variance, 4),
        }
        for other in (START, BASELINE):
            if name != other:
                against = differences(one.rows, judged[other].rows, metrics)
                told[f"against {other}"] = _rounded(against)
        found[name] = told
    return found


def _rounded(found: Mapping[str, Estimate]) -> dict[str, dict[str, float | None]]:
    return {name: estimate.rounded() for name, estimate in found.items()}


def as_tables(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Reports by way of drawing as Markdown."""
    columns = [*GROUPS, "all"]
    lines = []
    for how, told in reports.items():
        lines += [
            f"Drawn {how}; share right in percent, differences paired, 95 % intervals.", "",
            f"| model | right | {' | '.join(columns)} | flow loss | diversity |",
            f"|---|---|{'---|' * len(columns)}---|---|",
        ]  # fmt: skip
        for name, one in told.items():
            cells = [_cell(one.get(f"against {START}", {}).get(group)) for group in columns]
            right = f"{100 * one['score']['all']['value']:.1f}"
            ratios = f"{one['flow_loss_ratio']:.3f} | {one['diversity_ratio']:.2f}"
            lines.append(f"| {name} | {right} | {' | '.join(cells)} | {ratios} |")
        lines.append("")
        for name, one in told.items():
            if against := one.get(f"against {BASELINE}"):
                lines.append(f"* {name} against {BASELINE}: {_cell(against['all'])}")
        lines.append("")
    return "\n".join(lines)


def _cell(told: Mapping[str, float | None] | None) -> str:
    if told is None or told["value"] is None:
        return ""
    mean, low, high = (100 * (told[name] or 0.0) for name in ("value", "low", "high"))
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def logged(folder: Path, name: str, event: str = "") -> list[tuple[float, float]]:
    """(step, value) of a figure in a run's log."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [(r["step"], r[name]) for r in rows if r.get("event", "") == event and name in r]


def write_report(experiment: Experiment) -> None:
    """Judge everything that is there, and draw the curves."""
    losses = {name: held_out_loss(experiment.model_of(name)) for name in experiment.names}
    reports = {}
    for how in SETTINGS:
        judged = {
            name: Judged.of(list(read_rollouts(experiment.held(name, how))))
            for name in experiment.names
        }
        reports[how] = report(judged, losses)
    folder, together = experiment.folder, ONLINE_PROMPTS * ONLINE_SAMPLES
    write_json(folder / "report.json", reports)
    write_whole(folder / "report.md", as_tables(reports).encode())
    online = {
        name: [
            (step * together, value) for step, value in logged(folder / name, "reward", "rollout")
        ]
        for name in ONLINE
    }
    curve_plot(online, "samples").save(folder / "reward.png")
    for figure in ("winner_change", "loser_change"):
        curves = {f"beta {b}": logged(folder / f"dpo-{b}", figure) for b in BETAS}
        curve_plot(curves, "step").save(folder / f"{figure}.png")
    print(as_tables(reports))


def held_out_loss(model: str) -> float:
    """Flow loss on fixed scenes that training does not draw."""
    parts = load_parts(model)
    settings = Probes(every=1, edition="core-48", tasks=TASKS, items=56)
    probe = Probe(
        settings, parts.model.config, parts.image_tokenizer, parts.text_tokenizer,
        parts.defaults.height,
    )  # fmt: skip
    return probe(parts.model)["flow_loss"]


def main() -> None:
    """Print the cost, run what is not done, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--model", default="nano", help="all methods start from it")
    parser.add_argument("--samples", type=int, default=Experiment.samples, help="of every method")
    parser.add_argument("--held-out", type=int, default=Experiment.held_out, help="prompts")
    parser.add_argument("--offline-steps", type=int, default=Experiment.offline_steps)
    parser.add_argument("--cores", type=int, default=2, help="jobs side by side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME:KEY=VALUE",
        help="change a recipe, such as nft:optimizer.learning_rate=1e-4; repeat for several",
    )  # fmt: skip
    parser.add_argument("--plan", action="store_true", help="print the cost alone")
    asked = parser.parse_args()
    experiment = Experiment(
        asked.folder.absolute(), asked.model, asked.samples, asked.held_out, asked.offline_steps,
        asked.seed, asked.set,
    )  # fmt: skip
    unknown = [one for one in asked.set if one.partition(":")[0] not in experiment.names[1:]]
    if unknown:
        raise NextStepError(
            f"'{unknown[0]}' changes none of {', '.join(experiment.names[1:])}; "
            "write NAME:key=value"
        )
    jobs = experiment.jobs()
    print(told_cost(jobs, asked.cores), flush=True)
    if asked.plan:
        return
    run_all(jobs, experiment.folder, asked.cores)
    write_report(experiment)


if __name__ == "__main__":
    try:
        main()
    except NextStepError as error:
        sys.exit(f"error: {error}")
