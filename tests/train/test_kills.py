"""A run that is killed ten times ends with the very weights of one that never was.

Four lives end inside a step, four inside the writing of a checkpoint, two whenever the clock says.
Which call is the last is drawn from a fixed seed. Kill means SIGKILL: nothing is cleaned up.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from nextstep.train.checkpoint import newest, read_tensors, stored_shapes
from tests.train.play import server
from tests.train.toy import ToyStage, figures_of, keys_by_step, toy_run

SETTINGS: dict[str, Any] = {
    "steps": 160, "save_every": 2, "model": {"dropout": 0.2}, "warmup": 5, "decay": 10,
}  # fmt: skip
"""More steps than ten lives can make, so that none of them ends by itself."""


@dataclass
class Life:
    """How a life ends: at the `count`-th call of a kind, or after so many milliseconds."""

    end: str
    count: int


def live(folder: Path, life: Life) -> None:
    """Go on with the run until the end that is set."""
    if life.end == "step":
        deadly(ToyStage, "losses", life.count)
    elif life.end == "write":
        # The writer forces every file and folder of a checkpoint to the disk, one after the other.
        deadly(os, "fsync", life.count)
    else:
        (folder / "alive").touch()
    toy_run(folder, stop=SETTINGS["steps"], **SETTINGS)


def deadly(owner: Any, name: str, count: int) -> None:
    """Let the `count`-th call of a function be the last thing this process does."""
    kept: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def call(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return kept(*args, **named)

    setattr(owner, name, call)


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    found = {name: torch.empty(shape) for name, shape in stored_shapes(path).items()}
    read_tensors(path, found)
    return found


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[dict[str, Any]]]:
    """(run that nobody touched, run that was killed, what each death left)."""
    top = tmp_path_factory.mktemp("kills")
    draw = random.Random(5)
    lives = [Life("clock", draw.randint(30, 120)) for _ in range(2)]
    for _ in range(4):
        lives += [Life("step", draw.randint(3, 12)), Life("write", draw.randint(1, 20))]
    context = server()
    untouched, killed = top / "untouched", top / "killed"
    deaths = []
    for folder, life in [(untouched, Life("step", 0)), *((killed, life) for life in lives)]:
        folder.mkdir(exist_ok=True)
        process = context.Process(target=live, args=(folder, life))
        process.start()
        if life.end == "clock":
            while not (folder / "alive").exists():
                time.sleep(0.005)
            time.sleep(life.count / 1000)
            (folder / "alive").unlink()
            process.kill()
        process.join(120)
        if folder == killed:
            left = [path.name for path in (killed / "checkpoints").glob("*")]
            deaths.append({"life": life, "code": process.exitcode, "left": left})
        else:
            assert process.exitcode == 0
    last = context.Process(target=live, args=(killed, Life("step", 0)))
    last.start()
    last.join(120)
    assert last.exitcode == 0
    return untouched, killed, deaths


Ended = tuple[Path, Path, list[dict[str, Any]]]


def test_ten_lives_were_ended_in_steps_and_in_writes(ended: Ended) -> None:
    deaths = ended[2]
    assert [death["code"] for death in deaths] == [-signal.SIGKILL] * 10
    torn = [d for d in deaths if any(name.endswith(".part") for name in d["left"])]
    assert sum(death["life"].end == "write" for death in torn) >= 2
    begun = [d for d in deaths if any(name.startswith("step-") for name in d["left"])]
    # On a slow machine the first lives may end before anything was written.
    assert len(begun) >= 5


def test_the_end_is_bitwise_the_same(ended: Ended) -> None:
    untouched, killed, _ = ended
    one, other = (torch.load(folder / "result.pt") for folder in (untouched, killed))
    for kind in ("weights", "average"):
        for name, value in one[kind].items():
            assert torch.equal(value, other[kind][name]), name
    paths = [newest(folder / "checkpoints") for folder in (untouched, killed)]
    whole, pieces = (tensors_of(path) for path in paths if path)
    assert whole.keys() == pieces.keys()
    assert {"optimizer/out.weight/exp_avg_sq", "ema/out.weight"} <= whole.keys()
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)


def test_nothing_half_written_stays_and_the_log_is_one_curve(ended: Ended) -> None:
    untouched, killed, _ = ended
    left = sorted(path.name for path in (killed / "checkpoints").iterdir())
    assert left == ["latest", "step-00000158", "step-00000160"]
    assert (killed / "checkpoints" / "latest").read_text() == "step-00000160\n"
    losses = [[(r["step"], r["loss"]) for r in figures_of(f)] for f in (untouched, killed)]
    assert losses[0] == losses[1]
    assert keys_of_each_life_agree(killed, keys_by_step(untouched))


def keys_of_each_life_agree(folder: Path, wanted: dict[int, list[str]]) -> bool:
    """Every time a step was taken, it had the same samples."""
    lines = (folder / "keys-0.jsonl").read_text().splitlines()
    taken = [json.loads(line) for line in lines]
    return len(taken) > len(wanted) and all(keys == wanted[step] for step, keys in taken)
