"""What all studies share: order, resuming, folders, figures, cards."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nextstep.cli.main import command_line
from nextstep.config import NextStepConfig
from nextstep.errors import NextStepError
from nextstep.estimate.counting import step_flops, step_positions
from nextstep.lab import run as lab
from nextstep.lab.recipe_study import RecipeStudy
from nextstep.lab.report import write_csv
from nextstep.lab.study import (
    STUDIES,
    Arm,
    Claim,
    Conclusion,
    MeasuredUnit,
    Plot,
    Scale,
    StudyCost,
    StudyResults,
    StudyUnit,
    Table,
    study,
)
from nextstep.recipe.load import load_recipe, recipe_file
from nextstep.utils.files import lock_folder


class Coins:
    """A study without training: arms are means of fixed items."""

    name, title = "coins", "Coins"
    claim = Claim("Gold is worth more.", "folklore", "More coins.")

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.stop_at = ""

    def arms(self, scale: Scale) -> Sequence[Arm]:
        return [Arm("tin", "Tin"), Arm("gold", "Gold", needs="tin")]

    def cost(self, arm: Arm, scale: Scale) -> StudyCost:
        return StudyCost(1e6, lab.NANO_FLOPS * 1e6, 1000, 12)

    def train(self, unit: StudyUnit) -> bool:
        key = f"{unit.arm.name}{unit.seed}"
        self.trained.append(key)
        return key != self.stop_at

    def measure(self, unit: StudyUnit) -> MeasuredUnit:
        bonus = {"tin": 0.0, "gold": 0.25}[unit.arm.name]
        items = {f"{n:03}": (n + unit.seed) % 4 / 4 + bonus for n in range(40)}
        return MeasuredUnit(
            {"weight": 2.0}, {"worth": items}, {"points": [{"x": 1}]},
            {"positions": 1e6, "flops": 1e9, "seconds": 36.0},
        )  # fmt: skip

    def conclude(self, results: StudyResults) -> Conclusion:
        found = results.difference("gold", "tin", "worth")
        return Conclusion(
            "reproduced", f"{found.value:+.2f}", [Table("Worth", ["arm"], [["tin"]])],
            [Plot("worth", "Worth of coins.", lambda figure: None)],
        )  # fmt: skip


def test_a_study_runs_every_unit_and_writes_its_card(tmp_path: Path) -> None:
    coins = Coins()
    conclusion = lab.run_study(coins, tmp_path / "coins", Scale(2, 40))
    assert conclusion is not None and conclusion.reason == "+0.25"
    assert coins.trained == ["tin0", "gold0", "tin1", "gold1"]
    card = (tmp_path / "coins" / "card.md").read_text()
    assert "**Verdict: reproduced.** +0.25" in card and "![Worth of coins.](worth.webp)" in card
    assert "More coins." in card and "| Tin | 1 M | 1e+09 | 0.01 |" in card
    rows = list(csv.DictReader((tmp_path / "coins" / "figures.csv").open()))
    gold = next(row for row in rows if row["arm"] == "gold" and row["figure"] == "worth")
    assert float(gold["mean"]) == pytest.approx(0.625) and gold["items"] == "40"
    assert float(gold["low"]) < 0.625 < float(gold["high"])


def test_difference_of_paired_items_has_no_width_where_all_differ_alike() -> None:
    arms = Coins().arms(Scale())
    found = {
        (arm.name, seed): Coins().measure(StudyUnit(arm, seed, Path(), Scale()))
        for arm in arms
        for seed in (0, 1)
    }
    apart = StudyResults(arms, found, Scale()).difference("gold", "tin", "worth")
    assert apart.low == pytest.approx(0.25) and apart.high == pytest.approx(0.25)
    alone = StudyResults(arms, found, Scale()).estimate("gold", "worth")
    assert alone.high - alone.low > 0.05


def test_a_stopped_study_goes_on_with_the_unit_it_was_at(tmp_path: Path) -> None:
    coins = Coins()
    coins.stop_at = "gold0"
    assert lab.run_study(coins, tmp_path, Scale(2, 40)) is None
    assert coins.trained == ["tin0", "gold0"]
    assert not (tmp_path / "card.md").exists()
    again = Coins()
    assert lab.run_study(again, tmp_path, Scale(2, 40)) is not None
    assert again.trained == ["gold0", "tin1", "gold1"]


def test_seeds_may_be_added_to_a_finished_study(tmp_path: Path) -> None:
    lab.run_study(Coins(), tmp_path, Scale(1, 40))
    more = Coins()
    lab.run_study(more, tmp_path, Scale(2, 40))
    assert more.trained == ["tin1", "gold1"]


def test_a_unit_of_another_process_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "gold" / "seed-0"
    folder.mkdir(parents=True)
    held = lock_folder(folder, "lab")
    (tmp_path / lab.PLAN).write_text(json.dumps({"study": "coins", "seeds": 1, "items": 40,
        "tiny": False, "recipe": None, "changes": []}))  # fmt: skip
    monkeypatch.setattr(lab.time, "sleep", lambda _: held.close())
    coins = Coins()
    assert lab.run_study(coins, tmp_path, Scale(1, 40)) is not None
    assert coins.trained == ["tin0", "gold0"]


@pytest.mark.parametrize(
    ("scale", "named"), [(Scale(2, 41), "items"), (Scale(2, 40, tiny=True), "tiny")]
)
def test_a_folder_of_another_scale_is_refused(tmp_path: Path, scale: Scale, named: str) -> None:
    lab.run_study(Coins(), tmp_path, Scale(1, 40))
    with pytest.raises(NextStepError, match=named):
        lab.run_study(Coins(), tmp_path, scale)


def test_a_folder_with_foreign_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(NextStepError, match="exists already"):
        lab.run_study(Coins(), tmp_path, Scale(1, 40))


def test_a_tiny_card_gives_no_verdict(tmp_path: Path) -> None:
    lab.run_study(Coins(), tmp_path, Scale(1, 40, tiny=True))
    card = (tmp_path / "card.md").read_text()
    assert "Items of each world task: 2," in card
    assert "Verdict" not in card and "says nothing about the claim" in card


def test_csv_has_the_columns_of_all_rows(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [{"x": 1}, {"x": 2, "y": 0.1234567}])
    assert (tmp_path / "a.csv").read_text() == "x,y\n1,\n2,0.123457\n"


def test_the_measured_speed_is_of_the_shape_that_it_is_said_to_be() -> None:
    recipe = load_recipe(recipe_file("core-nano"))
    flops = step_flops(recipe, NextStepConfig.named("nano")) / step_positions(recipe)
    assert flops == pytest.approx(lab.NANO_FLOPS, rel=0.03)


RECIPE_STUDIES = [
    name for name in STUDIES if isinstance(one := study(name), RecipeStudy) and one.same_data
]


@pytest.mark.parametrize("name", RECIPE_STUDIES)
def test_arms_of_a_study_see_the_same_samples_in_the_same_order(name: str) -> None:
    chosen = study(name)
    assert isinstance(chosen, RecipeStudy)
    for tiny in (True, False):
        scale = Scale(tiny=tiny)
        data = [chosen.recipe(arm, scale, seed=5).data for arm in chosen.arms(scale)]
        assert all(one == data[0] for one in data)
        assert {chosen.recipe(arm, scale, seed=5).seed for arm in chosen.arms(scale)} == {5}


@pytest.mark.parametrize("name", list(STUDIES))
def test_the_cost_of_every_study_is_printed_before_anything_runs(name: str) -> None:
    told = CliRunner().invoke(command_line(), ["lab", name, "--cost"])
    assert told.exit_code == 0 and "hours of one core with AMX" in told.output.replace("\n", " ")


@pytest.mark.parametrize("name", list(STUDIES))
def test_a_tiny_run_of_a_study_reaches_its_card(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    told = CliRunner().invoke(
        command_line(), ["lab", name, "--tiny", "--seeds", "1", "-o", str(folder)]
    )
    assert told.exit_code == 0, told.output + str(told.exception)
    card = (folder / "card.md").read_text()
    assert "nan" not in card.lower().split() and ".webp" in card
    assert (folder / "figures.csv").stat().st_size > 50


def test_list_names_every_study() -> None:
    told = CliRunner().invoke(command_line(), ["lab", "list"])
    assert told.exit_code == 0 and all(name in told.output for name in STUDIES)


def test_an_unknown_study_is_refused_with_the_names_of_all() -> None:
    with pytest.raises(NextStepError, match="scaling"):
        study("alchemy")
