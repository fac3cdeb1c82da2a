"""`nextstep plan` and `nextstep train`, from the command to the files it writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file

from nextstep.vae.tokenizer import ImageTokenizer
from tests.cli.test_commands import nextstep

RECIPES = Path(__file__).parents[2] / "recipes"

TOKENIZER = """
stage: tokenizer
steps: 4
tokenizer: {size: nano, crops: {size: 16, batch: 2}, gamma: 0.2}
data: {sources: [{pictures: PICTURES}]}
optimizer: {learning_rate: 1e-3}
ema: 0.9
precision: fp32
saving: {minutes: 0, steps: 2}
logging: {every: 1}
"""


def test_plan_prints_the_published_totals(capsys: pytest.CaptureFixture) -> None:
    status, out, _ = nextstep(capsys, "plan", RECIPES / "pretrain-14b.yaml")
    assert status == 0
    rows = [line.split() for line in out.splitlines() if line.endswith("agrees")]
    assert [(row[0], row[-2]) for row in rows] == [
        ("pretrain-14b.yaml", "1.23T"),
        ("pretrain-2-14b.yaml", "0.61T"),
        ("anneal-14b.yaml", "40B"),
        ("sft-14b.yaml", "5B"),
    ]
    assert "14,953,814,080" in out
    assert "384 x h100" in out


def test_plan_in_json(capsys: pytest.CaptureFixture) -> None:
    status, out, _ = nextstep(capsys, "plan", RECIPES / "pretrain-nano.yaml", "steps=200", "--json")
    told = json.loads(out)
    assert status == 0
    assert told["fits"] is True
    assert told["tokens"] == 200 * told["tokens_per_step"]
    assert told["device"]["name"] == "cpu"


def test_plan_refuses_what_cannot_fit(capsys: pytest.CaptureFixture) -> None:
    status, out, err = nextstep(
        capsys, "plan", RECIPES / "pretrain-14b.yaml", "parallel={ranks: 1}", "--device", "rtx4090"
    )
    assert status == 2
    assert "memory of a rank" in out
    assert "split it over more ranks" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("command", ["plan", "train"])
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere.yaml"], "nowhere.yaml cannot be read: No such file or directory"),
        ([RECIPES / "sft-nano.yaml", "steps"], "'steps' changes nothing; write key.path=value"),
        ([RECIPES / "sft-nano.yaml", "step=3"], "step: unknown key; did you mean steps?"),
    ],
)
def test_bad_input_is_reported_in_one_sentence(
    capsys: pytest.CaptureFixture, command: str, arguments: list, sentence: str
) -> None:
    status, _, err = nextstep(capsys, command, *arguments)
    assert status == 2
    assert sentence in err
    assert len(err.strip().splitlines()) == 1


@pytest.fixture
def tokenizer_recipe(tmp_path: Path) -> Path:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for place in range(3):
        pixels = rng.integers(0, 255, (24, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{place}.png")
    path = tmp_path / "tok.yaml"
    path.write_text(TOKENIZER.replace("PICTURES", str(pictures)))
    return path


def test_a_tokenizer_run_goes_on_to_the_same_weights(
    capsys: pytest.CaptureFixture, tmp_path: Path, tokenizer_recipe: Path
) -> None:
    def train(folder: str, *changes: str) -> None:
        status, out, err = nextstep(
            capsys, "train", tokenizer_recipe, *changes, "--folder", tmp_path / folder, "--quiet"
        )
        assert status == 0, err
        assert f"{tmp_path / folder / 'model'}" in out

    train("whole")
    train("halves", "steps=2")
    train("halves")
    name = "model/diffusion_pytorch_model.safetensors"
    whole, halves = (load_file(tmp_path / folder / name) for folder in ("whole", "halves"))
    assert all(np.array_equal(whole[key], halves[key]) for key in whole)
    ImageTokenizer.from_pretrained(tmp_path / "whole" / "model")
    written = yaml.safe_load((tmp_path / "whole" / "recipe.yaml").read_text())
    assert written["tokenizer"]["crops"]["batch"] == 2
    train("whole", "steps=1", "--fresh")
    assert (tmp_path / "whole.1" / name).exists()


def test_a_tokenizer_is_refined_from_a_folder(
    capsys: pytest.CaptureFixture, tmp_path: Path, tokenizer_recipe: Path
) -> None:
    changes = ["tokenizer.folder=nano", "tokenizer.decoder_only=true", "steps=1"]
    folder = tmp_path / "run"
    status, _, err = nextstep(
        capsys, "train", tokenizer_recipe, *changes, "--folder", folder, "--quiet"
    )
    assert status == 0, err
    from nextstep.model.folder import SHIPPED

    file = "diffusion_pytorch_model.safetensors"
    before, after = load_file(SHIPPED["nano"] / "vae" / file), load_file(folder / "model" / file)
    for name, tensor in before.items():
        same = np.array_equal(tensor.float(), after[name])
        assert same == name.startswith("encoder."), name
