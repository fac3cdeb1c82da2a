"""Reports of scored runs: metrics with intervals beside the papers' rows, failures, worst items.

RUN/report.json, report.md    for programs and for people
RUN/report.png                the metrics as bars with their intervals
RUN/worst.png                 the items with the lowest scores
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nextstep.engine.metadata import write_file
from nextstep.evaluate.benchmarks.generation import Run
from nextstep.evaluate.benchmarks.scoring import (
    JUDGES,
    Scored,
    folder_of,
    read_scores,
)
from nextstep.evaluate.benchmarks.statistics import Estimate, Row, differences, estimates
from nextstep.image.encode import encode
from nextstep.utils.files import read_json, write_json
from nextstep.version import __version__
from nextstep.world.sheet import sheet_of

WORST = 24
"""Items on the sheet."""
CELL = 128
LISTED_FAILURES = 20
"""Failures that the Markdown lists; the JSON has all."""


@dataclass(frozen=True)
class Report:
    """A scored run, told.

    Attributes:
        run: whose pictures.
        name: of the scores.
        scored: every item with its verdict.
        metrics: with intervals.
        judges: who judged, as in judges.json.
        against: name of a compared run -> metric -> difference.
        shared: name of a compared run -> keys of the items of both.
    """

    run: Run
    name: str
    scored: Sequence[Scored]
    metrics: Mapping[str, Estimate]
    judges: Mapping[str, Any]
    against: Mapping[str, Mapping[str, Estimate]]
    shared: Mapping[str, Sequence[str]]

    def notes(self) -> list[str]:
        """What a reader must know before comparing the numbers with others."""
        manifest, notes = self.run.manifest, []
        if not manifest["complete"]:
            notes.append(
                f"{manifest['items']} items, not the complete official set: not comparable with "
                "published numbers"
            )
        sha256 = manifest["data"]["sha256"]
        if sha256 not in self.run.benchmark.official_hashes:
            notes += filter(None, [self.run.benchmark.version_of(sha256)])
        for role, who in self.judges.get("roles", {}).items():
            if not who["is_official"]:
                notes.append(
                    f"{role}: judged by {who['judge']}, officially {' or '.join(who['official'])}"
                )
            if who["wording"] == "ours":
                notes.append(f"{role}: the question is worded by this project, not officially")
        if "imported" in self.judges:
            notes.append(
                f"verdicts of the official scorer, read from {self.judges['imported']['file']}"
            )
        failed = sum(bool(one.measured.failures) for one in self.scored)
        if failed:
            notes.append(f"{failed} items had failures, which count as the lowest value")
        return notes

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        benchmark = self.run.benchmark
        return {
            "benchmark": benchmark.name,
            "title": benchmark.title,
            "version": __version__,
            "run": {k: v for k, v in self.run.manifest.items() if k != "benchmark"},
            "judges": dict(self.judges),
            "notes": self.notes(),
            "primary": benchmark.primary,
            "metrics": {name: one.rounded() for name, one in self.metrics.items()},
            "published": {row: dict(values) for row, values in benchmark.published.items()},
            "differences": {
                other: {name: one.rounded() for name, one in found.items()}
                for other, found in self.against.items()
            },
            "failures": {
                one.item.key: one.measured.failures for one in self.scored if one.measured.failures
            },
        }


def make_report(run: Run, name: str, others: Mapping[str, Sequence[Row]] | None = None) -> Report:
    """Compute a report.

    Args:
        run: whose pictures were scored.
        name: of the scores.
        others: title -> what was measured in another run of the same benchmark.

    Raises:
        NextStepError: when a run is not scored completely.
        ValueError: when a compared run shares no item.
    """
    scored = read_scores(run, name)
    rows = [one.row for one in scored]
    found = estimates(rows, run.benchmark.metrics)
    against, shared = {}, {}
    for title, theirs in (others or {}).items():
        against[title] = differences(rows, theirs, run.benchmark.metrics)
        keys = {row.key for row in theirs}
        shared[title] = [row.key for row in rows if row.key in keys]
    judges = read_json(folder_of(run, name) / JUDGES)
    return Report(run, name, scored, found, judges, against, shared)


def rows_of(run: Run, name: str) -> list[Row]:
    """What was measured in a run, to compare another one with.

    Raises:
        NextStepError: when the run is not scored completely.
    """
    return [one.row for one in read_scores(run, name)]


def write_report(report: Report) -> list[Path]:
    """Write all files of a report beside the run's own."""
    folder = report.run.folder
    write_json(folder / "report.json", report.to_dict())
    write_file(folder / "report.md", markdown(report).encode())
    write_file(folder / "report.png", encode(chart(report)))
    sheet = worst_sheet(report)
    written = [folder / name for name in ("report.json", "report.md", "report.png")]
    if sheet is not None:
        write_file(folder / "worst.png", encode(sheet))
        written.append(folder / "worst.png")
    return [*written, *report.run.benchmark.write_more(report)]


def markdown(report: Report) -> str:
    """The report as a page."""
    run, benchmark = report.run, report.run.benchmark
    manifest = run.manifest
    published = benchmark.published
    lines = [
        f"# {benchmark.title}: {run.model}",
        "",
        f"{manifest['items']} items x {manifest['repeats']} pictures of {manifest['size']} pixels, "
        f"weights {manifest['model_hash']}, set {manifest['data']['sha256'][:12]} "
        f"({benchmark.licence}), scores '{report.name}', nextstep {__version__}",
        "",
        *[f"* {note}" for note in report.notes()],
        "",
        f"| metric | {run.model} | 95 % | {' | '.join(published)} |".replace("|  |", "|"),
        "| --- | --- | --- |" + " --- |" * len(published),
    ]
    for name, one in report.metrics.items():
        label = f"**{name}**" if name == benchmark.primary else name
        rows = [_number(values.get(name)) for values in published.values()]
        cells = [label, _number(one.value), _range(one), *rows]
        lines.append(f"| {' | '.join(cells)} |")
    for other, found in report.against.items():
        lines += [
            "",
            f"## {run.model} less {other}, on the items of both",
            "",
            "| metric | difference | 95 % |",
            "| --- | --- | --- |",
        ]
        lines += [
            f"| {name} | {one.value:+.3f} | {_range(one)} |"
            for name, one in found.items()
            if not np.isnan(one.value)
        ]
    lines += _failures(report)
    return "\n".join(lines) + "\n"


def _failures(report: Report) -> list[str]:
    told = [
        f"* {one.item.key}: {'; '.join(one.measured.failures)}"
        for one in report.scored
        if one.measured.failures
    ]
    if not told:
        return []
    more = len(told) - LISTED_FAILURES
    rest = [f"* and {more} more, see report.json"] if more > 0 else []
    return ["", "## Failures", "", *told[:LISTED_FAILURES], *rest]


def _number(value: float | None) -> str:
    if value is None or np.isnan(value):
        return "-"
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"


def _range(one: Estimate) -> str:
    return "-" if np.isnan(one.low) else f"{_number(one.low)} to {_number(one.high)}"


def chart(report: Report) -> Image.Image:
    """Metrics as bars, their intervals as lines, and the first published row as marks."""
    shown = [(n, e) for n, e in report.metrics.items() if not np.isnan(e.value)]
    published = next(iter(report.run.benchmark.published.items()), ("", {}))
    known = [value for name, value in published[1].items() if name in report.metrics]
    most = max([e.high for _, e in shown] + known + [1e-9])
    row, left, width = 22, 190, 420
    canvas = Image.new("RGB", (left + width + 90, 40 + row * len(shown)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)
    draw.text((8, 8), f"{report.run.benchmark.title}: {report.run.model}", "#202124", font)
    if known:
        draw.text((left, 8), f"mark: {published[0]}, as published", "#cf222e", font)
    for number, (name, one) in enumerate(shown):
        y = 30 + number * row
        scale = width / most
        draw.text((8, y + 3), name[:30], "#202124", font)
        draw.rectangle((left, y + 3, left + max(0.0, one.value) * scale, y + 15), "#4c78a8")
        low, high = (left + max(0.0, end) * scale for end in (one.low, one.high))
        draw.line((low, y + 9, high, y + 9), "#202124", 2)
        if name in published[1]:
            x = left + published[1][name] * scale
            draw.line((x, y + 1, x, y + 17), "#cf222e", 3)
        draw.text((left + width + 10, y + 3), _number(one.value), "#202124", font)
    return canvas


def worst_sheet(report: Report) -> Image.Image | None:
    """The items whose primary column is lowest, with their prompts and why; None without any."""
    run, cells = report.run, []
    for one in worst_items(report.scored)[:WORST]:
        shown = run.benchmark.outputs(run.images, one.item, run.model)
        pictures = [_cell(picture) for picture in (*shown.sources, *shown.pictures)]
        why = "; ".join(one.measured.failures) or _evidence(one)
        cells.append((pictures[:4], f"{one.item.key}: {one.item.prompt[:160]} -> {why[:160]}"))
    return sheet_of(cells, CELL, columns=8) if cells else None


def worst_items(scored: Sequence[Scored]) -> list[Scored]:
    """Items by score, the lowest first; those of one score from every group in turn."""
    turns: Counter[tuple[str, float]] = Counter()
    ranked = []
    for place, one in enumerate(scored):
        score = _score_of(one)
        ranked.append((score, turns[one.item.group, score], place))
        turns[one.item.group, score] += 1
    return [scored[place] for *_, place in sorted(ranked)]


def _score_of(one: Scored) -> float:
    values = [v for v in one.measured.values.values() if not np.isnan(v)]
    for name in ("overall", "gm", "score", "points", "rate", "correct", "alignment"):
        if name in one.measured.values:
            return one.measured.values[name]
    return float(np.mean(values)) if values else 0.0


def _evidence(one: Scored) -> str:
    return json.dumps(one.measured.evidence, ensure_ascii=False)


def _cell(picture: Image.Image | None) -> Image.Image:
    if picture is None:
        return Image.new("RGB", (CELL, CELL), "#d0d0d0")
    small = picture.copy()
    small.thumbnail((CELL, CELL))
    return small
