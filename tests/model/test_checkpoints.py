"""Model folders: every layout in and out, every mismatch named, memory about the model's size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2Model

from nextstep.config import NextStepConfig
from nextstep.errors import ModelFileError
from nextstep.model.checkpoints import (
    fingerprint,
    load_language_model,
    load_model,
    save_model,
    weight_files,
)
from nextstep.model.nextstep import NextStepModel
from tests.conftest import TINY, random_model


def equal(one: NextStepModel, other: NextStepModel) -> bool:
    theirs = dict(other.named_parameters())
    return all(torch.equal(p, theirs[n]) for n, p in one.named_parameters())


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
def test_round_trip(released: bool, tied: bool, shard_bytes: int, tmp_path: Path) -> None:
    model = random_model(TINY.with_values(tie_word_embeddings=tied))
    save_model(model, tmp_path, released, shard_bytes)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_bytes < 10**9)
    again = load_model(tmp_path)
    assert again.config == model.config
    assert equal(model, again)
    assert (again.lm_head.weight is again.embed_tokens.weight) == tied
    assert not list(tmp_path.glob("*.part"))


def test_dtype_on_load(tmp_path: Path) -> None:
    save_model(random_model(TINY), tmp_path)
    model = load_model(tmp_path, torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_1_1_names(tmp_path: Path) -> None:
    save_model(random_model(TINY), tmp_path, released=True)
    raw = json.loads((tmp_path / "config.json").read_text())
    renames = {
        "fm_head_dim": "genloss_width",
        "fm_head_layers": "genloss_depth",
        "fm_head_batch_mul": "genloss_batch_mul",
        "latent_channels": "num_channels",
        "latent_patch_size": "patch_size",
        "im_loss_weight": "image_loss_weight",
    }
    legacy = {renames.get(key, key): value for key, value in raw.items()}
    (tmp_path / "config.json").write_text(json.dumps(legacy))
    assert load_model(tmp_path).config == TINY


def test_v1_config_of_the_hub() -> None:
    """The published values, under the published names."""
    config = NextStepConfig.from_dict(
        {
            "model_type": "nextstep", "architectures": ["LlamaForCausalLM"],
            "hidden_size": 5120, "num_hidden_layers": 48, "num_attention_heads": 40,
            "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 13824,
            "vocab_size": 152064, "rms_norm_eps": 1e-5, "boi": 151667, "eoi": 151668,
            "image_placeholder_id": 151669, "pad_token_id_added": 151665,
            "eos_token_id": 151643, "latent_size": 64, "latent_patch_size": 2,
            "latent_channels": 16, "im_loss_weight": 1.0, "lm_loss_weight": 0.01,
            "fm_head_dim": 1536, "fm_head_layers": 12, "fm_head_batch_mul": 4,
            "base_image_grid_size": 32, "vae_name_or_path": "vae/",
        }
    )  # fmt: skip
    assert config == NextStepConfig.named("14b")


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    path = folder / "model.safetensors"
    kept = load_file(path) | tensors
    save_file({k: v for k, v in kept.items() if v is not None}, path)


def test_every_mismatch_is_named(tmp_path: Path) -> None:
    save_model(random_model(TINY), tmp_path)
    change(tmp_path, **{"norm.weight": None})
    with pytest.raises(ModelFileError, match=r"lacks 1 tensor.*norm\.weight"):
        load_model(tmp_path)
    change(tmp_path, **{"norm.weight": torch.ones(31)})
    with pytest.raises(ModelFileError, match=r"'norm\.weight'.*\(31,\).*\(32,\)"):
        load_model(tmp_path)
    change(tmp_path, **{"norm.weight": torch.ones(32), "strange": torch.ones(1)})
    with pytest.raises(ModelFileError, match=r"1 unknown tensor.*strange"):
        load_model(tmp_path)


def test_buffers_of_released_files_are_tolerated(tmp_path: Path) -> None:
    save_model(random_model(TINY), tmp_path)
    change(tmp_path, gen_pos_embed=torch.zeros(1, 4, 32))
    load_model(tmp_path)


def test_truncated_and_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="there is no model folder"):
        load_model(tmp_path / "none")
    with pytest.raises(ModelFileError, match=r"no config\.json"):
        load_model(tmp_path)
    save_model(random_model(TINY), tmp_path, shard_bytes=20_000)
    shard = tmp_path / "model-00002-of-00011.safetensors"
    shard = shard if shard.exists() else sorted(tmp_path.glob("model-00002-*"))[0]
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelFileError, match=r"model-00002.*cut off or damaged"):
        load_model(tmp_path)
    shard.unlink()
    with pytest.raises(ModelFileError, match="lacks the shard model-00002"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelFileError, match="not valid JSON"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelFileError, match="no 'vocab_size'"):
        load_model(tmp_path)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_start_from_a_stock_qwen2(prefix: str, tmp_path: Path) -> None:
    reference = Qwen2Model(
        Qwen2Config(
            vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
        )
    )  # fmt: skip
    reference.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({prefix + name: w for name, w in weights.items()}, tmp_path / "model.safetensors")
    with pytest.raises(ModelFileError, match="plain language model"):
        load_model(tmp_path)
    model = load_language_model(tmp_path, head="small", dtype=torch.float32)
    ids = torch.randint(0, 320, (1, 9))
    theirs = reference.eval()(input_ids=ids).last_hidden_state.detach()
    assert (model.hidden(model.embed(ids)) - theirs).abs().max().item() <= 2e-5
    assert bool(torch.isfinite(model.image_in_projector.weight).all())
    assert model.config.fm_head_dim == 1024
    again = NextStepModel.from_language_model(tmp_path, "small", torch.float32)
    assert equal(model, again)
    assert all(p.requires_grad for p in again.parameters())


def test_a_model_that_is_read_to_be_trained_can_be(tmp_path: Path) -> None:
    save_model(random_model(TINY), tmp_path)
    model = NextStepModel.from_pretrained(tmp_path)
    model.hidden(model.embed(torch.tensor([[7, 8, 9]]))).square().sum().backward()
    assert model.layers[0].mlp.up_proj.weight.grad is not None


def test_fingerprint_tells_weights_apart(tmp_path: Path) -> None:
    marks = set()
    for seed in range(3):
        folder = tmp_path / str(seed)
        folder.mkdir()
        save_model(random_model(TINY, seed), folder)
        marks |= {fingerprint(weight_files(folder)), fingerprint(weight_files(folder))}
    assert len(marks) == 3


def test_fingerprint_sees_every_byte_of_small_files(tmp_path: Path) -> None:
    save_model(random_model(TINY), tmp_path)
    before = fingerprint(weight_files(tmp_path))
    path = tmp_path / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    path.write_bytes(data)
    assert fingerprint(weight_files(tmp_path)) != before


BAD_CONFIGS = {
    "[]": "must hold a JSON object",
    '{"vocab_size": 8, "hidden_size": "64"}': "'hidden_size' must be a positive int",
    '{"vocab_size": 8, "num_attention_heads": 0}': "'num_attention_heads' must be a positive int",
    '{"rope_scaling": {"type": "yarn", "factor": 4}}': "rope type 'yarn'",
    '{"hidden_act": "gelu"}': "hidden_act 'gelu'",
    '{"use_gen_pos_embed": true}': "use_gen_pos_embed",
}


@pytest.mark.parametrize("text", BAD_CONFIGS)
def test_configs_that_cannot_be_followed(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelFileError, match=BAD_CONFIGS[text]):
        load_model(tmp_path)


def test_damaged_index(tmp_path: Path) -> None:
    save_model(random_model(TINY), tmp_path, shard_bytes=20_000)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ModelFileError, match="no 'weight_map'"):
        load_model(tmp_path)


def test_peak_memory_is_about_the_model(tmp_path: Path) -> None:
    """Loading 400 MB of shards takes about 400 MB more, not twice that."""
    config = TINY.with_values(hidden_size=1024, intermediate_size=8192, num_hidden_layers=4)
    with torch.device("meta"):
        model = NextStepModel(config)
    model = model.to_empty(device="cpu").requires_grad_(False)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    save_model(model, tmp_path, shard_bytes=size // 6)
    del model
    code = (
        "import resource, sys, torch; from pathlib import Path\n"
        "from nextstep.model.checkpoints import load_model\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak(); model = load_model(Path(sys.argv[1])); print(peak() - before)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    # A shard is read through a memory map, whose pages count too: one shard on top.
    assert int(out.stdout) < 1.4 * size


def test_learned_positions_have_no_place_in_the_released_layout(tmp_path: Path) -> None:
    model = random_model(TINY.with_values(image_position_side=4))
    with pytest.raises(ModelFileError, match="learned row and column positions"):
        save_model(model, tmp_path, released=True)
    assert not list(tmp_path.iterdir())
    save_model(model, tmp_path)
    kept = load_model(tmp_path).state_dict()
    assert torch.equal(kept["image_row_embed.weight"], model.state_dict()["image_row_embed.weight"])
