"""Recipes that really run: tiny models on generated shards and on live sources."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from nextstep.config import NextStepConfig
from nextstep.data.shard_writer import RawSample, ShardWriter
from nextstep.errors import NextStepError
from nextstep.model import precision
from nextstep.model.folder import SHIPPED
from nextstep.model.nextstep import NextStepModel
from nextstep.pipeline import NextStepPipeline
from nextstep.recipe import build
from nextstep.recipe.load import RecipeError, check_recipe
from nextstep.recipe.run import run_recipe
from nextstep.recipe.samples import sheet
from nextstep.recipe.weights import first_weights
from nextstep.train.launch import launch
from nextstep.train.parallel import Ranks
from nextstep.vae.files import load_image_tokenizer
from tests.conftest import TINY

SHAPE = {
    name: getattr(TINY, name)
    for name in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings",
        "fm_head_dim", "fm_head_layers", "tie_word_embeddings",
    )
}  # fmt: skip


def png(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    pixels = rng.integers(0, 255, (32 + 4 * (seed % 3), 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets: pictures with captions, and plain texts."""
    folder = tmp_path_factory.mktemp("data")
    with ShardWriter(folder / "pairs", "pairs", "image_text", 5) as writer:
        for n in range(12):
            writer.add(RawSample({"caption": f"a red apple number {n}"}, (png(n),)))
    with ShardWriter(folder / "texts", "texts", "text", 5) as writer:
        for n in range(9):
            writer.add(RawSample({"text": "make it blue " * (n + 1)}))
    return folder


def recipe(shards: Path, tiny: Path, **changes: Any) -> Any:
    raw: dict[str, Any] = {
        "stage": "pretrain", "steps": 4, "seed": 3,
        "model": {"size": "nano", "overrides": SHAPE},
        "image_tokenizer": str(tiny), "text_tokenizer": str(tiny),
        "data": {
            "mix": "samples", "row_length": 64, "rows": 4, "micro_batch_rows": 2, "areas": [32],
            "aspects": False, "window_rows": 8,
            "sources": [
                {"shards": str(shards / "pairs"), "weight": 2.0},
                {"shards": str(shards / "texts")},
            ],
        },
        "loss": {"context_noise": 0.3},
        "optimizer": {"learning_rate": 1e-2}, "schedule": {"kind": "cosine", "warmup": 1},
        "ema": 0.9, "precision": "fp32",
        "saving": {"minutes": 0, "steps": 2}, "logging": {"every": 1},
    }  # fmt: skip
    return check_recipe({**raw, **changes}, "test")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "event" not in line]


@pytest.mark.parametrize(("factor", "chosen"), [(80.0, "fp32"), (0.5, "bf16")])
def test_auto_precision_is_chosen_once_for_all_parts(
    shards: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    factor: float, chosen: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(
        precision, "slowdown", lambda kind, dtype: {torch.bfloat16: factor}.get(dtype, 1.0)
    )
    dtypes = []

    def opened(folder: Path, dtype: torch.dtype, device: str) -> Any:
        dtypes.append(dtype)
        return load_image_tokenizer(folder, dtype, device)

    monkeypatch.setattr(build, "load_image_tokenizer", opened)
    made = recipe(shards, tiny_folder, precision="auto", steps=2)
    run_recipe(made, tmp_path / "run", device="cpu")
    assert dtypes == [precision.DTYPES[chosen]]
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    told = [line["detail"] for line in lines if line.get("event") == "precision"]
    assert [detail.partition(":")[0] for detail in told] == [chosen]
    assert "precision: auto" in (tmp_path / "run" / "recipe.yaml").read_text()


def test_a_run_ends_in_a_model_folder_that_draws(
    shards: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    samples = {
        "prompts": ["a red apple", "two cats"], "every": 2, "height": 32, "width": 32,
        "settings": {"guidance": 2.0, "solver": "ode", "steps": 2},
    }  # fmt: skip
    saving = {"minutes": 0, "steps": 2, "milestones": [3], "dtype": "bf16"}
    made = recipe(shards, tiny_folder, samples=samples, saving=saving)
    outcome = run_recipe(made, tmp_path / "run", device="cpu")
    assert (outcome.step, outcome.finished, outcome.model) == (4, True, tmp_path / "run" / "model")
    log = rows(tmp_path / "run")
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    assert {"lm_loss", "im_loss", "flops_per_s"} <= log[0].keys()
    sheets = sorted((tmp_path / "run" / "samples").iterdir())
    assert [path.name for path in sheets] == ["step-00000002.png", "step-00000004.png"]
    assert Image.open(sheets[0]).size == (2 * 32 + 4, 32)
    for name in ("model", "step-00000003"):
        assert weights(tmp_path / "run" / name)["norm.weight"].dtype == torch.bfloat16
    pipeline = NextStepPipeline.from_pretrained(tmp_path / "run" / "model")
    assert pipeline.defaults.height == 32
    assert pipeline.defaults.generate.guidance == 2.0
    (picture,) = pipeline.generate("a red apple")
    assert picture.image.size == (32, 32)


def test_compile_in_a_recipe_reaches_the_stage(
    shards: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(torch, "compile", lambda f, **_: asked.append(f) or f)
    monkeypatch.setattr("nextstep.model.nextstep.can_compile", lambda device: True)
    for name, compiled in (("plain", False), ("compiled", True)):
        run_recipe(recipe(shards, tiny_folder, compile=compiled), tmp_path / name, device="cpu")
        assert bool(asked) == compiled
    losses = [[row["loss"] for row in rows(tmp_path / name)] for name in ("plain", "compiled")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_run_in_two_halves_gives_the_same_weights(
    shards: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    constant = {"schedule": {"kind": "constant", "warmup": 1}}
    whole = recipe(shards, tiny_folder, **constant)
    half = recipe(shards, tiny_folder, steps=2, **constant)
    run_recipe(whole, tmp_path / "whole", device="cpu")
    run_recipe(half, tmp_path / "halves", device="cpu")
    run_recipe(whole, tmp_path / "halves", device="cpu")
    assert same(weights(tmp_path / "whole" / "model"), weights(tmp_path / "halves" / "model"))
    losses = [[row["loss"] for row in rows(tmp_path / name)] for name in ("whole", "halves")]
    assert losses[0] == losses[1]
    again = run_recipe(whole, tmp_path / "halves", device="cpu")
    assert again.finished
    assert again.step == 4


def test_two_ranks_train_as_one(shards: Path, tiny_folder: Path, tmp_path: Path) -> None:
    made = recipe(shards, tiny_folder)
    run_recipe(made, tmp_path / "one", device="cpu")
    launch(_run, (made.model_dump(mode="json"), tmp_path / "two"), 2, "fork")
    one, two = (weights(tmp_path / name / "model") for name in ("one", "two"))
    assert one.keys() == two.keys()
    # Adam's first steps divide by tiny second moments, which makes rounding visible.
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=2e-4, rtol=1e-3, msg=name)


def _run(raw: dict[str, Any], folder: Path) -> None:
    torch.set_num_threads(1)
    run_recipe(check_recipe(raw, "test"), folder, device="cpu")


def test_a_stage_starts_from_the_one_before(
    shards: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    run_recipe(recipe(shards, tiny_folder, steps=1), tmp_path / "first", device="cpu")
    folder = str(tmp_path / "first" / "model")
    frozen = {"folder": folder, "freeze": ["layers.*", "embed_tokens.*", "norm.*"]}
    after = recipe(
        shards, tiny_folder, stage="sft", model=frozen, image_tokenizer=None, text_tokenizer=None,
        schedule={"kind": "constant"}, steps=1,
    )  # fmt: skip
    run_recipe(after, tmp_path / "second", device="cpu")
    old, new = (weights(tmp_path / name / "model") for name in ("first", "second"))
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed
    assert not any(name.startswith(("layers.", "embed_tokens.", "norm.")) for name in changed)


def test_a_sheet_that_cannot_be_drawn_does_not_end_a_run(
    shards: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("nextstep.recipe.sequence_parts.draw_sheet", fails)
    samples = {"every": 2, "height": 32, "width": 32, "prompts": ["a red apple"]}
    made = recipe(shards, tiny_folder, samples=samples)
    with pytest.warns(UserWarning, match=r"\.png was not drawn: OSError: no space"):
        run_recipe(made, tmp_path / "run", device="cpu")
    assert (tmp_path / "run" / "model" / "config.json").exists()


def test_ranks_build_one_latent_cache_together(
    shards: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    raw = recipe(shards, tiny_folder, steps=1, schedule={"kind": "constant"}).model_dump(
        mode="json"
    )
    raw["data"]["sources"][0]["latents"] = str(tmp_path / "latents")
    made = check_recipe(raw, "test")
    nobody = Ranks(rank=1, world=3)
    build.make_latents(made, tmp_path, nobody)
    assert not list((tmp_path / "latents").iterdir())  # all samples are in one part
    build.make_latents(made, tmp_path, Ranks(rank=0, world=3))
    found = sorted(path.name for path in (tmp_path / "latents").iterdir())
    assert found == ["cache.json", "part-00000.bin", "part-00000.json"]


def test_latents_are_encoded_once_and_train_the_same(
    shards: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    made = recipe(shards, tiny_folder, steps=2, schedule={"kind": "constant"})
    raw = made.model_dump(mode="json")
    raw["data"]["sources"][0]["latents"] = str(tmp_path / "latents")
    cached = check_recipe(raw, "test")
    run_recipe(made, tmp_path / "pixels", device="cpu")
    run_recipe(cached, tmp_path / "cached", device="cpu")
    assert (tmp_path / "latents" / "cache.json").exists()
    one, two = ([row["loss"] for row in rows(tmp_path / n)] for n in ("pixels", "cached"))
    assert two == pytest.approx(one, rel=1e-3)  # the cache holds fp16


def test_live_sources_and_a_text_tokenizer_of_their_own(
    shards: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    nano = SHIPPED["nano"]
    made = recipe(shards, tiny_folder, steps=1, schedule={"kind": "constant"})
    raw = made.model_dump(mode="json")
    raw |= {"image_tokenizer": "nano", "text_tokenizer": None}
    raw["train_text_tokenizer"] = {"vocab_size": 300, "samples": 50}
    raw["data"] |= {"row_length": 48, "rows": 2, "micro_batch_rows": 2, "window_rows": 2}
    raw["data"]["sources"] = [
        {"world": {"name": "singles", "options": {"pixels": 32}}},
        {"world": {"name": "single-edits", "options": {"pixels": 32}}},
    ]
    assert nano.is_dir()
    run_recipe(check_recipe(raw, "test"), tmp_path / "run", device="cpu")
    assert (tmp_path / "run" / "text-tokenizer" / "tokenizer.json").exists()
    written = (tmp_path / "run" / "model" / "tokenizer.json").read_text()
    assert json.loads(written) == json.loads(
        (tmp_path / "run" / "text-tokenizer" / "tokenizer.json").read_text()
    )


def test_a_model_grows_and_gets_another_vocabulary(
    shards: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    raw = recipe(shards, tiny_folder, steps=1, schedule={"kind": "constant"}).model_dump(
        mode="json"
    )
    wider = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    raw["model"] = {"folder": str(tiny_folder), "overrides": wider, "grow": True}
    raw |= {"text_tokenizer": None, "train_text_tokenizer": {"vocab_size": 300, "samples": 50}}
    raw["data"]["sources"] = [{"world": {"name": "singles", "options": {"pixels": 32}}}]
    raw["optimizer"]["learning_rate"] = 1e-9
    run_recipe(check_recipe(raw, "test"), tmp_path / "run", device="cpu")
    small, large = weights(tiny_folder), weights(tmp_path / "run" / "model")
    E, name = TINY.hidden_size, "layers.0.self_attn.o_proj.weight"
    assert large[name].shape == (64, 4 * TINY.head_dim)
    torch.testing.assert_close(large[name][:E, : small[name].shape[1]], small[name])
    eos = "embed_tokens.weight"
    torch.testing.assert_close(large[eos][0, :E], small[eos][0])


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("image_tokenizer",), "nowhere", "image_tokenizer: there is no folder 'nowhere'"),
        (("text_tokenizer",), "nowhere", "there is no model folder 'nowhere'"),
        (
            ("data", "sources"), [{"world": "unicorns"}],
            "test: data.sources[0].world: there is no live source 'unicorns'",
        ),
        (
            ("data", "sources"), [{"world": {"name": "singles", "options": {"pixel": 3}}}],
            "test: data.sources[0].world.options.pixel: 'singles' takes pixels, no_caption",
        ),
        (
            ("data", "sources"), [{"world": {"name": "singles", "options": {"pixels": 3}}}],
            "test: data.sources[0].world: pixels must be a positive multiple of 16, not 3",
        ),
        (("data", "sources"), [{"shards": "nowhere"}], "nowhere"),
        (("model", "freeze"), ["nothing.*"], "'nothing.*' in freeze fits no parameter"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_reported(
    shards: Path, tiny_folder: Path, tmp_path: Path, path: tuple, value: Any, sentence: str
) -> None:
    raw = recipe(shards, tiny_folder).model_dump(mode="json")
    here = raw
    for step in path[:-1]:
        here = here[step]
    here[path[-1]] = value
    with pytest.raises((NextStepError, ValueError)) as caught:
        run_recipe(check_recipe(raw, "test"), tmp_path / "run", where="test", device="cpu")
    assert sentence in str(caught.value)


def test_only_live_sources_tell_texts(shards: Path, tiny_folder: Path, tmp_path: Path) -> None:
    made = recipe(shards, tiny_folder, text_tokenizer=None, train_text_tokenizer={})
    with pytest.raises(RecipeError, match="only live sources tell their texts"):
        run_recipe(made, tmp_path / "run", device="cpu")


def test_a_size_that_is_not_the_folders_is_refused(
    shards: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    made = recipe(shards, tiny_folder, model={"folder": str(tiny_folder), "size": "nano"})
    with pytest.raises(NextStepError, match=r"model\.size: .* has vocab_size = 320, size nano"):
        run_recipe(made, tmp_path / "run", device="cpu")


def test_fresh_weights_depend_on_the_seed_alone(shards: Path, tiny_folder: Path) -> None:
    made = recipe(shards, tiny_folder)
    torch.manual_seed(1)
    one = {name: tensor.clone() for name, tensor in first_weights(made, TINY)}
    torch.manual_seed(2)
    assert same(one, dict(first_weights(made, TINY)))
    other = dict(first_weights(recipe(shards, tiny_folder, seed=4), TINY))
    assert not torch.equal(one["embed_tokens.weight"], other["embed_tokens.weight"])


def test_a_model_without_learned_positions_may_be_given_some(
    shards: Path, tiny_folder: Path
) -> None:
    config = TINY.with_values(image_position_side=4)
    made = recipe(shards, tiny_folder, model={"folder": str(tiny_folder)})
    found = {name for name, _ in first_weights(made, config)}
    with torch.device("meta"):
        assert found == {name for name, _ in NextStepModel(config).named_parameters()}


def test_a_language_model_is_given_image_parts(
    shards: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    stored = {
        f"model.{name}" if not name.startswith("lm_head") else name: tensor
        for name, tensor in weights(tiny_folder).items()
        if not name.startswith("image_")
    }
    save_file(stored, tmp_path / "model.safetensors")
    config = {**TINY.to_dict(), "model_type": "qwen2"}
    for name in ("format", "fm_head_dim", "fm_head_layers"):
        del config[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    made = recipe(shards, tiny_folder, model={"language_model": str(tmp_path)})
    shape: NextStepConfig = TINY.with_values(fm_head_dim=16, fm_head_layers=1)
    found = dict(first_weights(made, shape))
    with torch.device("meta"):
        wanted = dict(NextStepModel(shape).named_parameters())
    assert {n: t.shape for n, t in found.items()} == {n: p.shape for n, p in wanted.items()}
    assert not found["image_head.net.final_layer.linear.weight"].any()
    assert found["image_out_projector.weight"].std() == pytest.approx(0.02, rel=0.2)


def test_sheets_are_about_square() -> None:
    pictures = [Image.new("RGB", (8, 8)) for _ in range(5)]
    assert sheet(pictures).size == (3 * 12 - 4, 2 * 12 - 4)
    assert Ranks().world == 1
