"""`nextstep finetune` and `--adapter` as they are typed."""

from __future__ import annotations

import inspect
import json
from dataclasses import fields
from pathlib import Path

import pytest
from PIL import Image

from nextstep.cli import finetune as cli
from nextstep.engine.pretrained import load_parts
from nextstep.finetune.settings import FinetuneSettings
from tests.cli.test_commands import nextstep

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("red_apple", "blue_apple"):
        Image.new("RGB", (32, 32), name.split("_")[0]).save(folder / f"{name}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def test_defaults_are_those_of_the_settings() -> None:
    settings = {field.name: field.default for field in fields(FinetuneSettings)}
    typed = inspect.signature(cli.command).parameters
    shared = (settings.keys() & typed.keys()) - {"data", "output", "model", "prompts"}
    assert {"context_noise", "drop_text", "precision", "sheets", "full"} <= shared
    assert {n: typed[n].default for n in shared} == {n: settings[n] for n in shared}


def test_from_a_folder_to_a_picture(
    data: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "style"
    status, said, err = nextstep(
        capsys, "finetune", "--data", data, "-o", output, "-m", tiny_folder,
        "--caption", "{name}, my style", "--steps", 2, "--rank", 2, "--sheets", 0,
        "--precision", "fp32", "--tensorboard",
    )  # fmt: skip
    assert status == 0, err
    assert "2 samples in" in said
    assert "left out: broken.png: corrupt picture" in said
    assert f"--adapter {output / 'adapter'}" in said
    assert "computes in fp32" in said
    assert (output / "loss.png").exists()
    assert list((output / "run" / "tensorboard").glob("events*"))
    picture = tmp_path / "a.png"
    status, said, err = nextstep(
        capsys, "generate", "red apple, my style", "-m", tiny_folder, "-o", picture,
        "--adapter", output / "adapter", "--adapter-scale", 0.5, "--json",
    )  # fmt: skip
    assert status == 0, err
    (record,) = json.loads(said)["pictures"]
    assert record["adapter_scale"] == 0.5
    assert len(record["adapter"]) == 16
    status, said, _ = nextstep(
        capsys, "edit", "make it blue", "-i", picture, "-m", tiny_folder, "-o", picture,
        "--adapter", output, "--json",
    )  # fmt: skip
    assert json.loads(said)["pictures"][0]["adapter"] == record["adapter"]
    whole = tmp_path / "whole"
    status, _, err = nextstep(
        capsys, "convert", tiny_folder, whole, "--adapter", output / "adapter"
    )
    assert status == 0, err
    weights = [
        load_parts(folder).model.image_in_projector.weight for folder in (tiny_folder, whole)
    ]
    assert not weights[0].equal(weights[1])


def test_one_line_of_json(
    data: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    status, said, err = nextstep(
        capsys, "finetune", "--data", data, "-o", tmp_path / "x", "-m", tiny_folder, "--full",
        "--steps", 1, "--prompt", "a red apple", "--json",
    )  # fmt: skip
    assert status == 0, err
    told = json.loads(said)
    assert told["finished"] is True
    assert (told["adapter"], told["model"]) == (None, str(tmp_path / "x" / "model"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--data", "no-such-folder"], "there is no folder no-such-folder"),
        (["--parts", "lm_head"], "cannot have lm_head; choose from"),
        (["--rank", "0"], "at least 1"),
        (["--steps", "5", "--minutes", "1"], "not both"),
        (["-m", "no-such-model"], "there is no model folder"),
        (["--caption", "{caption}!"], "has a text for {caption}"),
        (["--device", "abacus"], "unknown device 'abacus'"),
    ],
)
def test_bad_input(
    data: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture,
    given: list[str], said: str,
) -> None:  # fmt: skip
    status, _, err = nextstep(
        capsys, "finetune", "--data", data, "-o", tmp_path / "x", "-m", tiny_folder, *given
    )
    assert status == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "x" / "adapter").exists()


def test_adapters_that_cannot_be_used(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    status, _, err = nextstep(
        capsys, "generate", "x", "-m", tiny_folder, "-o", tmp_path / "a.png",
        "--adapter", tiny_folder,
    )  # fmt: skip
    assert (status, "no adapter folder" in err) == (2, True)
