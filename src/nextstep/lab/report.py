"""What a study leaves: figures as CSV, plots, and a card in Markdown.

figures.csv has a row for every figure of every arm: the value of each seed, their mean, and its
95 % interval where the figure is a mean over items.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextstep.engine.metadata import write_file
from nextstep.lab.study import Conclusion, Plot, Study, StudyResults, Table
from nextstep.utils.files import writing
from nextstep.version import __version__

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from nextstep.evaluate.benchmarks.statistics import Estimate

TINY_NOTE = (
    "**A tiny run: it shows that the study runs from data to card, and says nothing about the "
    "claim.**"
)


def write_report(study: Study, results: StudyResults, conclusion: Conclusion, folder: Path) -> None:
    """Write CSV files, plots and `card.md` into a folder.

    Args:
        study: which one.
        results: of all units.
        conclusion: drawn from them.
        folder: of the study.
    """
    write_csv(folder / "figures.csv", figure_rows(results))
    write_csv(folder / "cost.csv", spent_rows(results))
    for name, rows in further_rows(results).items():
        write_csv(folder / f"{name}.csv", rows)
    for plot in conclusion.plots:
        save_plot(plot, folder / f"{plot.name}.webp")
    write_file(folder / "card.md", card(study, results, conclusion).encode())


def figure_rows(results: StudyResults) -> list[dict[str, Any]]:
    """Every figure of every arm."""
    rows = []
    for arm in results.arms:
        units = results.of(arm.name)
        names = dict.fromkeys(name for one in units for name in (*one.values, *one.items))
        for name in names:
            values = results.values(arm.name, name)
            row: dict[str, Any] = {"arm": arm.name, "figure": name}
            row |= {"mean": sum(values) / len(values), "low": "", "high": "", "items": ""}
            if all(name in one.items for one in units):
                found = results.estimate(arm.name, name)
                row |= {"low": found.low, "high": found.high, "items": len(units[0].items[name])}
            row |= {f"seed {seed}": v for seed, v in zip(results.seeds, values, strict=False)}
            rows.append(row)
    return rows


def spent_rows(results: StudyResults) -> list[dict[str, Any]]:
    """What the training of every unit took."""
    return [
        {"arm": arm.name, "seed": seed, **results.measured[arm.name, seed].spent}
        for arm in results.arms
        for seed in results.seeds
        if (arm.name, seed) in results.measured
    ]


def further_rows(results: StudyResults) -> dict[str, list[dict[str, Any]]]:
    """Tables of the units by name, with arm and seed in front."""
    found: dict[str, list[dict[str, Any]]] = {}
    for (arm, seed), one in results.measured.items():
        for name, rows in one.tables.items():
            found.setdefault(name, []).extend({"arm": arm, "seed": seed, **row} for row in rows)
    return found


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the columns of all of them."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _number(value) for name, value in row.items()})
    write_file(path, text.getvalue().encode())


def _number(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def save_plot(plot: Plot, path: Path) -> None:
    """Draw a plot without a window and write it as WebP, which is a third of PNG's size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    plot.draw(figure)
    with writing(path) as scratch:
        figure.savefig(scratch, format="webp", pil_kwargs={"quality": 75, "method": 6})


def card(study: Study, results: StudyResults, conclusion: Conclusion) -> str:
    """The card: claim, verdict, tables, plots, cost, what a larger run would need."""
    claim, scale = study.claim, results.scale
    parts = [f"# {study.title}", f"**Claim.** {claim.text} ({claim.source})"]
    if scale.tiny:
        parts.append(TINY_NOTE)
    else:
        parts.append(f"**Verdict: {conclusion.verdict}.** {conclusion.reason}")
    parts.append(
        f"Seeds of every arm: {scale.seeds}. Items of each world task: {scale.judged}, the same "
        "for every arm. Intervals are 95 % bootstrap intervals over items, paired for differences."
    )
    parts += [markdown_table(table) for table in conclusion.tables]
    parts += [f"![{plot.caption}]({plot.name}.webp)\n\n{plot.caption}" for plot in conclusion.plots]
    parts.append(markdown_table(_cost_table(results)))
    parts.append(f"**What a larger run would need.** {claim.larger}")
    files = ["figures.csv", "cost.csv", *(f"{name}.csv" for name in further_rows(results))]
    parts.append(
        f"Figures: {', '.join(f'[{name}]({name})' for name in files)}. Made by `nextstep lab "
        f"{study.name}`, version {__version__}."
    )
    return "\n\n".join(parts) + "\n"


def _cost_table(results: StudyResults) -> Table:
    rows = []
    for arm in results.arms:
        spent = [one.spent for one in results.of(arm.name) if one.spent]
        if spent:
            means = {name: _mean(one[name] for one in spent) for name in spent[0]}
            rows.append((
                arm.title, f"{means['positions'] / 1e6:.3g} M", f"{means['flops']:.3g}",
                f"{means['seconds'] / 3600:.2f}",
            ))  # fmt: skip
    head = ("arm", "positions trained", "FLOPs of training", "hours")
    return Table("What a unit took, mean of the seeds", head, rows)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def markdown_table(table: Table) -> str:
    """A table with its title over it."""
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    body = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    return f"**{table.title}**\n\n{body}"


def with_intervals(
    axes: Axes, x: Sequence[float], found: Sequence[Estimate], label: str, colour: str
) -> None:
    """A line through estimates with bars to the ends of their intervals."""
    values = [one.value for one in found]
    below = [one.value - one.low for one in found]
    above = [one.high - one.value for one in found]
    axes.errorbar(x, values, yerr=[below, above], label=label, color=colour, marker="o", capsize=3)


def colours(count: int) -> list[str]:
    """As many colours that can be told apart, also by the colour-blind (Okabe and Ito 2008)."""
    known = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
    return [known[place % len(known)] for place in range(count)]
