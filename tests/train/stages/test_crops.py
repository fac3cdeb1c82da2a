"""Crops: pure functions of a number, dealt out to ranks, broken pictures counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nextstep.data.documents import SampleError
from nextstep.errors import NextStepError
from nextstep.train.stages.crops import CropBatches, RandomCrops, folder_crops, mixed_crops
from nextstep.world.crop_source import scene_crops
from nextstep.world.crops import CropMaker


def flat(index: int) -> Image.Image:
    return Image.new("RGB", (40 + index, 30), (index, index, index))


def test_every_picture_comes_once_an_epoch() -> None:
    crops = RandomCrops(7, flat, 16)
    for epoch in range(2):
        shown = [int(crops(7 * epoch + i, seed=i)[0, 0, 0]) for i in range(7)]
        assert sorted(shown) == list(range(7))
    assert [int(crops(i, 0)[0, 0, 0]) for i in range(7)] != shown
    assert np.array_equal(crops(3, 5), crops(3, 5))


def test_pictures_too_small_are_enlarged_and_others_cut() -> None:
    ramp = Image.fromarray(np.arange(90 * 60, dtype=np.uint32).astype(np.uint8).reshape(60, 90))
    crops = RandomCrops(1, lambda _: ramp.convert("RGB"), 32)
    made = [crops(0, seed) for seed in range(20)]
    assert all(crop.shape == (32, 32, 3) for crop in made)
    assert len({crop.tobytes() for crop in made}) == 20
    assert RandomCrops(1, lambda _: flat(3), 64)(0, 0).shape == (64, 64, 3)


def test_broken_pictures_are_counted_and_replaced(tmp_path: Path) -> None:
    for index in range(3):
        flat(index).save(tmp_path / f"{index}.png")
    (tmp_path / "3.jpg").write_bytes(b"no picture")
    crops = folder_crops(tmp_path, 16)
    assert {int(crops(i, 0)[0, 0, 0]) for i in range(8)} == {0, 1, 2}
    assert crops.broken == {"unreadable picture": {3}}

    def broken(index: int) -> Image.Image:
        raise SampleError(f"set/shard/{index}", "corrupt picture")

    crops = RandomCrops(2, broken, 16)
    with pytest.raises(NextStepError, match="none of the 2 pictures can be read"):
        crops(0, 0)
    assert crops.broken == {"corrupt picture": {0, 1}}
    with pytest.raises(NextStepError, match="holds no pictures"):
        folder_crops(tmp_path / "none", 16)
    with pytest.raises(NextStepError, match="no pictures to take"):
        RandomCrops(0, flat, 16)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_pictures_of_a_step(world: int) -> None:
    crops = RandomCrops(50, flat, 16)
    alone = CropBatches(crops, 12, micro=2)
    ranks = [CropBatches(crops, 12, micro=2, rank=r, world=world) for r in range(world)]
    for number in range(2):
        whole = alone.next_step()
        parts = [rank.next_step() for rank in ranks]
        assert sorted(key for part in parts for key in part.keys) == sorted(whole.keys)
        assert all(part.state == whole.state == {"step": number + 1} for part in parts)
        for rank, part in enumerate(parts):
            for batch, same in zip(part.batches, whole.batches[rank::world], strict=True):
                assert torch.equal(batch.pixels, same.pixels)
                assert (batch.seeds, batch.step) == (same.seeds, number)
    with pytest.raises(ValueError, match="cannot be dealt out to 5 rank"):
        CropBatches(crops, 12, micro=2, world=5)


def test_it_goes_on_from_its_state() -> None:
    crops = RandomCrops(5, flat, 16)
    stream = CropBatches(crops, 4)
    stream.next_step()
    resumed = CropBatches(crops, 4)
    resumed.load_state_dict(stream.state_dict())
    one, other = stream.next_step(), resumed.next_step()
    assert torch.equal(one.batches[0].pixels, other.batches[0].pixels)
    assert one.keys == other.keys


def test_drawn_crops_and_photographs_can_be_mixed() -> None:
    icons = np.zeros((1, 20, 20, 4), np.uint8)
    drawn = CropMaker(icons, [], size=16, batch=1)
    mixed = mixed_crops([(drawn.crop, 0.5), (RandomCrops(2, flat, 16), 0.5)])
    made = [mixed(i, i) for i in range(40)]
    dark = sum(int(crop.max()) <= 1 for crop in made)
    assert 8 < dark < 32
    assert np.array_equal(made[3], mixed(3, 3))
    with pytest.raises(NextStepError, match="positive share"):
        mixed_crops([(drawn.crop, 0.0)])


def test_crops_of_scenes_are_cut_from_one_scene_each() -> None:
    crop = scene_crops(64, sides=[32, 64, 96])
    made = [crop(number, seed=number) for number in range(12)]
    assert all((c.shape, c.dtype) == ((64, 64, 3), np.uint8) for c in made)
    assert all(np.array_equal(one, crop(0, seed)) for seed, one in enumerate(made))
    assert len({one.tobytes() for one in made}) == 12
    with pytest.raises(NextStepError, match="must reach the 64 pixels"):
        scene_crops(64, sides=[32, 48])
