"""Recipes and configs of anybody: one sentence at once, and nothing of other files is shown."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from nextstep.config import NextStepConfig
from nextstep.errors import NextStepError
from nextstep.model.checkpoints import weight_files
from nextstep.recipe.load import load_recipe
from nextstep.text.tokenizer import TextTokenizer
from nextstep.vae.config import read_config

SECRET = "topsecretvalue"


def refused(work: Any) -> str:
    """The sentence of a refusal, which must come at once."""
    begun = time.thread_time()
    with pytest.raises((NextStepError, ValueError)) as told:
        work()
    assert time.thread_time() - begun < 2
    said = str(told.value)
    assert 5 < len(said) < 500 and "\n" not in said, said[:600]
    return said


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join('*' + a for _ in range(10))}]\n"
    for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)
RECIPES = {
    "deep lists": "[" * 5000,
    "closed deep lists": "a: " + "[" * 5000 + "]" * 5000,
    "deep mappings": "\n".join(" " * i + "a:" for i in range(400)),
    "many names for one": BOMB,
    "without end": "a: &a [*a]",
    "large": "a: b\n" * 100_000,
    "many keys": "\n".join(f"k{i}: 1" for i in range(9000)),
    "text": "just some words",
    "nothing": "",
    "numbers": "7",
    "key of a list": "[1, 2]: 3",
    "python": "a: !!python/object/apply:os.system ['true']",
    "digits": "steps: " + "9" * 5000,
    "control": "\x00\x01",
    "anchors": "*unknown",
}


@pytest.mark.parametrize("name", RECIPES)
def test_odd_recipes_are_refused_at_once(name: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPES[name])
    refused(lambda: load_recipe(path))


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/stdin", "/", "/nowhere/x.yaml", "pipe"])
def test_recipe_is_a_plain_file(name: str, tmp_path: Path) -> None:
    place = Path(name)
    if name == "pipe":
        place = tmp_path / "pipe.yaml"
        os.mkfifo(place)
    if name == "/dev/stdin" and place.resolve().is_file():
        place = Path("/dev/zero")
    refused(lambda: load_recipe(place))


@pytest.mark.parametrize(
    "content", [f"{SECRET}:x:0:0:root\n", f"token: {SECRET}\n", f"{SECRET}: 1\n", f"- {SECRET}\n",
                f"a: b: {SECRET}\n", f"'{SECRET}", f"steps: [{SECRET}", f"*{SECRET}"],
)  # fmt: skip
@pytest.mark.parametrize("ending", ["", ".yaml"])
def test_nothing_of_an_extended_file_is_shown(content: str, ending: str, tmp_path: Path) -> None:
    (tmp_path / f"secret{ending}").write_text(content)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"extends: secret{ending}\n")
    assert SECRET not in refused(lambda: load_recipe(recipe))


def test_recipes_that_extend_each_other_end(tmp_path: Path) -> None:
    for number in range(60):
        (tmp_path / f"{number}.yaml").write_text(f"extends: {number + 1}.yaml\n")
    (tmp_path / "60.yaml").write_text("extends: 60.yaml\n")
    assert "extend" in refused(lambda: load_recipe(tmp_path / "0.yaml"))


def changed(folder: Path, target: Path, file: str, **values: Any) -> Path:
    shutil.copytree(folder, target)
    path = target / file
    raw = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(raw | values))
    return target


ODD = [
    None,
    [],
    {},
    "x",
    -1,
    0,
    1.5,
    True,
    10**7,
    10**400,
    float("nan"),
    [[]],
    {"a": 1},
    "9" * 9999,
]


@pytest.mark.parametrize("name", ["num_hidden_layers", "hidden_size", "vocab_size", "head_dim",
                                  "num_attention_heads", "latent_patch_size", "rope_theta",
                                  "tie_word_embeddings", "rms_norm_eps", "rope_parameters",
                                  "fm_head_layers", "max_position_embeddings"])  # fmt: skip
def test_odd_values_of_a_model_config(name: str, tiny_folder: Path) -> None:
    raw = json.loads((tiny_folder / "config.json").read_text())
    for value in ODD:
        begun = time.thread_time()
        try:
            made = NextStepConfig.from_dict({**raw, name: value})
        except ValueError as error:
            assert len(str(error)) < 300
        else:
            assert made.num_hidden_layers <= 1000 and made.hidden_size <= 2**20
        assert time.thread_time() - begun < 1


@pytest.mark.parametrize("name", ["block_out_channels", "layers_per_block", "latent_channels",
                                  "norm_num_groups", "patch", "scaling_factor",
                                  "shift_factor"])  # fmt: skip
def test_odd_values_of_an_image_tokenizer(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    for number, value in enumerate(ODD):
        if value is None or (name.endswith("factor") and value in (1.5, -1, 10**7)):
            continue
        if value is False or (name == "shift_factor" and not value):
            continue
        folder = changed(tiny_folder / "vae", tmp_path / str(number), "config.json",
                         **{name: value})  # fmt: skip
        refused(lambda folder=folder: read_config(folder))
    for change in ({"ch": "a" * 9, "ch_mult": [10**9]}, {"ch": 10**9, "ch_mult": [1]},
                   {"ch": 1, "ch_mult": "abc"}):  # fmt: skip
        folder = tmp_path / str(len(str(change)))
        folder.mkdir()
        raw = {"num_res_blocks": 1, "z_channels": 16, **change}
        (folder / "config.json").write_text(json.dumps(raw))
        refused(lambda folder=folder: read_config(folder))


@pytest.mark.parametrize(
    "tokens", [[], 3, "x", {"a": {"content": "x"}}, {"1": "x"}, {"1": {}}, {"1": {"content": 3}},
               {"9" * 5000: {"content": "x"}}, {"-1": {"content": "x"}}, {"²": {"content": "x"}}],
)  # fmt: skip
def test_odd_lists_of_tokens(tokens: Any, tiny_folder: Path, tmp_path: Path) -> None:
    folder = changed(tiny_folder, tmp_path / "m", "tokenizer_config.json",
                     added_tokens_decoder=tokens)  # fmt: skip
    if tokens == []:
        TextTokenizer.from_folder(folder)
        return
    refused(lambda: TextTokenizer.from_folder(folder))


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "a/b.safetensors",
                                  "x.bin", "", ".", "..", "a\0.safetensors", 7, None])  # fmt: skip
def test_index_names_files_beside_it_only(name: Any, tmp_path: Path) -> None:
    (tmp_path / "outside.safetensors").write_bytes(b"x")
    model = tmp_path / "model"
    model.mkdir()
    index = {"weight_map": {"a": name}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(lambda: weight_files(model))
