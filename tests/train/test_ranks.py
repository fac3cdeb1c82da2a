"""One, two, three and four gloo processes train the same model, and take up each other's runs.

In fp64 only the order of additions differs between numbers of ranks, so the bound is tight and
would catch any wrong count, weight or average; in fp32 the bound is what training sees.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nextstep.model.nextstep import NextStepModel
from nextstep.train.checkpoint import newest, read_weights
from nextstep.train.checkpoint_integrity import SUMS, damage
from nextstep.train.muon import Muon, shares
from nextstep.train.parallel import Ranks, build_mesh, fill, joined, shard, whole
from nextstep.train.trainer import TrainConfig, Trainer
from tests.conftest import TINY, random_model
from tests.train.play import Scene, perform
from tests.train.test_trainer import TextSource, TextStage
from tests.train.toy import (
    ToySource,
    ToyStage,
    events_of,
    figures_of,
    keys_by_step,
    toy_model,
    toy_run,
)

WITHIN_FP64, WITHIN_FP32 = 1e-12, 1e-5
"""Largest difference of weights and relative difference of losses between numbers of ranks."""
STEPS: dict[str, Any] = {"steps": 4, "warmup": 1, "decay": 2}
EXACT: dict[str, Any] = {**STEPS, "dtype": torch.float64}


def poisoned_run(folder: Path) -> None:
    """Row 6 is no number; with two ranks and 5 rows a step it is the second rank's first."""
    with joined("cpu") as ranks:
        source = ToySource(rank=ranks.rank, world=ranks.world)
        source.poisoned = {6}
        config = TrainConfig(3, 1e-2, precision="fp32", log_every=1, measure_peak=False)
        model, mesh = toy_model(), build_mesh(ranks)
        trainer = Trainer(model, ToyStage(), source, config, folder, mesh=mesh)
        seen = []
        for _ in range(3):
            report = trainer.train_step(trainer.stream.take())
            trainer._watch(report)
            seen.append(whole(model.out.weight.detach()).clone())
            assert report.suspects == (("toy/6", "toy/8") if report.skipped else ())
        assert [torch.equal(a, b) for a, b in itertools.pairwise(seen)] == [True, False]
        assert trainer.skipped == 1
        (folder / f"rank-{ranks.rank}").touch()


def tiny_run(folder: Path, precision: str = "fp32", **settings: Any) -> None:
    """The real model with tied embeddings, sharded on "meta" and filled; the head never used."""
    torch.set_num_threads(1)
    config = dataclasses.replace(TINY, tie_word_embeddings=True)
    with joined("cpu") as ranks:
        mesh = build_mesh(ranks)
        with torch.device("meta"):
            model = NextStepModel(config)
        if mesh is not None:
            shard(model, mesh, precision)
        first = random_model(config)
        assert fill(model, first.named_parameters(), ranks.device) == []
        train = TrainConfig(
            2, 1e-2, precision=precision, log_every=1, measure_peak=False,
            gradient_checkpointing=True, **settings,
        )  # fmt: skip
        stream = HalfSource(ranks)
        trainer = Trainer(model, TextStage(), stream, train, folder, mesh=mesh)
        trainer.run()
        result = trainer.weights(average=False)
        with trainer.averaged() as averaged:
            for name, parameter in averaged.named_parameters():
                result[f"average.{name}"] = whole(parameter.detach()).clone()
        if ranks.rank == 0:
            torch.save(result, folder / "result.pt")


def muon_run(folder: Path) -> None:
    """The same gradients through torch's Muon and through the one whose work is dealt out."""
    shapes = [(8, 8), (24, 8), (8, 24), (5, 3), (16, 16)]
    with joined("cpu") as ranks:
        torch.manual_seed(0)
        one, other = ([torch.nn.Parameter(torch.randn(s)) for s in shapes] for _ in range(2))
        for mine, theirs in zip(one, other, strict=True):
            theirs.data.copy_(mine)

        def groups(p: list[Any]) -> list[dict[str, Any]]:
            return [{"params": p[:3]}, {"params": p[3:], "lr": 1e-2}]

        optimizers = [
            torch.optim.Muon(groups(one), 0.1, 0.1, 0.95, adjust_lr_fn="match_rms_adamw"),
            Muon(groups(other), 0.1, 0.1, copies=ranks.world > 1),
        ]
        for _ in range(4):
            for mine, theirs in zip(one, other, strict=True):
                mine.grad = torch.randn_like(mine)
                theirs.grad = mine.grad.clone()
            one[4].grad = other[4].grad = None  # never used, so never moved
            for optimizer in optimizers:
                optimizer.step()
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))
        states = [
            [optimizer.state[p] for p in p_]
            for optimizer, p_ in zip(optimizers, (one, other), strict=True)
        ]
        for mine, theirs in zip(*states, strict=True):
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[name], theirs[name]) for name in mine)
        (folder / f"rank-{ranks.rank}").touch()


class HalfSource(TextSource):
    """One rank takes both micro-batches of a step, or each of two ranks one."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self.ranks = ranks

    def next_step(self) -> Any:
        step = super().next_step()
        one, other = step.batches[0], step.batches[1] + 20
        batches = [one, other] if self.ranks.world == 1 else [(one, other)[self.ranks.rank]]
        return dataclasses.replace(step, batches=batches, tokens=96 * len(batches))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs, played in one set of processes."""
    top = tmp_path_factory.mktemp("ranks")
    often = {**EXACT, "source": {"micro": 1}, "reduce_every_batch": True}
    perform(
        [
            Scene(1, top / "1", toy_run, EXACT),
            Scene(2, top / "2", toy_run, EXACT),
            Scene(2, top / "2 looked at", toy_run, {**EXACT, "sampled": True, "sample_every": 1}),
            Scene(3, top / "3", toy_run, EXACT),
            Scene(4, top / "2x2", toy_run, {**EXACT, "replicas": 2}),
            Scene(3, top / "3 copies", toy_run, {**EXACT, "replicas": 3}),
            Scene(2, top / "2 then 1", toy_run, {**EXACT, "stop": 2}),
            Scene(1, top / "2 then 1", toy_run, EXACT),
            Scene(1, top / "1 then 3", toy_run, {**EXACT, "stop": 2}),
            Scene(3, top / "1 then 3", toy_run, often),
            Scene(1, top / "muon 1", toy_run, {**STEPS, "steps": 3, "optimizer": "muon"}),
            Scene(2, top / "muon 2", toy_run, {**STEPS, "steps": 3, "optimizer": "muon"}),
            Scene(
                3,
                top / "muon 3 copies",
                toy_run,
                {
                    **STEPS,
                    "steps": 3,
                    "optimizer": "muon",
                    "replicas": 3,
                },
            ),
            Scene(3, top / "muon alike", muon_run),
            Scene(1, top / "muon alone", muon_run),
            Scene(1, top / "head 1", toy_run, {**often, "freeze": ("layers.*", "out.*")}),
            Scene(2, top / "head 2", toy_run, {**often, "freeze": ("layers.*", "out.*")}),
            Scene(2, top / "poisoned", poisoned_run),
            Scene(1, top / "tiny 1", tiny_run),
            Scene(2, top / "tiny 2", tiny_run),
            Scene(1, top / "tiny bf16 1", tiny_run, {"precision": "bf16"}),
            Scene(2, top / "tiny bf16 2", tiny_run, {"precision": "bf16"}),
        ]
    )
    return top


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in figures_of(folder)]


def result(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "result.pt")


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


@pytest.mark.parametrize("other", ["2", "3", "2x2", "3 copies", "2 then 1", "1 then 3"])
def test_any_number_of_ranks_trains_the_same(runs: Path, other: str) -> None:
    one, many = result(runs / "1"), result(runs / other)
    assert furthest(one["weights"], many["weights"]) < WITHIN_FP64
    assert furthest(one["average"], many["average"]) < WITHIN_FP64
    # The log keeps seven digits.
    assert losses(runs / "1") == pytest.approx(losses(runs / other), rel=2e-7)
    norms = [[row["grad_norm"] for row in figures_of(runs / f)] for f in ("1", other)]
    assert norms[0] == pytest.approx(norms[1], rel=2e-7)


def test_looking_at_the_averaged_model_leaves_no_trace(runs: Path) -> None:
    for kind in ("weights", "average"):
        assert furthest(result(runs / "2")[kind], result(runs / "2 looked at")[kind]) == 0


@pytest.mark.parametrize("other", ["2", "3", "3 copies", "2 then 1", "1 then 3"])
def test_every_number_of_ranks_sees_the_same_samples(runs: Path, other: str) -> None:
    keys = keys_by_step(runs / other)
    assert keys == keys_by_step(runs / "1")
    assert list(keys) == list(range(4))


def test_a_head_alone_is_trained_though_many_micro_batches_do_not_use_it(runs: Path) -> None:
    one, two = (result(runs / name)["weights"] for name in ("head 1", "head 2"))
    assert furthest(one, two) < WITHIN_FP64
    assert torch.equal(one["out.weight"], toy_model(torch.float64).out.weight)
    assert not torch.equal(one["extra.weight"], toy_model(torch.float64).extra.weight)


def test_muon_works_on_sharded_matrices(runs: Path) -> None:
    one, two = losses(runs / "muon 1"), losses(runs / "muon 2")
    assert one == pytest.approx(two, rel=WITHIN_FP32)


def test_muon_in_bf16_is_that_of_torch_bit_for_bit(runs: Path) -> None:
    assert len(list((runs / "muon alone").glob("rank-*"))) == 1


def test_copies_share_the_work_of_muon_and_move_as_one(runs: Path) -> None:
    assert len(list((runs / "muon alike").glob("rank-*"))) == 3
    one, three = losses(runs / "muon 1"), losses(runs / "muon 3 copies")
    assert one == pytest.approx(three, rel=WITHIN_FP32)


def test_work_is_dealt_out_evenly() -> None:
    assert shares([5, 3, 3, 2], 2) == [0, 1, 1, 0]
    assert shares([1], 4) == [0]


def test_a_resumed_run_tells_of_its_ranks(runs: Path) -> None:
    events = events_of(runs / "1 then 3")
    assert [row["event"] for row in events] == ["stopped", "resumed"]
    assert events[1]["detail"] == "reduce_every_batch False -> True; ranks 1 -> 3"
    assert events_of(runs / "2 then 1")[0]["detail"] == "by another rank"


def test_a_sharded_checkpoint_opens_without_ranks(runs: Path) -> None:
    path = newest(runs / "3" / "checkpoints")
    assert path is not None
    assert len(list(path.glob("*.distcp"))) == 3
    assert len((path / SUMS).read_text().splitlines()) == 5
    assert damage(path) == ""
    saved = result(runs / "3")
    assert furthest(read_weights(path), saved["average"]) == 0
    assert furthest(read_weights(path, average=False), saved["weights"]) == 0


def test_a_bad_sample_on_one_rank_skips_the_step_on_all(runs: Path) -> None:
    assert {path.name for path in (runs / "poisoned").glob("rank-*")} == {"rank-0", "rank-1"}


def test_the_real_model_is_sharded_from_meta(runs: Path) -> None:
    one, two = result(runs / "tiny 1"), result(runs / "tiny 2")
    assert furthest(one, two) < WITHIN_FP32
    assert losses(runs / "tiny 1") == pytest.approx(losses(runs / "tiny 2"), rel=WITHIN_FP32)


def test_bf16_of_one_and_of_many_devices_stay_close(runs: Path) -> None:
    """On many the weights themselves are gathered in bf16, which is another rounding."""
    one, two = losses(runs / "tiny bf16 1"), losses(runs / "tiny bf16 2")
    assert one == pytest.approx(two, rel=2e-2)
