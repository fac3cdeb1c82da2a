"""What the models of the post-training experiment do on held-out prompts, as tables and curves.

Models meet the same prompts with the same noise, so their differences are paired by prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nextstep.engine.pretrained import load_parts
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
from nextstep.utils.files import write_json, write_whole, writing

EDITION = "core-48"
GROUPS = {
    "drawing": ["counting"], "editing": ["replace", "remove", "move", "recolour"],
    "story": ["story"], "reading": ["read_where", "read_caption", "read_yes_no"],
}  # fmt: skip
"""Groups of tasks that differences are told of. A model half way through its training is sometimes
right and sometimes wrong on one prompt of each; where all samples of a prompt are alike, nothing
can be learned."""
TASKS = [task for group in GROUPS.values() for task in group]
START, BASELINE = "start", "best-of-n"

Curves = Mapping[str, tuple[str, str, Mapping[str, tuple[Path, int]]]]
"""Figure of a log -> (event that tells of it, what it is plotted by, curve -> (run, how much of
that a step is))."""


@dataclass(frozen=True)
class Judged:
    """What the held-out samples of a model tell.

    Attributes:
        rows: a prompt each, in the group of its task: share of its samples that are right in all,
            and mean reward.
        variance: of image tokens over seeds, the mean over the prompts of pictures.
    """

    rows: Sequence[Row]
    variance: float

    @classmethod
    def of(cls, groups: Iterable[RolloutGroup]) -> Judged:
        """From judged groups, whose keys are "world/TASK/..."."""
        rows, variances = [], []
        for group in groups:
            right = _mean([sample.rewards["world/right"] for sample in group.samples])
            told = {"right": right, "reward": _mean([sample.reward for sample in group.samples])}
            rows.append(Row(group.key, group.key.split("/")[1], told))
            if group.draws:
                variances.append(token_variance(group))
        return cls(rows, _mean(variances))


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
            if name != other and other in judged:
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
    log = folder / "log.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    rows = [json.loads(line) for line in lines]
    return [(r["step"], r[name]) for r in rows if r.get("event", "") == event and name in r]


def held_out_loss(model: str) -> float:
    """Flow loss on fixed scenes that training does not draw."""
    parts = load_parts(model)
    settings = Probes(every=1, edition=EDITION, tasks=TASKS, items=56)
    probe = Probe(
        settings, parts.model.config, parts.image_tokenizer, parts.text_tokenizer,
        parts.defaults.height,
    )  # fmt: skip
    return probe(parts.model)["flow_loss"]


def write_report(
    folder: Path, models: Mapping[str, str], ways: Sequence[str], curves: Curves
) -> None:
    """FOLDER/report.json, report.md and a PNG for every figure that a log tells of.

    Args:
        folder: of the experiment, with held-out samples in held-out/WAY/MODEL.
        models: name -> model folder or name, `START` among them.
        ways: of drawing held-out samples.
        curves: what is plotted.
    """
    losses = {name: held_out_loss(model) for name, model in models.items()}
    judged = {
        how: {name: Judged.of(read_rollouts(folder / "held-out" / how / name)) for name in models}
        for how in ways
    }
    reports = {how: report(found, losses) for how, found in judged.items()}
    write_json(folder / "report.json", reports)
    write_whole(folder / "report.md", as_tables(reports).encode())
    for figure, (event, along, runs) in curves.items():
        save_curves(folder / f"{figure}.png", figure, event, along, runs)
    print(as_tables(reports))


def save_curves(
    path: Path, figure: str, event: str, along: str, runs: Mapping[str, tuple[Path, int]]
) -> None:
    """Plot a figure of several runs, of those that tell of it at all; see `Curves`."""
    told = {
        name: [(step * each, value) for step, value in logged(run, figure, event)]
        for name, (run, each) in runs.items()
    }
    told = {name: curve for name, curve in told.items() if len(curve) > 1}
    if told:
        with writing(path) as scratch:
            curve_plot(told, along).save(scratch, "PNG")
