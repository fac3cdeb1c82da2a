"""A run's loss as a picture."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from nextstep.train.loss_plot import (
    COLOURS,
    SIZE,
    curve_plot,
    loss_plot,
    losses,
    running_mean,
    save_loss_plot,
)


def test_rows_without_a_loss_and_damaged_lines_are_passed_over(tmp_path: Path) -> None:
    rows = [
        {"step": 0, "event": "resumed"}, {"step": 1, "loss": 3.0}, {"step": 2, "loss": None},
        {"step": 3, "loss": 1.0},
    ]  # fmt: skip
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "lo')
    assert losses(log) == [(1, 3.0), (3, 1.0)]
    assert save_loss_plot(log, tmp_path / "loss.png")
    assert Image.open(tmp_path / "loss.png").size == SIZE
    assert not save_loss_plot(tmp_path / "none.jsonl", tmp_path / "other.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "loss.png"]


def test_a_falling_loss_is_drawn_falling() -> None:
    picture = loss_plot([(step, 10.0 - step) for step in range(10)])
    places = [
        (x, y) for x in range(SIZE[0]) for y in range(SIZE[1])
        if picture.getpixel((x, y)) == COLOURS[0]
    ]  # fmt: skip
    first, last = min(places), max(places)
    assert first[1] < SIZE[1] / 2 < last[1]
    loss_plot([(1, 2.0), (2, 2.0)])


def test_several_curves_share_their_axes() -> None:
    picture = curve_plot({"low": [(0, 1.0), (64, 1.0)], "high": [(0, 3.0), (64, 3.0)]}, "samples")
    heights = []
    for colour in COLOURS[:2]:
        column = [y for y in range(SIZE[1]) if picture.getpixel((SIZE[0] // 2, y)) == colour]
        heights.append(max(column))
    assert heights[0] > heights[1]


def test_the_running_mean_is_one_of_neighbours() -> None:
    assert running_mean([1.0, 2.0, 6.0], 1) == [1.5, 3.0, 4.0]
    assert running_mean([1.0, 2.0], 0) == [1.0, 2.0]
