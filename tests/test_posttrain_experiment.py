"""The script that compares post-training methods: its plan, its jobs, its report."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from nextstep.engine.settings import GenerationSettings
from nextstep.errors import NextStepError
from nextstep.recipe.load import load_recipe
from nextstep.rollout.samples import RolloutGroup, RolloutSample

SCRIPT = Path(__file__).parents[1] / "scripts" / "posttrain_experiment.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("posttrain_experiment", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


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
        else:
            assert recipe.data.sources[0].rollouts == str(tmp_path / "rollouts")
        assert set(job.needs) <= jobs.keys()
    judged = [name for name in jobs if name.startswith("held-out-")]
    assert len(judged) == 2 * len(experiment.names)
    assert "min" in script.told_cost(list(jobs.values()), 2)


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


def test_the_report_pairs_prompts(script: ModuleType) -> None:
    before = [group("colours", n, [0.0, 0.0], 1.0) for n in range(8)]
    before += [group("move", n, [1.0, 0.0], 1.0) for n in range(8)]
    after = [group("colours", n, [1.0, 1.0], 0.5) for n in range(8)]
    after += [group("move", n, [1.0, 0.0], 0.5) for n in range(8)]
    judged = {
        name: script.Judged.of(groups)
        for name, groups in (("start", before), ("best-of-n", after), ("nft", after))
    }
    told = script.report(judged, {"start": 0.2, "best-of-n": 0.21, "nft": 0.2})
    assert told["nft"]["score"]["all"]["value"] == 0.75
    against = told["nft"]["against start"]
    assert against["colours"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert against["edits"]["value"] == 0
    assert against["attributes"]["value"] is None
    assert told["nft"]["against best-of-n"]["all"]["value"] == 0
    assert told["best-of-n"]["flow_loss_ratio"] == 1.05
    assert told["nft"]["diversity_ratio"] == 0.25
    table = script.as_tables({"guided": told})
    assert "| nft | 75.0 | +100.0 (+100.0 to +100.0) |" in table
