"""The tokenizer stage in the one loop: it learns, resumes bitwise, and ranks agree."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from nextstep.train.checkpoint import newest, read_weights
from nextstep.train.parallel import build_mesh, joined
from nextstep.train.stages.crops import CropBatches, RandomCrops
from nextstep.train.stages.tokenizer import TokenizerStage
from nextstep.train.trainer import TrainConfig, Trainer
from nextstep.vae.autoencoder import Autoencoder
from nextstep.vae.config import AutoencoderConfig
from nextstep.vae.perceptual import FeatureNet
from tests.train.play import Scene, perform

NETWORK = AutoencoderConfig((8, 8), 1, 4, 4, deterministic=False)
WEIGHTS = {
    "l1": 1.0, "l2": 1.0, "gradient": 1.0, "perceptual": 0.5, "kl": 0.1, "adversarial": 0.2,
}  # fmt: skip
CONFIG = TrainConfig(
    steps=4, learning_rate=2e-3, warmup=1, precision="fp32", ema=0.5, save_minutes=0, log_every=1,
    measure_peak=False, rate_scales={"critic.*": 0.5},
)  # fmt: skip


def blocks(index: int) -> Image.Image:
    values = np.random.default_rng(index).integers(0, 255, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((24, 20), Image.Resampling.NEAREST)


def trainer_for(folder: Path, rank: int = 0, world: int = 1, mesh: Any = None) -> Trainer:
    torch.set_num_threads(1)
    torch.manual_seed(5)
    features = FeatureNet((0, 1))
    stage = TokenizerStage(NETWORK, 0.3, WEIGHTS, adversarial_from=2, features=features)
    model = stage.trainee(Autoencoder(NETWORK), (8, 16))
    batches = CropBatches(RandomCrops(10, blocks, 16), 8, 2, 0, rank, world)
    return Trainer(model, stage, batches, CONFIG, folder, mesh=mesh)


def ranks_run(folder: Path) -> None:
    with joined("cpu") as ranks:
        trainer_for(folder, ranks.rank, ranks.world, build_mesh(ranks)).run()


def rows_of(folder: Path) -> list[dict]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [row for line in lines if "loss" in (row := json.loads(line))]


def test_it_learns_and_goes_on_bitwise(tmp_path: Path) -> None:
    whole = trainer_for(tmp_path / "whole")
    assert whole.run()
    rows = rows_of(tmp_path / "whole")
    assert rows[-1]["l1"] < rows[0]["l1"]
    assert {*WEIGHTS, "critic"} <= rows[0].keys()
    half = trainer_for(tmp_path / "half")
    for _ in range(2):
        half.train_step(half.stream.take())
    half.save()
    half.writer.wait()
    rest = trainer_for(tmp_path / "half")
    assert rest.resume()
    assert rest.run()
    found = rest.weights()
    for name, weight in whole.weights().items():
        assert torch.equal(weight, found[name]), name
    assert any(name.startswith("critic.") for name in found)
    assert not any("features" in name for name in found)


def test_two_ranks_train_the_same_as_one(tmp_path: Path) -> None:
    scenes = [Scene(count, tmp_path / str(count), ranks_run) for count in (1, 2)]
    perform(scenes)
    one, two = (read_weights(newest(scene.folder / "checkpoints")) for scene in scenes)
    assert one.keys() == two.keys()
    for name, weight in one.items():
        assert torch.allclose(weight, two[name], atol=2e-4), name
    for alone, together in zip(*(rows_of(scene.folder) for scene in scenes), strict=True):
        for name in ("loss", *WEIGHTS, "critic"):
            assert abs(alone[name] - together[name]) < 1e-4 * max(1, abs(alone[name]))


def test_a_decoder_is_refined_in_the_loop(tmp_path: Path) -> None:
    plain = dataclasses.replace(NETWORK, deterministic=True)
    stage = TokenizerStage(plain, decoder_only=True)
    torch.manual_seed(1)
    model = stage.trainee(Autoencoder(plain))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = CropBatches(RandomCrops(10, blocks, 16), 4)
    config = dataclasses.replace(CONFIG, rate_scales={}, weight_decay=0.5)
    Trainer(model, stage, batches, config, tmp_path).run()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("autoencoder.encoder."), name
