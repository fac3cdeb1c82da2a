"""Train the scorer of the emoji world: the detector and the sign reader, then write their weights.

Fresh scenes never repeat. A pool of scenes that went through the image tokenizer, with noise on
their latents, is made first and mixed in, so that what a model draws is judged as what it is.

    python scripts/train_world_detector.py pool runs/scorer
    python scripts/train_world_detector.py detector runs/scorer
    python scripts/train_world_detector.py reader runs/scorer
    python scripts/train_world_detector.py export runs/scorer
    nextstep eval world --answers drawn --split seen -n 100 --seed 8128 -o runs/scorer/drawn
    nextstep eval world --answers decoded --split seen -n 100 --seed 8128 -o runs/scorer/decoded
    python scripts/train_world_detector.py ceilings runs/scorer
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import scorer_losses as losses
from nextstep.data.documents import derived_seed
from nextstep.engine.pretrained import load_parts
from nextstep.evaluate.world.detector import WEIGHTS
from nextstep.evaluate.world.network import (
    ANY,
    SIGN,
    DetectorNetwork,
    SignReader,
    fold_norms,
    labels,
    sign_cuts,
    with_norms,
)
from nextstep.image.pictures import to_bytes, to_pixels
from nextstep.model.precision import fastest
from nextstep.utils.files import read_json, write_json
from scorer_scenes import MOST, sample

KEY = "world scorer"
"""All scenes and all first weights come from it; no test of a model uses it."""

RECENT = 60
"""Batches whose fresh scenes are used again."""

Rows = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Pictures uint8 [N, H, W, 3], boxes [N, M, 4], names [N, M, 4], texts [N]."""


def autocast() -> torch.autocast:
    """bf16 where this processor computes it fast, else fp32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=fastest("cpu") == "bf16")


def make_pool(path: Path, count: int, model: str, batch: int = 32) -> None:
    """Scenes encoded and decoded by the image tokenizer of `model`, noise on their latents."""
    tokenizer = load_parts(model).image_tokenizer
    tokenizer.autoencoder.to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(derived_seed("pool") >> 1)
    rows: list[Rows] = []
    for start in range(0, count, batch):
        made = _made([derived_seed("pool", start + i) for i in range(batch)], signs=0.4)
        pixels = to_pixels(list(made[0])).to(memory_format=torch.channels_last)
        with torch.inference_mode(), autocast():
            latents = tokenizer.encode(pixels).float()
            level = torch.rand(batch, 1, 1, 1, generator=generator) ** 1.5 * 0.4
            noise = torch.randn(latents.shape, generator=generator)
            made = (to_bytes(tokenizer.decode(latents + level * noise)), *made[1:])
        rows.append(made)
        print(f"pool {start + batch} of {count}", flush=True)
    _save_rows(path, [np.concatenate(column) for column in zip(*rows, strict=True)])


def _made(seeds: list[int], signs: float) -> Rows:
    drawn = [sample(seed, signs) for seed in seeds]
    return (
        np.stack([picture for picture, _ in drawn]),
        np.stack([truth.boxes for _, truth in drawn]),
        np.stack([truth.names for _, truth in drawn]),
        np.array([truth.text for _, truth in drawn]),
    )


def _save_rows(path: Path, columns: list[np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ("pictures", "boxes", "names", "texts")
    np.savez(path, **dict(zip(names, columns, strict=True)))


def read_pool(path: Path) -> Rows:
    """What `make_pool` wrote."""
    with np.load(path) as file:
        pictures, boxes, names, texts = (file[c] for c in ("pictures", "boxes", "names", "texts"))
    room = ((0, 0), (0, MOST - boxes.shape[1]), (0, 0))
    return pictures, np.pad(boxes, room), np.pad(names, room, constant_values=ANY), texts


def mixed(
    pool: Rows, size: int, share: float, signs: float, key: str, first: int
) -> Iterator[Rows]:
    """Endless batches: `share` of them from the pool, a quarter fresh, the rest from what was
    fresh in the last `RECENT` batches, since drawing takes as long as learning. `first` is the
    number of the first batch.
    """
    taken, number, recent = round(size * share), first, list[Rows]()
    while True:
        rng = np.random.default_rng(derived_seed(KEY, key, "pool", number))
        new = size - taken if not recent else size // 4
        recent.append(_made([derived_seed(KEY, key, number, i) for i in range(new)], signs))
        recent = recent[-RECENT:]
        chosen = [
            [column[place] for column in recent[batch]]
            for batch in rng.integers(len(recent), size=size - taken - new)
            for place in rng.integers(size // 4, size=1)
        ]
        again = [np.stack(column) for column in zip(*chosen, strict=True)] if chosen else []
        rows = rng.choice(len(pool[0]), taken, replace=False)
        old = [column[rows] for column in pool]
        parts = [old, recent[-1], *([again] if chosen else [])]
        yield tuple(np.concatenate(column) for column in zip(*parts, strict=True))  # type: ignore[misc]
        number += 1


def detector_batches(pool: Rows, size: int, first: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Pixels [B, 3, H, W], boxes [B, M, 4] and names [B, M, 4], augmented."""
    generator = torch.Generator().manual_seed(derived_seed(KEY, "augment", first))
    for pictures, boxes, names, _ in mixed(pool, size, 0.25, 0.1, "detector", first):
        pixels, places = to_pixels(list(pictures)), torch.from_numpy(boxes)
        classes = torch.from_numpy(names).long()
        pixels, places = losses.mirrored(pixels, places, classes, generator)
        yield losses.worsened(pixels, generator), places, classes


def reader_batches(pool: Rows, size: int, first: int) -> Iterator[tuple[Tensor, list[str]]]:
    """Cut-out signs [B, 1, h, w] from boxes a little off, and their words."""
    generator = torch.Generator().manual_seed(derived_seed(KEY, "augment signs", first))
    keep = pool[3] != ""
    pool = tuple(column[keep] for column in pool)  # type: ignore[assignment]
    for pictures, boxes, names, texts in mixed(pool, size, 0.25, 1.0, "reader", first):
        rows, places = np.nonzero(names[..., 0] == SIGN)
        cut = torch.from_numpy(boxes[rows, places])
        cut = cut + torch.randn(cut.shape, generator=generator) * 1.2
        pixels = losses.worsened(to_pixels(list(pictures[rows])), generator)
        yield sign_cuts(pixels, cut), [str(text) for text in texts[rows]]


def fit(
    network: nn.Module, loss_of: Callable[[], tuple[Tensor, dict[str, float]]], steps: int,
    path: Path, rate: float,
) -> None:  # fmt: skip
    """Descend with a rate that rises for 5 % of the steps and falls along a cosine.

    An earlier run that stopped at `path` is gone on with.
    """
    decayed = [p for p in network.parameters() if p.dim() > 1]
    rest = [p for p in network.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}], rate
    )
    first, begun, means = 0, time.monotonic(), dict[str, float]()
    if path.exists():
        state = torch.load(path, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    for step in range(first, steps):
        share = min(1.0, (step + 1) / (0.05 * steps)) * (1 + math.cos(math.pi * step / steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate * share
        loss, told = loss_of()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        means = {k: 0.95 * means.get(k, v) + 0.05 * v for k, v in told.items()}
        if (step + 1) % 25 == 0 or step + 1 == steps:
            said = "  ".join(f"{name} {value:.3f}" for name, value in means.items())
            print(f"{step + 1} of {steps}  {said}  {time.monotonic() - begun:.0f} s", flush=True)
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "step": step + 1}, path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)


def steps_done(path: Path) -> int:
    """How far an earlier run came."""
    return int(torch.load(path, weights_only=True)["step"]) if path.exists() else 0


def train_detector(folder: Path, steps: int, batch: int) -> None:
    """The detector, from nothing or from where it stopped."""
    torch.manual_seed(derived_seed(KEY, "detector weights") >> 1)
    network = DetectorNetwork()
    with_norms(network)
    network.to(memory_format=torch.channels_last).train()
    done = steps_done(folder / "detector.pt")
    source = detector_batches(read_pool(folder / "pool.npz"), batch, done)

    def loss_of() -> tuple[Tensor, dict[str, float]]:
        pixels, boxes, names = next(source)
        with autocast():
            found = network(pixels.to(memory_format=torch.channels_last))
        return losses.detector_loss({k: v.float() for k, v in found.items()}, boxes, names)

    fit(network, loss_of, steps, folder / "detector.pt", rate=3e-3)


def train_reader(folder: Path, steps: int, batch: int) -> None:
    """The sign reader, from nothing or from where it stopped."""
    torch.manual_seed(derived_seed(KEY, "reader weights") >> 1)
    network = SignReader()
    with_norms(network)
    network.to(memory_format=torch.channels_last).train()
    done = steps_done(folder / "reader.pt")
    source = reader_batches(read_pool(folder / "pool.npz"), batch, done)

    def loss_of() -> tuple[Tensor, dict[str, float]]:
        signs, texts = next(source)
        with autocast():
            logits = network(signs.to(memory_format=torch.channels_last))
        return losses.reader_loss(logits.float(), texts)

    fit(network, loss_of, steps, folder / "reader.pt", rate=2e-3)


def export(folder: Path, output: Path) -> None:
    """Fold the batch norms away and write both networks as 16-bit floats."""
    weights: dict[str, Tensor] = {}
    for name, network in (("detector", DetectorNetwork()), ("reader", SignReader())):
        with_norms(network)
        network.load_state_dict(torch.load(folder / f"{name}.pt", weights_only=True)["network"])
        fold_norms(network)
        found = network.state_dict().items()
        weights |= {f"{name}.{key}": value.half().contiguous() for key, value in found}
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, output.with_suffix(".part"), {"objects": "; ".join(labels())})
    output.with_suffix(".part").replace(output)
    print(f"{output} {output.stat().st_size / 1e6:.2f} MB")


def write_ceilings(folder: Path, output: Path) -> None:
    """What the truth scored, from the cards of two evaluations, beside the weights."""
    cards = {who: read_json(folder / who / "card.json") for who in ("drawn", "decoded")}
    tasks = {
        task: {who: one["tasks"][task]["seen"]["mean"] for who, one in cards.items()}
        for task in cards["drawn"]["tasks"]
    }
    kept = ("items_per_task", "seed", "model", "model_hash")
    told = {name: cards["decoded"][name] for name in kept}
    write_json(output.with_name("ceilings.json"), {**told, "split": "seen", "tasks": tasks})
    for task, scores in tasks.items():
        print(f"| {task} | {scores['drawn'] * 100:.1f} | {scores['decoded'] * 100:.1f} |")


def main() -> None:
    """One stage of the training."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stage", choices=("pool", "detector", "reader", "export", "ceilings"))
    parser.add_argument("folder", type=Path, help="where the pool and the states go")
    parser.add_argument("--model", default="nano", help="whose image tokenizer the pool uses")
    parser.add_argument("--pool", type=int, default=2560, help="pictures in the pool")
    parser.add_argument("--steps", type=int, help="default 575, reader 500")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.stage == "pool":
        make_pool(args.folder / "pool.npz", args.pool, args.model)
    elif args.stage == "detector":
        train_detector(args.folder, args.steps or 575, args.batch)
    elif args.stage == "reader":
        train_reader(args.folder, args.steps or 500, args.batch)
    elif args.stage == "export":
        export(args.folder, args.output)
    else:
        write_ceilings(args.folder, args.output)


if __name__ == "__main__":
    main()
