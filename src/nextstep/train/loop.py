"""One loop for every stage: batches in, a trained model and its average out.

A stage gives two functions: `make_batch(step)`, a pure function of the step so that a resumed run
sees the same batches, and `loss(model, batch)`. The loop owns everything else.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nextstep.train.ema import EMA
from nextstep.train.optimizer import build_optimizers
from nextstep.train.schedule import WarmupStableDecay

Batch = Any
LossFn = Callable[[nn.Module, Batch], dict[str, Tensor]]


@dataclass(frozen=True)
class LoopConfig:
    """What a run needs beside its model, batches and loss."""

    steps: int
    learning_rate: float
    warmup: int = 200
    decay: int = 0
    weight_decay: float = 0.1
    clip: float = 1.0
    ema: float = 0.999
    muon: bool = False
    accumulate: int = 1
    save_minutes: float = 10.0
    log_every: int = 20
    bf16: bool = True  # compute under autocast, with fp32 master weights
    seed: int = 0


class Loop:
    """Runs one stage and can be stopped and resumed at any step.

    Args:
        model: the module to train, fp32 master weights.
        make_batch: step -> batch, a pure function.
        loss: (model, batch) -> {"loss": scalar, ...}; the other entries are only logged.
        config: see `LoopConfig`.
        folder: where `state.pt` and `log.jsonl` are kept.
    """

    def __init__(
        self,
        model: nn.Module,
        make_batch: Callable[[int], Batch],
        loss: LossFn,
        config: LoopConfig,
        folder: Path,
    ) -> None:
        self.model, self.make_batch, self.loss, self.config = model, make_batch, loss, config
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.schedule = WarmupStableDecay(config.steps, config.warmup, config.decay)
        self.optimizers = build_optimizers(
            model, config.learning_rate, config.weight_decay, config.muon
        )
        self.ema = EMA(model, config.ema)
        self.device = next(model.parameters()).device
        self.step = 0
        self.skipped = 0

    def run(self, on_save: Callable[[Loop], None] | None = None) -> None:
        """Train until the last step, saving the state as often as configured and at the end."""
        saved = logged = time.monotonic()
        done_at_log = self.step
        with ThreadPoolExecutor(1) as pool:
            pending = pool.submit(self._batches, self.step)
            while self.step < self.config.steps:
                batches = pending.result()
                pending = pool.submit(self._batches, self.step + 1)
                metrics = self._train_step(batches)
                now = time.monotonic()
                if self.step % self.config.log_every == 0:
                    rate = (self.step - done_at_log) / (now - logged)
                    self._log(metrics, rate)
                    logged, done_at_log = now, self.step
                if now - saved > 60 * self.config.save_minutes:
                    self.save()
                    if on_save:
                        on_save(self)
                    saved = time.monotonic()
        self.save()
        if on_save:
            on_save(self)

    def _batches(self, step: int) -> list[Batch]:
        k = self.config.accumulate
        return [self.make_batch(step * k + i) for i in range(k)]

    def _train_step(self, batches: list[Batch]) -> dict[str, float]:
        """Forward, backward and update on one list of micro-batches; a NaN skips the update."""
        self.model.train()
        # Reseeding by step makes noise and dropout part of the (seed, step) contract.
        torch.manual_seed(self.config.seed * 1_000_003 + self.step)
        sums: dict[str, float] = {}
        for batch in batches:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
                losses = self.loss(self.model, batch)
            (losses["loss"] / len(batches)).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach()) / len(batches)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        factor = self.schedule(self.step)
        if math.isfinite(sums["loss"]) and math.isfinite(float(norm)):
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = self.config.learning_rate * factor
                optimizer.step()
            self.ema.update(self.model)
        else:
            self.skipped += 1
        self.model.zero_grad(set_to_none=True)
        self.step += 1
        return sums | {"grad_norm": float(norm), "lr": self.config.learning_rate * factor}

    def _log(self, metrics: dict[str, float], rate: float) -> None:
        row = {"step": self.step, **metrics, "steps_per_s": rate, "skipped": self.skipped}
        line = json.dumps({k: round(v, 6) for k, v in row.items()})
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def save(self) -> None:
        """Write the full resumable state beside the old one, then put it in its place."""
        state = {
            "step": self.step,
            "skipped": self.skipped,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        scratch = self.folder / "state.pt.part"
        torch.save(state, scratch)
        scratch.replace(self.folder / "state.pt")

    def resume(self) -> bool:
        """Take up `state.pt` if there is one; says whether there was."""
        path = self.folder / "state.pt"
        if not path.exists():
            return False
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.step, self.skipped = state["step"], state["skipped"]
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        return True
