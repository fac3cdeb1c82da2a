"""What a run tells: JSON lines, tensorboard, Weights & Biases, a progress line.

Figures of a row are of the whole step, over all ranks, and averaged over the steps since the row
before: a loss part is the sum of its sums over the sum of its counts.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from nextstep.train.config import TrainConfig
from nextstep.utils.files import append_line, write_whole

Row = dict[str, Any]


@dataclass(frozen=True)
class StepReport:
    """One step, over all ranks.

    Attributes:
        sums, counts: of every part of the loss.
        grad_norm: before clipping.
        learning_rate: base rate of this step.
        tokens: trained on.
        flops: of forward and backward; 0 when unknown.
        skipped: whether the update was left out because something was no number.
        suspects: keys of the samples among which the cause is, when it was skipped.
    """

    sums: Mapping[str, float]
    counts: Mapping[str, float]
    grad_norm: float
    learning_rate: float
    tokens: float = 0.0
    flops: float = 0.0
    skipped: bool = False
    suspects: tuple[str, ...] = ()

    def parts(self) -> dict[str, float]:
        """Mean of every part that was counted."""
        return {n: self.sums[n] / c for n, c in self.counts.items() if c}

    def loss(self, weights: Mapping[str, float]) -> float:
        """The weighted sum that was minimised."""
        return sum(weights[name] * mean for name, mean in self.parts().items())


@dataclass
class Meter:
    """Gathers steps until a row is made of them.

    Attributes:
        weights: of the parts of the loss.
        peak: measured operations per second of all devices together; 0 when not measured.
    """

    weights: Mapping[str, float]
    peak: float = 0.0
    reports: list[StepReport] = field(default_factory=list)
    skipped: int = 0
    since: float = field(default_factory=time.monotonic)

    def add(self, report: StepReport) -> None:
        """Take one step in."""
        self.reports.append(report)
        self.skipped += report.skipped

    def row(self, step: int, steps: int) -> Row:
        """The figures since the last row, and a fresh start.

        Args:
            step: steps trained.
            steps: steps of the whole run, for the time left.
        """
        now = time.monotonic()
        seconds, self.since = max(now - self.since, 1e-9), now
        reports, self.reports = self.reports, []
        good = [report for report in reports if not report.skipped]
        means = _merged(good).parts() if good else {}
        row: Row = {"step": step}
        if good:
            row |= {"loss": sum(self.weights[name] * mean for name, mean in means.items()), **means}
        row |= {
            "grad_norm": reports[-1].grad_norm,
            "learning_rate": reports[-1].learning_rate,
            "tokens_per_s": sum(r.tokens for r in reports) / seconds,
            "steps_per_s": len(reports) / seconds,
            "hours_left": (steps - step) * seconds / len(reports) / 3600,
            "skipped": self.skipped,
        }
        flops = sum(report.flops for report in reports) / seconds
        if flops:
            row["flops_per_s"] = flops
        if flops and self.peak:
            row["share_of_peak"] = flops / self.peak
        return row


def _merged(reports: list[StepReport]) -> StepReport:
    names = reports[0].counts
    return StepReport(
        {name: math.fsum(r.sums[name] for r in reports) for name in names},
        {name: math.fsum(r.counts[name] for r in reports) for name in names},
        reports[-1].grad_norm,
        reports[-1].learning_rate,
    )


class Reporter(Protocol):
    """Takes rows somewhere."""

    def write(self, row: Row) -> None:
        """Take one row."""

    def close(self) -> None:
        """No more rows follow."""


class JsonLines:
    """`log.jsonl`: one JSON object a line, on the disk as soon as it is written.

    Rows with "event" are not figures: "resumed", "skipped", "saved", "stopped".
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def forget_after(self, step: int) -> None:
        """Drop the rows of later steps, which a run taken up at `step` will write again."""
        if not self.path.exists():
            return
        kept = [line for line in self.path.read_text("utf-8").splitlines() if _until(line, step)]
        write_whole(self.path, "".join(line + "\n" for line in kept).encode())

    def write(self, row: Row) -> None:
        """Append one row; numbers keep seven digits, and what is no number becomes null."""
        line = json.dumps({name: _brief(value) for name, value in row.items()}, allow_nan=False)
        append_line(self.path, line)

    def close(self) -> None:
        """Nothing is open between rows."""


def _until(line: str, step: int) -> bool:
    """Whether a line is whole and not of a later step."""
    try:
        return int(json.loads(line).get("step", 0)) <= step
    except (ValueError, AttributeError):
        return False


def _brief(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.7g}") if math.isfinite(value) else None


class Tensorboard:
    """Event files for `tensorboard --logdir`.

    Raises:
        ModuleNotFoundError: when tensorboard is not installed.
    """

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=first_step + 1)

    def write(self, row: Row) -> None:
        """One point a figure; those of events under the event's name."""
        before = f"{row['event']}/" if "event" in row else ""
        for name, value in row.items():
            if isinstance(value, int | float) and name != "step":
                self.writer.add_scalar(f"{before}{name}", value, row["step"])

    def close(self) -> None:
        """Write out and close the file."""
        self.writer.close()


class Wandb:
    """A run on Weights & Biases, taken up again under the name of the run folder.

    Raises:
        ModuleNotFoundError: when wandb is not installed.
    """

    def __init__(self, project: str, name: str, config: Mapping[str, Any]) -> None:
        import wandb  # type: ignore[import-not-found, unused-ignore]

        self.run = wandb.init(
            project=project, name=name, id=name, resume="allow", config=dict(config)
        )

    def write(self, row: Row) -> None:
        """Figures only."""
        if "event" not in row:
            self.run.log({n: v for n, v in row.items() if n != "step"}, step=row["step"])

    def close(self) -> None:
        """End the run there."""
        self.run.finish()


class ProgressLine:
    """A line that is drawn anew on a terminal, and printed now and then elsewhere."""

    def __init__(self, steps: int, first_step: int, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self.console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task(title, total=steps, completed=first_step, figures="")
        self.bar.start()

    def write(self, row: Row) -> None:
        """Show the newest figures."""
        told = figures(row)
        if self.console.is_terminal:
            self.bar.update(self.task, completed=row["step"], figures=told)
        else:
            self.console.print(f"step {row['step']}: {told}", highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the line as it stands."""
        self.bar.stop()


def figures(row: Row) -> str:
    """A row in words short enough for one line."""
    if "event" in row:
        return f"{row['event']} {row.get('detail', '')}".strip()
    fixed = {
        "step", "grad_norm", "learning_rate", "tokens_per_s", "steps_per_s", "hours_left",
        "skipped", "flops_per_s", "share_of_peak",
    }  # fmt: skip
    told = [f"{name} {row[name]:.4g}" for name in row if name not in fixed]
    if row["tokens_per_s"]:
        told.append(f"{row['tokens_per_s']:,.0f} tokens/s")
    else:
        told.append(f"{row['steps_per_s']:.3g} steps/s")
    if "flops_per_s" in row:
        share = f" ({row['share_of_peak']:.0%} of peak)" if "share_of_peak" in row else ""
        told.append(f"{_scaled(row['flops_per_s'])}FLOP/s{share}")
    if row["skipped"]:
        told.append(f"{row['skipped']} skipped")
    return " · ".join([*told, f"{_clock(row['hours_left'])} left"])


def _scaled(value: float) -> str:
    for limit, name in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= limit:
            return f"{value / limit:.3g} {name}"
    return f"{value:.3g} "


def _clock(hours: float) -> str:
    minutes = round(60 * hours)
    if minutes >= 48 * 60:
        return f"{hours / 24:.1f} days"
    return f"{minutes // 60}:{minutes % 60:02d} h" if minutes >= 60 else f"{minutes} min"


def open_reporters(
    folder: Path, config: TrainConfig, first_step: int
) -> tuple[JsonLines, list[Reporter]]:
    """The log, and every place beside it that the config asks for."""
    log = JsonLines(folder / "log.jsonl")
    log.forget_after(first_step)
    reporters: list[Reporter] = [log]
    if config.tensorboard:
        reporters.append(Tensorboard(folder / "tensorboard", first_step))
    if config.wandb:
        reporters.append(Wandb(config.wandb, folder.resolve().name, config.to_dict()))
    if config.progress:
        reporters.append(ProgressLine(config.steps, first_step, folder.name))
    return log, reporters
