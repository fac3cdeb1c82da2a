"""Starting processes, and what each finds about itself in the environment."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nextstep.errors import ModelFileError, NextStepError
from nextstep.train.launch import launch, launch_on_ray
from nextstep.train.parallel import (
    Peers,
    Ranks,
    build_mesh,
    fill,
    gathered,
    joined,
    run_gathered,
    shard_units,
    whole,
)
from tests.conftest import TINY, random_model
from tests.train.play import server


def note(folder: Path, fail: bool) -> None:
    with joined("cpu") as ranks:
        peers = Peers(build_mesh(ranks))
        assert peers.table([float(ranks.rank), 1.0]).tolist() == [[0.0, 1.0], [1.0, 1.0]]
        assert peers.any(ranks.rank == 1, False) == [True, False]
        assert peers.names([f"r{ranks.rank}"]) == ["r0", "r1"]
        (folder / f"{ranks.rank} of {ranks.world}").touch()
    if fail and ranks.rank == 1:
        raise ValueError("rank 1 is unwell")


def test_processes_of_one_machine_find_each_other(tmp_path: Path) -> None:
    server()
    with pytest.raises(Exception, match="rank 1 is unwell"):
        launch(note, (tmp_path, True), 2, "forkserver")
    assert {path.name for path in tmp_path.iterdir()} == {"0 of 2", "1 of 2"}
    with pytest.raises(NextStepError, match="at least 1 process, not 0"):
        launch(note, (tmp_path, True), 0)


def test_one_process_needs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    ran: list[Ranks] = []

    def work(told: str) -> None:
        with joined("cpu") as ranks:
            assert build_mesh(ranks) is None and told == "hello"
            ran.append(ranks)

    launch(work, ("hello",))
    assert ran == [Ranks(0, 1, 0, torch.device("cpu"))]
    assert not torch.distributed.is_initialized()
    peers = Peers(None)
    assert peers.leads and peers.any(True, False) == [True, False]
    model = nn.Linear(2, 2)
    assert whole(model.weight) is model.weight
    assert run_gathered(model, lambda m, x: (m, x), 3) == (model, 3)
    assert gathered({"w": model.weight}, leads=False) == {}


def test_a_bad_environment_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(NextStepError, match="RANK must be a number, not 'first'"), joined("cpu"):
        pass
    monkeypatch.setenv("RANK", "0")
    if not torch.cuda.is_available():
        with pytest.raises(NextStepError, match="no CUDA device, there are 0"), joined("cuda"):
            pass
    with pytest.raises(NextStepError, match="6 processes cannot hold 4 equal replicas"):
        build_mesh(Ranks(0, 6), replicas=4)


def test_only_layers_are_gathered_one_by_one() -> None:
    model = random_model(TINY)
    assert shard_units(model) == list(model.layers)
    wrapped = nn.Module()
    wrapped.base = model
    assert shard_units(wrapped) == list(model.layers)


def test_filling_names_what_does_not_fit() -> None:
    device = torch.device("cpu")
    with torch.device("meta"):
        model = nn.Linear(2, 3)
    with pytest.raises(ModelFileError, match="no tensor 'scale'"):
        fill(model, [("scale", torch.ones(3))], device)
    with pytest.raises(ModelFileError, match=r"'bias' has shape \(4,\), the model's has \(3,\)"):
        fill(model, [("bias", torch.ones(4))], device)
    assert fill(model, [("bias", torch.ones(3))], device) == ["weight"]
    assert model.bias.tolist() == [1, 1, 1]


def test_ray_runs_the_function_on_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """By construction, with a stand-in for Ray: starting a real cluster takes a minute here."""
    seen: dict[str, Any] = {}

    class TorchTrainer:
        def __init__(self, work: Any, **settings: Any) -> None:
            self.work = work
            seen.update(settings)

        def fit(self) -> None:
            for _ in range(seen["scaling_config"]["num_workers"]):
                self.work(seen["train_loop_config"])

    train, with_torch = types.ModuleType("ray.train"), types.ModuleType("ray.train.torch")
    train.ScalingConfig = train.RunConfig = dict  # type: ignore[attr-defined]
    with_torch.TorchConfig, with_torch.TorchTrainer = dict, TorchTrainer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray.train", train)
    monkeypatch.setitem(sys.modules, "ray.train.torch", with_torch)
    ran: list[str] = []
    launch_on_ray(ran.append, ("here",), processes=3, cuda=False, cpus_each=2, name="try")
    assert ran == ["here"] * 3
    assert seen["scaling_config"]["resources_per_worker"] == {"CPU": 2}
    assert seen["torch_config"] == {"backend": "gloo"}
    assert seen["run_config"] == {"name": "try"}


def test_ray_is_imported_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.train", None)
    with pytest.raises(NextStepError, match=r"Ray Train is not installed; run pip install"):
        launch_on_ray(print)
