"""Fine-tuning end to end on a tiny model: an adapter comes out, and it is what was trained."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from nextstep.data.shards import ShardSet
from nextstep.engine.pretrained import Parts, load_parts, save_parts
from nextstep.errors import NextStepError
from nextstep.finetune import run as module
from nextstep.finetune.run import FinetuneSettings, finetune
from nextstep.model.adapter_config import AdapterConfig
from nextstep.model.lora import read_adapter
from nextstep.pipeline import NextStepPipeline
from nextstep.train.trainer import Trainer
from tests.conftest import TINY, random_model

pytest.importorskip("peft")
COLOURS = ("red", "green", "blue", "white", "black")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for colour in COLOURS:
        Image.new("RGB", (40, 48), colour).save(folder / f"{colour}.png")
        (folder / f"{colour}.txt").write_text(f"a {colour} apple")
    return folder


def settings_for(data: Path, output: Path, model: Path, **changes: object) -> FinetuneSettings:
    quick = FinetuneSettings(
        data, output, str(model), adapter=AdapterConfig(rank=2), steps=4, prompts=("a red apple",),
        learning_rate=2e-2, sheets=1,
    )  # fmt: skip
    return replace(quick, **changes)


def quietly(settings: FinetuneSettings) -> module.Finetuned:
    return finetune(settings, tell=lambda sentence: None)


@pytest.fixture(scope="module")
def done(data: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished fine-tuning with the merged model beside."""
    output = tmp_path_factory.mktemp("finetuned") / "out"
    told: list[str] = []
    result = finetune(settings_for(data, output, tiny_folder, merge=True), tell=told.append)
    assert result.finished
    assert (result.steps, result.planned) == (4, 4)
    assert (result.adapter, result.model) == (output / "adapter", output / "model")
    assert told[0] == f"5 samples in {data}"
    return output


def test_an_adapter_comes_out_that_belongs_to_its_model(done: Path, tiny_folder: Path) -> None:
    adapter = read_adapter(done / "adapter")
    assert adapter.base_hash == NextStepPipeline.from_pretrained(tiny_folder).model_hash
    assert all(bool(b.any()) for _, b in adapter.matrices.values())
    with Image.open(done / "before-after.png") as sheet:
        assert sheet.height > 64
    steps = sorted(file.name for file in (done / "samples").iterdir())
    assert steps == ["step-00000002.png", "step-00000004.png"]
    rows = [json.loads(line) for line in (done / "run" / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 4


def test_adapter_and_merged_model_draw_the_same(done: Path, tiny_folder: Path) -> None:
    plain = NextStepPipeline.from_pretrained(tiny_folder)
    beside = NextStepPipeline.from_pretrained(tiny_folder, adapter=done / "adapter")
    inside = NextStepPipeline.from_pretrained(done / "model")
    for name, weight in beside.model.state_dict().items():
        assert torch.allclose(weight, inside.model.state_dict()[name], atol=1e-6), name
    pictures = [p.generate("a red apple", seed=2)[0].image.tobytes() for p in (plain, inside)]
    assert pictures[0] != pictures[1]
    assert load_parts(done / "model").defaults == load_parts(tiny_folder).defaults


def test_a_stopped_run_goes_on_to_the_same_adapter(
    done: Path, data: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(data, tmp_path / "out", tiny_folder)
    take = Trainer.train_step

    def killed(trainer: Trainer, step: object) -> object:
        if trainer.step == 3:
            trainer.save()
            trainer.writer.wait()
            raise KeyboardInterrupt
        return take(trainer, step)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", killed)
        with pytest.raises(KeyboardInterrupt):
            quietly(settings)
    assert not (tmp_path / "out" / "adapter").exists()
    told: list[str] = []
    assert finetune(settings, tell=told.append).finished
    assert "goes on after step 3" in told
    whole, pieces = (read_adapter(folder / "adapter") for folder in (done, tmp_path / "out"))
    for name, pair in whole.matrices.items():
        assert all(torch.equal(x, y) for x, y in zip(pair, pieces.matrices[name], strict=True))


def test_full_training_writes_a_model(data: Path, tiny_folder: Path, tmp_path: Path) -> None:
    result = quietly(settings_for(data, tmp_path / "out", tiny_folder, full=True, sheets=0))
    assert (result.adapter, result.model) == (None, tmp_path / "out" / "model")
    before, after = load_parts(tiny_folder).model, load_parts(result.model).model
    still = [
        name for name, weight in after.named_parameters()
        if torch.equal(weight, before.get_parameter(name))
    ]  # fmt: skip
    assert still == []
    assert next(after.parameters()).dtype == next(before.parameters()).dtype


def test_minutes_become_steps(
    data: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.Finetuning, "_step_seconds", lambda self: 6.0)
    result = quietly(settings_for(data, tmp_path / "out", tiny_folder, steps=None, minutes=0.25))
    assert result.planned == 2


def test_second_fine_tuning_in_one_folder_is_refused(
    data: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    settings = settings_for(data, tmp_path / "out", tiny_folder)
    tuning = module.Finetuning(settings, load_parts(tiny_folder), {}, lambda sentence: None)
    with pytest.raises(NextStepError, match=r"another training .* is using the folder"):
        quietly(settings)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["run"]
    assert tuning.result().finished


def test_timing_leaves_nothing_behind(data: Path, tiny_folder: Path, tmp_path: Path) -> None:
    settings = settings_for(data, tmp_path / "out", tiny_folder)
    tuning = module.Finetuning(settings, load_parts(tiny_folder), {}, lambda sentence: None)
    before = {name: p.detach().clone() for name, p in tuning.parts.model.named_parameters()}
    assert tuning._step_seconds() > 0
    for name, parameter in tuning.parts.model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


def test_edits_are_trained_and_shown(tiny_folder: Path, tmp_path: Path) -> None:
    for colour in ("red", "green"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{colour}.txt").write_text("make it blue")
        Image.new("RGB", (32, 32), colour).save(tmp_path / "in" / f"{colour}-0.png")
        Image.new("RGB", (32, 32), "blue").save(tmp_path / "in" / f"{colour}-1.png")
    settings = settings_for(
        tmp_path / "in", tmp_path / "out", tiny_folder, edits=True, prompts=(), steps=2
    )
    assert quietly(settings).finished
    assert (tmp_path / "out" / "adapter").is_dir()


def test_default_steps_and_rates(tmp_path: Path) -> None:
    plain = FinetuneSettings(tmp_path, tmp_path)
    assert plain.steps_of(24) == 150  # 50 uses in batches of 8
    assert (plain.steps_of(3), plain.steps_of(10_000)) == (100, 2000)
    assert (plain.batch_of(3), plain.batch_of(500)) == (3, 8)
    assert plain.rate_of(256) == pytest.approx(1e-3, rel=0.05)
    assert replace(plain, full=True).rate_of(256) == pytest.approx(1e-4, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 3, "minutes": 1.0}, "not both"),
        ({"steps": None, "minutes": float("inf")}, "minutes must be above 0"),
        ({"learning_rate": -1.0}, "learning rate must be above 0"),
        ({"context_noise": -0.1}, "context noise must be a finite number and not negative"),
        ({"prompts": ("x",) * 17}, "at most 16"),
        ({"edits": True}, "leave --prompt out"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, changes: dict, said: str) -> None:
    with pytest.raises(NextStepError, match=said):
        settings_for(tmp_path, tmp_path, tmp_path, **changes)


def test_folders_that_hold_something_else_are_refused(
    done: Path, data: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(NextStepError, match="finished already"):
        quietly(settings_for(data, done, tiny_folder))
    with pytest.raises(NextStepError, match="exists already"):
        quietly(settings_for(data, data, tiny_folder))
    begun = tmp_path / "begun"
    shutil.copytree(done / "run", begun / "run")
    with pytest.raises(NextStepError, match="holds a fine-tuning with steps = 4, and now it is 5"):
        quietly(settings_for(data, begun, tiny_folder, steps=5))
    notes = begun / "run" / "finetune.json"
    notes.write_text(json.dumps(json.loads(notes.read_text()) | {"base": "another"}))
    with pytest.raises(NextStepError, match="begun on another model"):
        quietly(settings_for(data, begun, tiny_folder))


def test_a_mistake_in_the_settings_can_be_mended_in_place(
    data: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    settings = settings_for(data, tmp_path / "out", tiny_folder, caption="apple " * 300)
    with pytest.raises(NextStepError, match="caption too long"):
        quietly(settings)
    assert quietly(replace(settings, caption="{caption}, mine", steps=1)).finished


def test_a_run_whose_note_is_damaged_is_kept_aside(
    done: Path, data: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    shutil.copytree(done / "run", begun / "run")
    (begun / "run" / "finetune.json").write_text("{}")
    (begun / "run" / "mine.txt").write_text("mine")
    before = sorted(path.name for path in (begun / "run").iterdir())
    assert quietly(settings_for(data, begun, tiny_folder, steps=1)).finished
    assert sorted(path.name for path in (begun / "run.1").iterdir()) == before


def test_edits_of_photos_larger_than_the_model_are_learned(
    tiny_parts: Parts, tmp_path: Path
) -> None:
    """The sources are drawn before training, at a size that the learned positions reach."""
    model = random_model(replace(TINY, image_position_side=2))
    save_parts(tiny_parts._replace(model=model), tmp_path / "model")
    (tmp_path / "data").mkdir()
    for number in (0, 1):
        Image.new("RGB", (400, 300), "red").save(tmp_path / "data" / f"a-{number}.jpg")
    (tmp_path / "data" / "a.txt").write_text("make it blue")
    settings = settings_for(
        tmp_path / "data", tmp_path / "out", tmp_path / "model", edits=True, prompts=(), steps=1
    )
    assert quietly(settings).finished


def test_pictures_that_are_cut_are_counted(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name, size in (("red", (96, 32)), ("blue", (32, 32))):
        Image.new("RGB", size, name).save(tmp_path / "data" / f"{name}.png")
    told: list[str] = []
    settings = settings_for(tmp_path / "data", tmp_path / "out", tiny_folder, steps=1)
    finetune(settings, tell=told.append)
    assert any("1 of 2 samples are cut at the centre" in said for said in told)
    assert any("--fit aspect keeps them whole" in said for said in told)
    whole = replace(settings, output=tmp_path / "whole", fit="aspect")
    assert finetune(whole, tell=told.append).finished


def test_corrected_captions_are_seen_after_a_refusal(tiny_folder: Path, tmp_path: Path) -> None:
    data, output = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    Image.new("RGB", (40, 40), "red").save(data / "a.png")
    (data / "a.txt").write_text("an appel")
    prompts = ("x " * 500,)
    with pytest.raises(NextStepError, match="tokens"):
        quietly(settings_for(data, output, tiny_folder, prompts=prompts))
    assert ShardSet(output / "run" / "data").entry(0).captions["caption"] == "an appel"
    (data / "a.txt").write_text("an apple")
    with pytest.raises(NextStepError, match="tokens"):
        quietly(settings_for(data, output, tiny_folder, prompts=prompts))
    assert ShardSet(output / "run" / "data").entry(0).captions["caption"] == "an apple"


def test_a_run_that_took_steps_does_not_go_on_with_other_data(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, output = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    Image.new("RGB", (40, 40), "red").save(data / "a.png")
    (data / "a.txt").write_text("an apple")
    settings = settings_for(data, output, tiny_folder)
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "run", lambda self: False)
        assert not quietly(settings).finished
    (data / "a.txt").write_text("a pear")
    with pytest.raises(NextStepError, match=r"pictures or captions in .* have changed since"):
        quietly(settings)
    (data / "a.txt").write_text("an apple")
    assert quietly(settings).finished


def test_sources_of_captions_are_reported(tiny_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in "abc":
        Image.new("RGB", (40, 40), "red").save(data / f"{name}.png")
    (data / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "an apple"}')
    (data / "b.caption").write_text("a pear")
    told: list[str] = []
    finetune(settings_for(data, tmp_path / "out", tiny_folder, steps=1), tell=told.append)
    assert told[1:4] == [
        "captions: 1 from metadata.jsonl", "captions: 1 from .caption files",
        "left out: c.png: missing caption (no .txt, .json or .caption of that name)",
    ]  # fmt: skip
