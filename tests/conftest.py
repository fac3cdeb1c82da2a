"""Options and fixtures shared by all tests."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import hypothesis
import pytest
import torch

from nextstep.config import NextStepConfig
from nextstep.engine.backends.cpu_kernels import core_of
from nextstep.engine.pretrained import Parts, save_parts
from nextstep.engine.settings import GenerationSettings, ModelDefaults
from nextstep.kernels import build
from nextstep.model.nextstep import NextStepModel
from nextstep.model.quantization import pack_model
from nextstep.pipeline import NextStepPipeline
from nextstep.text.tokenizer import TextTokenizer
from nextstep.vae.config import AutoencoderConfig
from nextstep.vae.tokenizer import ImageTokenizer

# Times on a shared machine say nothing about the code, and examples must be the same every time.
hypothesis.settings.register_profile("project", deadline=None, derandomize=True)
hypothesis.settings.load_profile("project")

# Processes that share the tests share the cores too, and so do the commands that tests start.
if processes := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    threads = max(1, (os.cpu_count() or 1) // processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    torch.set_num_threads(threads)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=Path,
        default=None,
        help="another recording of the released code than tests/parity/recordings/tiny",
    )
    parser.addoption(
        "--fuzz-full",
        action="store_true",
        help="fuzz with thousands of inputs of each kind instead of a few (half an hour)",
    )
    parser.addoption("--ray", action="store_true", help="run tests that start a Ray cluster too")


TINY = NextStepConfig(
    vocab_size=320,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=256,
    fm_head_dim=24,
    fm_head_layers=2,
    eos_id=0,
    pad_id=1,
    begin_of_image_id=3,
    end_of_image_id=4,
    image_placeholder_id=5,
)
PACKABLE = replace(TINY, num_attention_heads=2, num_key_value_heads=1, head_dim=16, fm_head_dim=32)
"""The same with widths that kernels know."""
TINY_VAE = AutoencoderConfig(block_channels=(8, 8, 8, 8), layers_per_block=1, norm_groups=4)
QUICK = GenerationSettings(guidance=2.0, solver="ode", steps=2)


def random_model(config: NextStepConfig, seed: int = 0) -> NextStepModel:
    """A model in which every weight counts: zero-initialised layers are made random too."""
    torch.manual_seed(seed)
    model = NextStepModel(config)
    model.reset_parameters()
    with torch.no_grad():
        for parameter in model.parameters():
            if not bool(parameter.any()):
                parameter.normal_(std=0.05)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def text_tokenizer() -> TextTokenizer:
    return TextTokenizer.train(["a red apple", "make it blue", "two cats"] * 3, 300)


@pytest.fixture(scope="session")
def tiny_parts(text_tokenizer: TextTokenizer) -> Parts:
    torch.manual_seed(1)
    image_tokenizer = ImageTokenizer(TINY_VAE)
    defaults = ModelDefaults(32, 32, QUICK, QUICK.with_values(image_guidance=1.5))
    return Parts(random_model(TINY), image_tokenizer, text_tokenizer, defaults, "tiny")


@pytest.fixture(scope="session")
def tiny_folder(tiny_parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_parts(tiny_parts, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_folder: Path) -> NextStepPipeline:
    return NextStepPipeline.from_pretrained(tiny_folder)


def model_in(kind: str) -> NextStepModel:
    """A random model in a number format, and packed for the kernels when a second word says how."""
    dtype, *packed = kind.split()
    if not packed:
        return random_model(TINY).to(getattr(torch, dtype))
    if not build.is_available():
        pytest.skip(build.why_not())
    model = random_model(PACKABLE).to(getattr(torch, dtype))
    pack_model(model, packed[0])
    assert core_of(model)
    return model
