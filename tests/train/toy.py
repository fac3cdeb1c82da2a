"""A model, a stage and a stream of steps small enough to train in milliseconds.

Rows differ in length, and only some have an "extra" part, so that a rank may meet a step in which
it uses a parameter that another rank does not.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextstep.train.contracts import Step
from nextstep.train.parallel import build_mesh, joined, run_gathered
from nextstep.train.trainer import TrainConfig, Trainer

WIDTH = 7
CONFIG = TrainConfig(
    steps=12, learning_rate=1e-2, warmup=2, decay=4, precision="fp32", log_every=1, ema=0.9,
    save_minutes=0, clip=0.5, weight_decay=0.05, measure_peak=False,
)  # fmt: skip


class ToyLayer(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        return x + F.dropout(torch.tanh(self.linear(self.norm(x))), self.dropout, self.training)


class ToyModel(nn.Module):
    def __init__(self, dropout: float = 0.0, layers: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ToyLayer(dropout) for _ in range(layers))
        self.out = nn.Linear(WIDTH, 3)
        self.extra = nn.Linear(WIDTH, 5)  # 5 rows do not divide by 2 or 3 ranks
        self.register_buffer("offset", torch.full((3,), 0.25))

    def hidden(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def toy_model(dtype: torch.dtype = torch.float32, **settings: Any) -> ToyModel:
    torch.manual_seed(3)
    return ToyModel(**settings).to(dtype)


class ToyStage:
    """Squared error of every token, and of the extra part where a row has one."""

    loss_weights: ClassVar = {"main": 1.0, "extra": 0.5}

    def prepare(self, batch: list[dict], device: Any) -> list[dict]:
        return batch

    def counts(self, batch: list[dict]) -> dict[str, float]:
        tokens = [(len(row["x"]), row["extra"]) for row in batch]
        return {
            "main": float(sum(n for n, _ in tokens)),
            "extra": float(sum(n for n, extra in tokens if extra)),
        }

    def losses(self, model: ToyModel, batch: list[dict]) -> dict[str, Tensor]:
        x = torch.cat([row["x"] for row in batch]).to(model.offset.dtype)
        hidden = model.hidden(x)
        aim = torch.stack((x.sum(1), x.amax(1), x.prod(1)), dim=1)
        out = {"main": (model.out(hidden) + model.offset - aim).square().mean(1).sum()}
        extra = torch.cat([torch.full((len(row["x"]),), row["extra"]) for row in batch])
        if bool(extra.any()):
            error = model.extra(hidden[extra]) - x[extra, :5]
            out["extra"] = error.square().mean(1).sum()
        return out


class ToySource:
    """Rows 0, 1, 2 ... for ever, `rows` a step, dealt out to ranks in turn."""

    def __init__(self, rows: int = 5, micro: int = 2, rank: int = 0, world: int = 1) -> None:
        self.rows, self.micro, self.rank, self.world = rows, micro, rank, world
        self.next_row = 0
        self.poisoned: set[int] = set()

    def row(self, number: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(number)
        length = 1 + int(torch.randint(6, (), generator=generator))
        x = torch.randn(length, WIDTH, generator=generator, dtype=torch.float64)
        if number in self.poisoned:
            x = x * float("nan")
        return {"x": x, "extra": number % 3 == 0, "key": f"toy/{number}"}

    def next_step(self) -> Step:
        numbers = range(self.next_row, self.next_row + self.rows)
        self.next_row += self.rows
        mine = [self.row(n) for n in numbers if n % self.rows % self.world == self.rank]
        return Step(
            [mine[i : i + self.micro] for i in range(0, len(mine), self.micro)],
            [row["key"] for row in mine],
            sum(len(row["x"]) for row in mine),
            self.state_dict(),
        )

    def state_dict(self) -> dict[str, Any]:
        return {"next_row": self.next_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.next_row = state["next_row"]


def toy_run(
    folder: Path,
    stop: int = 12,
    dtype: torch.dtype = torch.float32,
    source: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    replicas: int = 1,
    sampled: bool = False,
    **settings: Any,
) -> None:
    """Train up to step `stop` in this process and those beside it, going on where a run stands.

    Rank 0 leaves `result.pt` in the folder: weights and averages. A sampled run also runs the
    averaged model between steps, which must leave no trace.
    """
    torch.set_num_threads(1)
    with joined("cpu") as ranks:
        stream = ToySource(**(source or {}), rank=ranks.rank, world=ranks.world)
        trainer = Trainer(
            toy_model(dtype, **(model or {})),
            ToyStage(),
            stream,
            replace(CONFIG, **settings),
            folder,
            mesh=build_mesh(ranks, replicas),
            on_sample=look if sampled else None,
        )
        trainer.resume()
        note_keys(trainer, folder / f"keys-{ranks.rank}.jsonl")
        run_until(trainer, stop)
        result = {"weights": trainer.weights(False), "average": trainer.weights()}
        if ranks.rank == 0:
            torch.save(result, folder / "result.pt")


def look(trainer: Trainer) -> None:
    """Compare what the averaged model answers with what its whole weights answer."""
    weights = trainer.weights()
    x = torch.ones(1, WIDTH, dtype=next(trainer.model.parameters()).dtype)
    with trainer.averaged() as model:
        answer = run_gathered(model, lambda m: m.out(m.hidden(x)))
    if trainer.peers.leads:
        plain = ToyModel().to(x.dtype)
        plain.load_state_dict(weights)
        plain.eval()
        assert torch.allclose(plain.out(plain.hidden(x)), answer, rtol=1e-5)


def note_keys(trainer: Trainer, path: Path) -> None:
    """From now on every step leaves a line: its number and the keys of this rank's samples."""
    take = trainer.stepper.take

    def noted(step: Step, number: int, passed: float = 0.0) -> Any:
        with path.open("a") as file:
            file.write(json.dumps([number, step.keys]) + "\n")
        return take(step, number, passed)

    trainer.stepper.take = noted  # type: ignore[method-assign]


def run_until(trainer: Trainer, stop: int) -> None:
    """`Trainer.run`, but asked to stop after step `stop`, as by a signal."""
    if stop >= trainer.config.steps:
        trainer.run()
        return
    whole = trainer.train_step

    def step_and_ask(step: Step) -> Any:
        report = whole(step)
        if trainer.step == stop and trainer.peers.rank == trainer.peers.world - 1:
            os.kill(os.getpid(), 15)
        return report

    trainer.train_step = step_and_ask  # type: ignore[method-assign]
    assert trainer.run() is False


def figures_of(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if "event" not in row]


def events_of(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if "event" in row]


def keys_by_step(folder: Path) -> dict[int, list[str]]:
    """Samples of every step in the order of their rows, from the notes of all ranks."""
    found: dict[int, list[str]] = {}
    for path in folder.glob("keys-*.jsonl"):
        for line in path.read_text().splitlines():
            step, keys = json.loads(line)
            found.setdefault(step, []).extend(keys)
    return {
        step: sorted(keys, key=lambda key: int(key.partition("/")[2]))
        for step, keys in sorted(found.items())
    }
