"""LoRA: it starts at nothing, trains nothing else, and merged is the same as beside."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nextstep.engine.pretrained import Parts
from nextstep.errors import ModelFileError, NextStepError
from nextstep.model.adapter_config import PARTS, AdapterConfig
from nextstep.model.lora import (
    Adapter,
    add_adapter,
    check_base,
    fold_adapter,
    merge_adapter,
    merged,
    read_adapter,
    save_adapter,
    taken_adapter,
)
from nextstep.model.nextstep import NextStepModel
from nextstep.pipeline import NextStepPipeline
from tests.conftest import TINY, random_model

peft = pytest.importorskip("peft")


def outputs(model: NextStepModel) -> torch.Tensor:
    """Everything a model computes from a fixed sequence: logits and velocities."""
    generator = torch.Generator().manual_seed(4)
    ids = torch.tensor([[7, 8, 3, 5, 5, 5, 5, 4]])
    tokens = torch.randn(4, 64, generator=generator)
    hidden = model.hidden(model.embed(ids, tokens))
    condition = model.image_condition(hidden[0, 2:6])
    velocity = model.image_head(tokens, torch.rand(4, generator=generator), condition)
    return torch.cat((model.text_logits(hidden).flatten(), velocity.flatten()))


def trained_model(config: AdapterConfig, seed: int = 0) -> NextStepModel:
    """A model whose adapter does something."""
    model = random_model(TINY)
    add_adapter(model, config, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=generator)
    return model


@pytest.mark.parametrize("parts", [("attention",), ("mlp", "head"), tuple(PARTS)])
def test_it_starts_equal_and_only_its_parameters_get_gradients(parts: tuple[str, ...]) -> None:
    model = random_model(TINY)
    before = outputs(model)
    names = AdapterConfig(parts=parts).targets(model)
    add_adapter(model, AdapterConfig(rank=3, parts=parts))
    assert isinstance(model, NextStepModel)
    with torch.no_grad():  # attention takes another path where gradient flows
        assert torch.equal(outputs(model), before)
    outputs(model).square().sum().backward()
    touched = [n for n, p in model.named_parameters() if p.grad is not None]
    assert len(touched) == 2 * len(names)
    assert all("lora_" in name for name in touched)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(touched)


def test_targets_are_named_by_part() -> None:
    model = random_model(TINY)

    def targets(*parts: str) -> list[str]:
        return AdapterConfig(parts=parts).targets(model)

    assert len(targets("attention")) == 4 * TINY.num_hidden_layers
    assert len(targets("mlp")) == 3 * TINY.num_hidden_layers
    assert targets("projectors") == ["image_in_projector", "image_out_projector"]
    assert "image_head.net.final_layer.linear" in targets("head")
    assert "lm_head" not in targets(*PARTS)
    assert sum(len(targets(part)) for part in PARTS) == len(targets(*PARTS))


def test_fresh_matrices_depend_on_their_seed_alone() -> None:
    first, second, third = (random_model(TINY) for _ in range(3))
    add_adapter(first, AdapterConfig(), 1)
    torch.manual_seed(77)
    state = torch.get_rng_state()
    add_adapter(second, AdapterConfig(), 1)
    assert torch.equal(torch.get_rng_state(), state)
    add_adapter(third, AdapterConfig(), 2)
    for name, (a, _) in taken_adapter(first).matrices.items():
        assert torch.equal(a, taken_adapter(second).matrices[name][0])
        assert not torch.equal(a, taken_adapter(third).matrices[name][0])


def test_merged_equals_beside_and_is_undone_bitwise(tmp_path: Path) -> None:
    model = trained_model(AdapterConfig(rank=4, alpha=6))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    beside = outputs(model)
    plain = outputs(random_model(TINY))
    assert not torch.allclose(beside, plain, atol=1e-2)
    with merged(model) as inside:
        assert not any("lora" in name for name, _ in inside.named_parameters())
        assert torch.allclose(outputs(inside), beside, atol=1e-4)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(outputs(model), beside)

    save_adapter(taken_adapter(model), tmp_path / "adapter", "base")
    other = random_model(TINY)
    merge_adapter(other, read_adapter(tmp_path / "adapter"))
    assert torch.allclose(outputs(other), beside, atol=1e-4)
    fold_adapter(model)
    assert set(model.state_dict()) == set(other.state_dict())
    assert torch.equal(outputs(model), outputs(other))
    add_adapter(model, AdapterConfig())  # and it can be trained anew


def test_the_scale_is_linear_in_the_weights() -> None:
    adapter = taken_adapter(trained_model(AdapterConfig(rank=2)))
    models = {scale: random_model(TINY) for scale in (0.0, 0.5, 1.0)}
    for scale, model in models.items():
        merge_adapter(model, adapter, scale)
    for name, weight in random_model(TINY).state_dict().items():
        assert torch.equal(models[0.0].state_dict()[name], weight)
        middle = (weight + models[1.0].state_dict()[name]) / 2
        assert torch.allclose(models[0.5].state_dict()[name], middle, atol=1e-6)
    with pytest.raises(NextStepError, match="must be a number"):
        merge_adapter(models[1.0], adapter, float("inf"))


def test_bf16_bases_keep_fp32_matrices() -> None:
    model = random_model(TINY).to(torch.bfloat16)
    add_adapter(model, AdapterConfig(rank=2))
    kinds = {p.dtype for p in model.parameters() if p.requires_grad}
    assert kinds == {torch.float32}
    assert model.layers[0].self_attn.q_proj.weight.dtype == torch.bfloat16
    with merged(model) as inside:
        assert inside.layers[0].self_attn.q_proj.weight.dtype == torch.bfloat16


def test_peft_reads_what_is_written_here_and_the_other_way(tmp_path: Path) -> None:
    model = trained_model(AdapterConfig(rank=4))
    save_adapter(taken_adapter(model), tmp_path / "ours", "base")
    theirs = peft.PeftModel.from_pretrained(random_model(TINY), str(tmp_path / "ours"))
    assert torch.allclose(outputs(theirs.base_model.model), outputs(model), atol=1e-5)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    again = read_adapter(tmp_path / "theirs")
    assert again.base_hash == ""
    assert again.scaling == 2.0
    for name, pair in taken_adapter(model).matrices.items():
        assert all(torch.equal(x, y) for x, y in zip(pair, again.matrices[name], strict=True))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = trained_model(AdapterConfig(rank=2, parts=("projectors",)))
    save_adapter(taken_adapter(model), tmp_path / "adapter", "abc", "some/model")
    return tmp_path / "adapter"


def test_files_are_written_whole(folder: Path) -> None:
    assert sorted(f.name for f in folder.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    assert [f.name for f in folder.parent.iterdir()] == ["adapter"]
    read = read_adapter(folder)
    assert (read.base_hash, len(read.hash)) == ("abc", 16)
    with pytest.raises(NextStepError, match="exists already"):
        save_adapter(read, folder, "abc")


def rewrite(folder: Path, **changes: object) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_what_is_no_plain_lora_is_refused(folder: Path) -> None:
    for changes, said in (
        ({"use_dora": True}, "use_dora = True"),
        ({"modules_to_save": ["lm_head"]}, "only plain LoRA"),
        ({"peft_type": "LOHA"}, "peft_type = LOHA"),
        ({"r": "four"}, "usable r or lora_alpha"),
    ):
        copy = shutil.copytree(folder, folder.parent / "copy")
        with pytest.raises(ModelFileError, match=said):
            read_adapter(rewrite(copy, **changes))
        shutil.rmtree(copy)
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "lonely.lora_A.weight": torch.zeros(2, 2)}, weights)
    with pytest.raises(ModelFileError, match="no pairs of LoRA matrices but lonely"):
        read_adapter(folder)
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelFileError, match="cut off or damaged"):
        read_adapter(folder)
    weights.unlink()
    with pytest.raises(ModelFileError, match=r"no adapter folder: it has no adapter_model"):
        read_adapter(folder)


def test_rank_stabilised_scaling_is_read(folder: Path) -> None:
    assert read_adapter(rewrite(folder, r=4, lora_alpha=6, use_rslora=True)).scaling == 3.0


def test_an_adapter_of_another_model_is_refused_and_nothing_is_changed() -> None:
    adapter = taken_adapter(trained_model(AdapterConfig(rank=2)))
    smaller = random_model(TINY.with_values(num_hidden_layers=1))
    narrower = random_model(TINY.with_values(intermediate_size=40))
    for model, said in ((smaller, r"'layers\.1\.\S+', which this model"), (narrower, "40x32")):
        before = outputs(model)
        with pytest.raises(ModelFileError, match=said):
            merge_adapter(model, adapter)
        assert torch.equal(outputs(model), before)
    uneven = Adapter({"image_in_projector": (torch.zeros(2, 64), torch.zeros(32, 3))}, 1.0)
    with pytest.raises(ModelFileError, match="image_in_projector"):
        merge_adapter(smaller, uneven)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot have lm_head; choose from attention"):
        AdapterConfig(parts=("lm_head",))
    with pytest.raises(ValueError, match="at least 1"):
        AdapterConfig(rank=0)
    with pytest.raises(ValueError, match="dropout"):
        AdapterConfig(dropout=1.0)
    model = random_model(TINY)
    with pytest.raises(NextStepError, match="no adapter"):
        taken_adapter(model)
    add_adapter(model, AdapterConfig())
    with pytest.raises(NextStepError, match="an adapter already"):
        add_adapter(model, AdapterConfig())


def test_pictures_know_their_adapter(tiny_folder: Path, tiny_parts: Parts, tmp_path: Path) -> None:
    plain = NextStepPipeline.from_pretrained(tiny_folder)
    adapter = taken_adapter(trained_model(AdapterConfig(rank=2)))
    save_adapter(adapter, tmp_path / "adapter", plain.model_hash)
    read = read_adapter(tmp_path / "adapter")
    check_base(read, plain.model_hash)  # no warning
    before = plain.generate("a red apple")[0]
    assert "adapter" not in before.settings
    pipeline = NextStepPipeline.from_pretrained(tiny_folder, adapter=tmp_path / "adapter")
    picture = pipeline.generate("a red apple")[0]
    assert picture.image.tobytes() != before.image.tobytes()
    assert picture.settings["adapter"] == read.hash
    assert picture.settings["adapter_scale"] == 1.0
    assert picture.settings["model"] == plain.model_hash
    silent = NextStepPipeline.from_pretrained(
        tiny_folder, adapter=tmp_path / "adapter", adapter_scale=0.0
    )
    assert silent.generate("a red apple")[0].image.tobytes() == before.image.tobytes()
    with pytest.warns(UserWarning, match="trained on model"):
        check_base(read, "another")
    with pytest.raises(ModelFileError, match="no adapter folder"):
        NextStepPipeline.from_pretrained(tiny_folder, adapter=tmp_path / "none")


def test_sampling_refuses_an_adapter_that_is_not_merged(tiny_parts: Parts) -> None:
    model = random_model(TINY)
    add_adapter(model, AdapterConfig(rank=2))
    pipeline = NextStepPipeline(model, *tiny_parts[1:])
    with pytest.raises(NextStepError, match="merge the adapter"):
        pipeline.generate("a red apple")
    with merged(model):
        pipeline.generate("a red apple")
