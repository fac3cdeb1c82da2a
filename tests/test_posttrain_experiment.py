"""The script that compares post-training methods: its plan, its jobs, its report."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from nextstep.engine.pretrained import load_parts
from nextstep.engine.settings import GenerationSettings
from nextstep.errors import NextStepError
from nextstep.recipe.load import load_recipe
from nextstep.rollout.samples import RolloutGroup, RolloutSample
from nextstep.train.loss_plot import SIZE

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture(scope="module", autouse=True)
def scripts_on_path() -> Iterator[None]:
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return importlib.import_module("posttrain_experiment")


@pytest.fixture(scope="module")
def reports() -> ModuleType:
    return importlib.import_module("posttrain_report")


def test_all_methods_draw_equally_many_samples(script: ModuleType, tmp_path: Path) -> None:
    """Every recipe is whole, and online runs take as many samples as lie on disk."""
    changes = ["nft:optimizer.learning_rate=3e-4"]
    experiment = script.Experiment(tmp_path, samples=1280, changes=changes)
    jobs = {job.name: job for job in experiment.jobs()}
    kept = [job for name, job in jobs.items() if name.startswith("rollouts-")]
    told = [dict(zip(job.command, job.command[1:], strict=False)) for job in kept]
    assert sum(int(one["--count"]) * int(one["-n"]) for one in told) == 1280
    for name, job in jobs.items():
        if job.command[0] != "train":
            continue
        recipe = load_recipe(Path(job.command[1]), job.command[2:-2])
        assert (recipe.optimizer.learning_rate == 3e-4) == (name == "nft")
        if name in script.ONLINE:
            assert recipe.rollouts is not None
            drawn = recipe.steps * recipe.rollouts.prompts * recipe.rollouts.samples
            assert drawn == 1280 * recipe.rollouts.updates
            passes = script.ONLINE_PASSES
            assert recipe.rollouts.updates == passes * recipe.rollouts.minibatches
        else:
            assert recipe.data.sources[0].rollouts == str(tmp_path / "rollouts")
        assert set(job.needs) <= jobs.keys()
    judged = [name for name in jobs if name.startswith("held-out-")]
    assert len(judged) == 2 * len(experiment.names)
    assert "min" in script.told_cost(list(jobs.values()), 2)


def test_an_unsure_model_differs_in_its_logits_alone(
    script: ModuleType, tiny_folder: Path, tmp_path: Path
) -> None:
    script.write_unsure(str(tiny_folder), 1.6, tmp_path / "start")
    models = [load_parts(str(folder)).model for folder in (tiny_folder, tmp_path / "start")]
    places = torch.arange(8)[None]
    hidden = [one.hidden(one.embed_tokens(places), places) for one in models]
    sure, unsure = (one.text_logits(states) for one, states in zip(models, hidden, strict=True))
    torch.testing.assert_close(unsure, sure / 1.6)
    told = [one.image_condition(states[0]) for one, states in zip(models, hidden, strict=True)]
    torch.testing.assert_close(told[1], told[0])


def test_some_methods_run_alone_in_their_order(script: ModuleType, tmp_path: Path) -> None:
    """Only what they need is drawn, each is judged at once, one dpo asks the reference."""
    online = script.Experiment(tmp_path, methods=("nft",))
    assert [job.name for job in online.jobs()] == [
        "held-out-start-guided", "held-out-start-as-rollouts",
        "nft", "held-out-nft-guided", "held-out-nft-as-rollouts",
    ]  # fmt: skip
    pairs = script.Experiment(tmp_path, methods=("dpo-500", "nft", "dpo-100"))
    jobs = {job.name: job for job in pairs.jobs()}
    assert pairs.names == ["start", "dpo-500", "nft", "dpo-100"]
    assert jobs["dpo-500"].needs == ["rollouts-0", "rollouts-1"]
    assert jobs["dpo-100"].needs == ["dpo-500"]
    assert jobs["dpo-100"].seconds < jobs["dpo-500"].seconds
    places = list(jobs)
    assert places.index("held-out-dpo-500-guided") < places.index("nft")


def test_jobs_wait_for_those_they_need_and_are_not_done_twice(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def run(job: object, folder: Path) -> int:
        ran.append(job.name)
        job.done.touch()
        return int(job.name == "bad")

    monkeypatch.setattr(script, "_run", run)
    names = {"c": ("b",), "b": ("a",), "a": (), "d": ()}
    jobs = [script.Job(name, [], 60.0, tmp_path / name, needs) for name, needs in names.items()]
    (tmp_path / "d").touch()
    assert "d " not in script.told_cost(jobs, 1)
    script.run_all(jobs, tmp_path, 2)
    assert ran == ["a", "b", "c"]
    bad = [script.Job("bad", [], 1.0, tmp_path / "bad"), script.Job("e", [], 1.0, tmp_path / "e")]
    with pytest.raises(NextStepError, match="bad failed"):
        script.run_all(bad, tmp_path, 1)
    assert "e" not in ran


def group(task: str, number: int, right: list[float], spread: float) -> RolloutGroup:
    tokens = [torch.full((2, 64), spread * n) for n in range(len(right))]
    samples = tuple(
        RolloutSample(n, tokens=one, rewards={"reward": value, "world/right": value})
        for n, (one, value) in enumerate(zip(tokens, right, strict=True))
    )
    key = f"world/{task}/{number}-5"
    return RolloutGroup(key, "t", 1, (1, 2), GenerationSettings(), samples)


def test_the_report_pairs_prompts(reports: ModuleType) -> None:
    before = [group("counting", n, [0.0, 0.0], 1.0) for n in range(8)]
    before += [group("story", n, [1.0, 0.0], 1.0) for n in range(8)]
    after = [group("counting", n, [1.0, 1.0], 0.5) for n in range(8)]
    after += [group("story", n, [1.0, 0.0], 0.5) for n in range(8)]
    judged = {
        name: reports.Judged.of(iter(groups))
        for name, groups in (("start", before), ("best-of-n", after), ("nft", after))
    }
    told = reports.report(judged, {"start": 0.2, "best-of-n": 0.21, "nft": 0.2})
    assert told["nft"]["score"]["all"]["value"] == 0.75
    against = told["nft"]["against start"]
    assert against["drawing"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert against["story"]["value"] == 0
    assert against["reading"]["value"] is None
    assert told["nft"]["against best-of-n"]["all"]["value"] == 0
    assert told["best-of-n"]["flow_loss_ratio"] == 1.05
    assert told["nft"]["diversity_ratio"] == 0.25
    two = {name: judged[name] for name in ("start", "nft")}
    alone = reports.report(two, {"start": 0.2, "nft": 0.2})
    assert set(alone["nft"]) == set(told["nft"]) - {"against best-of-n"}
    table = reports.as_tables({"guided": told})
    assert "| nft | 75.0 | +100.0 (+100.0 to +100.0) |" in table


def test_answers_in_words_have_no_variance_of_tokens(reports: ModuleType) -> None:
    """Prompts of pictures alone tell how much samples of a prompt differ."""
    pictures = [group("colours", n, [1.0, 0.0], 1.0) for n in range(2)]
    answers = tuple(
        RolloutSample(n, line="two", rewards={"reward": n, "world/right": n}) for n in range(2)
    )
    asked = RolloutGroup(
        "world/read_count/1-5", "t", 1, (1, 2), GenerationSettings(), answers, draws=False
    )
    mixed = reports.Judged.of([*pictures, asked])
    assert mixed.variance == reports.Judged.of(pictures).variance
    assert [row.group for row in mixed.rows] == ["colours", "colours", "read_count"]


def test_curves_show_the_runs_that_tell_of_a_figure(reports: ModuleType, tmp_path: Path) -> None:
    """Rows of other events are left out, and so are runs that have not begun."""
    rows = [{"step": n, "event": "rollout", "reward": n / 4} for n in range(4)]
    rows.append({"step": 3, "reward": 9.0})
    (tmp_path / "nft").mkdir()
    log = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "nft" / "log.jsonl").write_text(log)
    assert reports.logged(tmp_path / "nft", "reward", "rollout")[-1] == (3, 0.75)
    runs = {"nft": (tmp_path / "nft", 64), "grpo": (tmp_path / "grpo", 64)}
    reports.save_curves(tmp_path / "reward.png", "reward", "rollout", "samples", runs)
    assert Image.open(tmp_path / "reward.png").size == SIZE
    reports.save_curves(tmp_path / "none.png", "winner_change", "", "step", runs)
    assert not (tmp_path / "none.png").exists()
