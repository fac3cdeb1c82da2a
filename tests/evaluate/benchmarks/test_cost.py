"""What a benchmark is reckoned to take."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from nextstep.config import NextStepConfig
from nextstep.errors import NextStepError
from nextstep.estimate.devices import find_device
from nextstep.evaluate.benchmarks import BENCHMARKS, benchmark_class
from nextstep.evaluate.benchmarks.cost import (
    PAPER,
    SIZES,
    cost_of,
    parameters,
    seconds_per_token,
)
from tests.cli.test_commands import nextstep

BIG = NextStepConfig.named("14b")
H100 = find_device("h100")


def test_sizes_are_those_of_the_sets() -> None:
    assert [*SIZES, "world"] == list(BENCHMARKS)
    for name, size in SIZES.items():
        cls = benchmark_class(name)
        if cls.sizes:
            assert size.prompts == sum(cls.sizes.values())
        if name != "ueval":
            assert size.repeats == cls.repeats
        assert size.branches == (3 if cls.kind == "edit" else 2)
    for name in PAPER:
        assert benchmark_class(name).published


def test_a_token_alone_is_bound_by_the_weights_way_out_of_memory() -> None:
    # arXiv 2508.10711, table 9: 7.20 ms of the backbone for one row on an H100.
    alone = seconds_per_token(BIG, H100, 1, 0, 256)
    assert alone == pytest.approx(7.2e-3, rel=0.15)
    assert seconds_per_token(BIG, H100, 2, 0, 256) == pytest.approx(alone, rel=0.02)
    # Very many rows are bound by arithmetic, so twice as many take twice as long.
    many = seconds_per_token(BIG, H100, 4096, 28, 0)
    assert seconds_per_token(BIG, H100, 8192, 28, 0) == pytest.approx(2 * many)
    assert parameters(BIG) == pytest.approx(14.95e9, rel=0.01)


def test_costs_follow_pictures_devices_and_prices() -> None:
    one = cost_of("wise", BIG, H100)
    assert (one.pictures, one.calls) == (1000, 1000)
    assert cost_of("wise", BIG, H100, devices=4).hours == pytest.approx(one.hours / 4)
    assert cost_of("wise", BIG, H100, size=512).hours > 4 * one.hours
    prices = {"gpt-4o-2024-05-13": (1.0, 0.0)}
    dollars = cost_of("wise", BIG, H100, prices=prices).dollars
    assert dollars == pytest.approx(1000 * SIZES["wise"].question / 1e6)
    assert cost_of("geneval", BIG, H100).dollars is None
    # Edits are made at the size of the released edit models.
    edits = cost_of("gedit", BIG, H100)
    assert edits == cost_of("gedit", BIG, H100, size=512) != cost_of("gedit", BIG, H100, size=256)
    assert (one.side, edits.side) == (256, 512)


def test_what_cannot_be_planned_is_reported() -> None:
    with pytest.raises(NextStepError, match="no benchmark 'poems'"):
        cost_of("poems", BIG, H100)
    with pytest.raises(NextStepError, match=r"30 GB of weights do not fit into the 24 GB"):
        cost_of("wise", BIG, find_device("rtx4090"))
    with pytest.raises(NextStepError, match="no memory bandwidth is known of 'other'"):
        cost_of("wise", BIG, replace(H100, name="other"))


def test_the_command(capsys: pytest.CaptureFixture) -> None:
    status, said, _ = nextstep(capsys, "plan", "paper", "--device", "h100", "batch=16")
    assert status == 0
    assert all(name in said for name in PAPER)
    status, said, _ = nextstep(capsys, "plan", "gedit", "--json", "size=512")
    assert json.loads(said)[0]["pictures"] == 1212
    for change, why in (("colour=red", "has no 'colour'"), ("size=big", "whole number")):
        status, _, err = nextstep(capsys, "plan", "gedit", change)
        assert (status, why in err) == (2, True)
