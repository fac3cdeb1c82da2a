"""Our numbers against recordings of the released inference code.

The recording in `recordings/tiny` is used unless `--golden DIR` names another one; such a folder
holds `model/` (released layout) and `cases/`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from nextstep.engine.backends.torch import left_pad, padded_positions
from nextstep.flow.noise import RecordedNoise
from nextstep.image.pictures import to_bytes
from nextstep.model.nextstep import NextStepModel
from nextstep.pipeline import NextStepPipeline
from nextstep.vae.latents import patchify, unpatchify

TIGHT = 2e-5
LOOSE = 1e-4
RECORDING = Path(__file__).parent / "recordings" / "tiny"


@pytest.fixture(scope="module")
def golden(request: pytest.FixtureRequest) -> Path:
    return request.config.getoption("--golden") or RECORDING


@pytest.fixture(scope="module")
def index(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "cases" / "index.json").read_text())


@pytest.fixture(scope="module")
def pipeline(golden: Path) -> NextStepPipeline:
    return NextStepPipeline.from_pretrained(golden / "model", dtype=torch.float32)


def case(golden: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(golden / "cases" / f"{name}.safetensors")


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours.detach().double() - theirs.double()).abs().max())


def released_mask(attention_mask: torch.Tensor) -> torch.Tensor:
    """The additive mask of the released training code.

    A padding row looks at nothing there, which an additive mask turns into looking at everything
    alike; the last one of them predicts the first real id, so it counts in the recorded loss.
    """
    valid = attention_mask.bool()
    S = valid.shape[1]
    allowed = torch.ones(S, S, dtype=torch.bool).tril() & valid[:, None, :]
    return torch.where(allowed, 0.0, torch.finfo(torch.float32).min)[:, None]


def test_patchify(golden: Path) -> None:
    recorded = case(golden, "patchify")
    h, w = recorded["latents"].shape[-2:]
    assert torch.equal(patchify(recorded["latents"]), recorded["tokens"])
    assert torch.equal(unpatchify(recorded["tokens"], (h // 2, w // 2)), recorded["back"])


def test_vae(golden: Path, pipeline: NextStepPipeline) -> None:
    recorded = case(golden, "vae")
    tokenizer = pipeline.image_tokenizer
    assert distance(tokenizer.encode(recorded["pixels"]), recorded["latents"]) <= LOOSE
    decoded = tokenizer.autoencoder.decoder(recorded["latents"])
    assert distance(decoded, recorded["decoded"]) <= LOOSE


def test_flow_head(golden: Path, pipeline: NextStepPipeline) -> None:
    recorded = case(golden, "flow_head")
    velocity = pipeline.model.image_head(recorded["x"], recorded["t"], recorded["c"])
    assert distance(velocity, recorded["velocity"]) <= TIGHT


def test_prefill(golden: Path, pipeline: NextStepPipeline) -> None:
    recorded = case(golden, "prefill")
    model = pipeline.model
    embeddings = model.embed(recorded["input_ids"], patchify(recorded["latents"]).flatten(0, 1))
    valid = recorded["attention_mask"].bool()
    assert distance(embeddings[valid], recorded["inputs_embeds"][valid]) <= TIGHT
    hidden = model.hidden(embeddings, *padded_positions(valid))
    assert distance(hidden[valid], recorded["hidden"][valid]) <= TIGHT
    assert distance(model.text_logits(hidden[:, -1]), recorded["logits"]) <= TIGHT


def test_train_loss(golden: Path) -> None:
    recorded = case(golden, "train_loss")
    model = NextStepModel.from_pretrained(golden / "model", dtype=torch.float32)
    ids, config = recorded["input_ids"], model.config
    tokens = patchify(recorded["latents"]).flatten(0, 1)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    hidden = model.hidden(model.embed(ids, tokens), mask=released_mask(recorded["attention_mask"]))
    lm_loss = model.text_loss(hidden, ids, recorded["labels"])
    before = (ids[:, 1:] == config.image_placeholder_id).nonzero(as_tuple=True)
    condition = model.image_condition(hidden[:, :-1][before])
    im_loss = model.image_loss(condition, tokens, recorded["u"], recorded["noise"])
    assert distance(lm_loss, recorded["lm_loss"]) <= TIGHT
    assert distance(im_loss, recorded["im_loss"]) <= TIGHT
    loss = config.lm_loss_weight * lm_loss + config.im_loss_weight * im_loss
    assert distance(loss, recorded["loss"]) <= TIGHT
    loss.backward()
    compared = [name for name in recorded if name.startswith("grad.")]
    assert compared
    for name in compared:
        gradient = model.get_parameter(name.removeprefix("grad.")).grad
        assert gradient is not None
        assert distance(gradient, recorded[name]) <= LOOSE, name
    model.zero_grad()
    model.requires_grad_(False)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every picture that the recording's index describes with settings is a test."""
    if "picture_case" not in metafunc.fixturenames:
        return
    folder = metafunc.config.getoption("--golden") or RECORDING
    described = json.loads((folder / "cases" / "index.json").read_text())
    names = [name for name, said in described.items() if isinstance(said, dict)]
    metafunc.parametrize("picture_case", names)


def test_pictures(
    picture_case: str, golden: Path, index: dict[str, Any], pipeline: NextStepPipeline
) -> None:
    said, recorded = index[picture_case], case(golden, picture_case)
    tokens = recorded_tokens(pipeline, golden, said, recorded)
    assert distance(tokens, recorded["tokens"]) <= LOOSE
    grid = pipeline.image_tokenizer.grid(*said["hw"])
    ours = to_bytes(pipeline.image_tokenizer.decode_tokens(tokens, grid)).astype(int)
    assert np.abs(ours - recorded["images"].numpy().astype(int)).max() <= 1


def recorded_tokens(
    pipeline: NextStepPipeline,
    golden: Path,
    said: dict[str, Any],
    recorded: dict[str, torch.Tensor],
) -> torch.Tensor:
    """Our tokens of a recorded picture, from the recorded noise."""
    height, width = said["hw"]
    common = {
        "height": height,
        "width": width,
        "num_images": said["num_images"],
        "noise": RecordedNoise(recorded["noise"]),
        "solver": said["sampler"].split()[0],
        "steps": said["steps"],
        "shift": said["timesteps_shift"],
        "guidance": said["cfg"],
        "image_guidance": said["cfg_img"],
        "schedule": said.get("cfg_schedule", "constant"),
        "token_norm": said["use_norm"],
        "positive_prompt": said.get("positive", ""),
        "negative_prompt": said.get("negative", ""),
        "noise_level": said.get("noise_level"),
    }
    if "source" not in said:
        return _tokens_of(pipeline, "generate", said["caption"], **common)
    named = [said["source"]] if isinstance(said["source"], str) else said["source"]
    sources = [Image.open(golden / "cases" / name) for name in named]
    return _tokens_of(pipeline, "edit", sources, said["caption"], **common)


def _tokens_of(
    pipeline: NextStepPipeline, method: str, *args: Any, **settings: Any
) -> torch.Tensor:
    """The sampled tokens of a call, caught on their way to the image tokenizer."""
    caught: list[torch.Tensor] = []
    decode = pipeline.image_tokenizer.decode_tokens

    def catch(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        caught.append(tokens)
        return decode(tokens, grid)

    pipeline.image_tokenizer.decode_tokens = catch  # type: ignore[method-assign]
    try:
        getattr(pipeline, method)(*args, **settings)
    finally:
        pipeline.image_tokenizer.decode_tokens = decode  # type: ignore[method-assign]
    return torch.cat(caught)


def test_left_pad_matches_recorded_mask(golden: Path, pipeline: NextStepPipeline) -> None:
    recorded = case(golden, "prefill")
    valid = recorded["attention_mask"].bool()
    rows = [ids[keep].tolist() for ids, keep in zip(recorded["input_ids"], valid, strict=True)]
    ids, mask = left_pad(rows, pipeline.model.config.pad_id)
    assert torch.equal(mask, valid)
    assert torch.equal(ids[mask], recorded["input_ids"][valid])
