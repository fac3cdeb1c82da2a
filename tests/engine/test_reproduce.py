"""Replay and verify: the picture again, or where it differs, or why it cannot be made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nextstep.engine.engine import Engine
from nextstep.engine.metadata import as_texts, read_record
from nextstep.engine.reproduce import check_record, compare, record_dtype, replay
from nextstep.engine.results import GeneratedPicture
from nextstep.errors import NextStepError
from nextstep.image.encode import encode
from nextstep.pipeline import NextStepPipeline
from tests.cli.test_commands import nextstep

SOURCES = [Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 16), "blue")]


def by_engine(pipeline: NextStepPipeline) -> list[GeneratedPicture]:
    engine = Engine(
        pipeline.model, pipeline.text_tokenizer, pipeline.image_tokenizer, pipeline.defaults,
        model_hash=pipeline.model_hash,
    )  # fmt: skip
    engine.submit(engine.request("a red apple", seed=3, index=2, solver="cps", steps=3))
    engine.submit(engine.request("<image_1> like <image_0>", SOURCES, seed=1))
    return [event.picture for event in engine.run_until_idle() if event.picture]


def test_engine_pictures_come_out_equal(tiny_pipeline: NextStepPipeline) -> None:
    plain, edited = sorted(by_engine(tiny_pipeline), key=lambda p: p.settings["task"] == "edit")
    assert replay(tiny_pipeline, plain.settings).png() == plain.png()
    assert replay(tiny_pipeline, edited.settings, SOURCES).png() == edited.png()
    with pytest.raises(NextStepError, match="not those the picture was made from"):
        replay(tiny_pipeline, edited.settings, SOURCES[::-1])
    with pytest.raises(NextStepError, match=r"2 source pictures, 0 were given; .* -i"):
        replay(tiny_pipeline, edited.settings)
    here, seen = torch.get_num_threads(), list[int]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "set_num_threads", seen.append)
        replay(tiny_pipeline, plain.settings | {"threads": here + 1})
    assert seen == [here + 1, here]
    with pytest.raises(NextStepError, match="blocks of 16 rows"):
        replay(tiny_pipeline, plain.settings | {"block_rows": 16})


def test_pipeline_pictures_come_out_to_a_rounding(tiny_pipeline: NextStepPipeline) -> None:
    made = tiny_pipeline.generate("two cats", num_images=3, seed=8, solver="sde", steps=3)
    again = replay(tiny_pipeline, made[2].settings)
    assert again.settings == made[2].settings
    assert compare(again.image, made[2].image).largest <= 1
    assert compare(again.image, made[1].image).box is not None
    edited = tiny_pipeline.edit(SOURCES, "<image_1> like <image_0>")[0]
    assert replay(tiny_pipeline, edited.settings, SOURCES).png() == edited.png()


def test_difference_says_where() -> None:
    one = np.zeros((8, 10, 3), dtype=np.uint8)
    other = one.copy()
    other[2, 3, 1], other[4, 6, 0] = 7, 2
    first, second = Image.fromarray(one), Image.fromarray(other)
    difference = compare(first, second)
    assert (difference.pixels, difference.largest, difference.box) == (2, 7, (3, 2, 7, 5))
    assert str(difference) == (
        "2 of 80 pixels differ, by at most 7 grey levels, in columns 3 to 6 and rows 2 to 4"
    )
    assert str(compare(first, first)) == "identical"
    with pytest.raises(NextStepError, match="10x8 and 4x4 pixels"):
        compare(first, Image.new("RGB", (4, 4)))


def test_records_that_are_not_enough(tiny_pipeline: NextStepPipeline) -> None:
    record = tiny_pipeline.generate("a")[0].settings
    with pytest.raises(NextStepError, match="settings lack seed, solver"):
        check_record({k: v for k, v in record.items() if k not in ("seed", "solver")})
    with pytest.raises(NextStepError, match="depends on what stood before it"):
        check_record(record | {"task": "story"})
    with pytest.raises(NextStepError, match="stopped early"):
        check_record(record | {"rows_done": 1})
    with pytest.raises(NextStepError, match="number format 'int3'"):
        record_dtype(record | {"dtype": "int3"})
    with pytest.raises(NextStepError, match="was made in bfloat16, the model is in"):
        replay(tiny_pipeline, record | {"dtype": "bfloat16"})
    with pytest.raises(NextStepError, match=r"adapter ab at scale 1\.0, here it is no adapter"):
        replay(tiny_pipeline, record | {"adapter": "ab", "adapter_scale": 1.0})


def test_commands(
    tiny_folder: Path,
    tiny_pipeline: NextStepPipeline,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    file, again = tmp_path / "a.png", tmp_path / "b.png"
    made = by_engine(tiny_pipeline)[0]
    made.save(file)
    status, said, err = nextstep(capsys, "replay", file, "-m", tiny_folder, "-o", again)
    assert (status, said.strip(), err) == (0, str(again), "")
    assert again.read_bytes() == file.read_bytes()
    status, said, _ = nextstep(capsys, "verify", file, "-m", tiny_folder)
    assert (status, said.strip()) == (0, f"{file}: identical")
    pixels = np.asarray(made.image).copy()
    pixels[1, 5] ^= 4
    changed = Image.fromarray(pixels)
    file.write_bytes(encode(changed, texts=as_texts(made.settings)))
    status, said, _ = nextstep(capsys, "verify", file, "-m", tiny_folder, "--json")
    assert status == 1
    told = json.loads(said)
    assert (told["identical"], told["pixels"], told["box"]) == (False, 1, [5, 1, 6, 2])
    other = read_record(file) | {"model": "0123"}
    file.write_bytes(encode(changed, texts=as_texts(other)))
    status, _, err = nextstep(capsys, "verify", file, "-m", tiny_folder)
    assert status == 2
    assert "was made by the model 0123" in err
    assert err.count("\n") == 1
