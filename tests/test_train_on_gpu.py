"""The script that trains on a GPU, as far as a machine without one can run it."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nextstep.errors import NextStepError
from nextstep.model.folder import find_folder
from nextstep.recipe.load import load_recipe
from nextstep.world.editions import editions

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"
NANO = find_folder("nano")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("train_on_gpu")


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("split_weights")


def test_a_model_comes_back_from_its_parts_to_the_last_byte(parts: Any, tmp_path: Path) -> None:
    names = parts.split(NANO, tmp_path / "sent")
    files = sorted((tmp_path / "sent").iterdir())
    assert sorted(names) == [path.name for path in files]
    assert all(path.stat().st_size < 16 * 2**20 for path in files)
    parts.join(tmp_path / "sent", tmp_path / "model")
    for path in NANO.rglob("*"):
        if path.is_file():
            assert (tmp_path / "model" / path.relative_to(NANO)).read_bytes() == path.read_bytes()
    with pytest.raises(NextStepError, match="is there already"):
        parts.join(tmp_path / "sent", tmp_path / "model")


def test_damaged_and_missing_parts_are_named_and_leave_nothing(parts: Any, tmp_path: Path) -> None:
    sent = tmp_path / "sent"
    parts.split(NANO, sent)
    part = sorted(sent.glob("weights-*"))[-1]
    data = part.read_bytes()
    part.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(NextStepError, match=f"{part.name} is not the file that was split"):
        parts.join(sent, tmp_path / "model")
    part.unlink()
    with pytest.raises(NextStepError, match=f"{part.name} is missing"):
        parts.join(sent, tmp_path / "model")
    with pytest.raises(NextStepError, match="more than a part of 1000"):
        parts.split(NANO, tmp_path / "other", most=1000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "sent"]
    command = [sys.executable, SCRIPTS / "split_weights.py", "join", sent, tmp_path / "model"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (ran.returncode, len(ran.stderr.splitlines())) == (2, 1)


def test_the_stand_in_reads_recipes_and_settings_as_pydantic_does(tmp_path: Path) -> None:
    """In another process, which finds the stand-in where this one finds pydantic."""
    code = (
        "import json, pydantic\n"
        "from pathlib import Path\n"
        "from nextstep.engine.settings import ModelDefaults\n"
        "from nextstep.recipe.load import load_recipe\n"
        "assert 'without_pydantic' in pydantic.__file__\n"
        "names = sorted(Path('recipes').glob('*.yaml'))\n"
        "told = {n.stem: load_recipe(n).model_dump(mode='json') for n in names}\n"
        f"print(json.dumps([told, repr(ModelDefaults.of_folder(Path({str(NANO)!r})))]))"
    )
    path = os.pathsep.join((str(SCRIPTS / "without_pydantic"), str(ROOT / "src")))
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
    ).stdout  # fmt: skip
    recipes, defaults = json.loads(told)
    names = sorted((ROOT / "recipes").glob("*.yaml"))
    assert recipes == {n.stem: json.loads(load_recipe(n).model_dump_json()) for n in names}
    from nextstep.engine.settings import ModelDefaults

    assert defaults == repr(ModelDefaults.of_folder(NANO))


def test_both_stages_hold_core_48_and_nothing_of_them_is_composed(script: Any) -> None:
    assert {"core-48", "core-144", "full"} <= set(editions())
    for changes, edition in (([], "core-144"), (script.FULL, "full")):
        recipe = load_recipe(script.RECIPE, changes)
        told = [source.world.options.get("edition") for source in recipe.data.sources
                if source.world and source.world.name == "world"]  # fmt: skip
        assert set(told) <= {edition, "core-48", "core-144"}
        assert (told.count(edition) >= 5, told.count("core-48")) == (True, 4)
        assert not any(source.compose_latents for source in recipe.data.sources)
        assert recipe.data.processes == 15
        assert (recipe.precision, recipe.compile, recipe.model.folder) == ("bf16", True, "nano")


def test_what_is_missing_is_one_sentence_each(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(script.shutil, "which", lambda name: None)
    found = list(script.preflight("cuda"))
    assert found == ["PyTorch finds no CUDA device here."]
    assert "no C compiler" in capsys.readouterr().out
    known = importlib.util.find_spec
    gone = ("yaml", "tokenizers")
    monkeypatch.setattr(
        script.importlib.util, "find_spec", lambda name: None if name in gone else known(name)
    )
    assert [sentence.split()[3] for sentence in script.preflight("cpu")] == list(gone)


class Parts:
    """In place of the processes of a stage: what each of them leaves in the folder."""

    def __init__(self, *leaves: str) -> None:
        self.leaves, self.asked = list(leaves), list[tuple[list[str], float]]()

    def __call__(self, name: str, seconds: float, starts: Path | None = None, **told: Any) -> None:
        assert name == "train"
        self.asked.append((told["changes"], told["end"]))
        for made in filter(None, self.leaves.pop(0).split()):
            (Path(told["folder"]) / made).mkdir(parents=True)


def test_a_stage_that_does_not_start_begins_again_without_compiling(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Parts("", "model")
    monkeypatch.setattr(script, "part", made)
    assert script.stage(script.PLANS[""], tmp_path / "a", ["x=1"], 3) == tmp_path / "a" / "model"
    assert [changes for changes, _ in made.asked] == [
        ["x=1", "compile=true"], ["x=1", "compile=false"],
    ]  # fmt: skip


def test_a_stage_that_breaks_off_is_finished_from_its_checkpoint(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Parts("checkpoints/step-00000100", "model")
    monkeypatch.setattr(script, "part", made)
    assert script.stage(script.PLANS[""], tmp_path / "a", [], 3)
    assert [end == 0 for _, end in made.asked] == [False, True]
    made = Parts("", "", "")
    monkeypatch.setattr(script, "part", made)
    assert script.stage(script.PLANS[""], tmp_path / "b", [], 3) is None
    assert len(made.asked) == 3


def test_a_part_that_is_late_or_never_starts_is_ended(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    sleeping = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(script, "RUN", sleeping)
    script.part("score", 0.3)
    monkeypatch.setattr(script, "START_SECONDS", 0.3)
    script.part("train", 60, tmp_path)
    said = capsys.readouterr().out
    assert "score: ended after 0 s.\nscore: exit status -9" in said
    assert "train: ended after 0 s, before its first step.\n" in said
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    assert script.has_started(tmp_path)


def test_what_is_trained_comes_back_whatever_follows(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both stages, with processes that write the starting model in place of training it."""
    work, out, asked = tmp_path / "work", tmp_path / "out", list[tuple[str, Any]]()
    out.mkdir()
    (out / "log.jsonl").write_text("of an earlier run\n")

    def part(name: str, seconds: float, starts: Path | None = None, **told: Any) -> None:
        asked.append((name, told))
        if name == "train":
            folder = Path(told["folder"])
            folder.mkdir(parents=True)
            (folder / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
            (folder / "model").symlink_to(NANO)

    monkeypatch.setattr(script, "part", part)
    begun, end = script.time.time(), script.time.monotonic() + 540
    assert script.run(script.PLANS[""], out, work, end, 9.0) == 0
    assert [name for name, _ in asked] == ["train", "train", "score"]
    ends = [told["end"] - begun for name, told in asked if name == "train"]
    assert 0 < ends[0] < ends[1] < 60 * (9 - script.RESERVE) + 5
    second = asked[1][1]["changes"]
    assert second[: len(script.FULL)] == script.FULL
    assert f"model.folder={work / 'core-144' / 'model'}" in second
    rows = [json.loads(row) for row in (out / "log.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["core-144", "full"]
    files = sorted(path.name for path in out.iterdir())
    # Beside the console's log and the card eight files in all come back.
    assert files == [
        "README.md", "log.jsonl", "manifest.json", "rest.zip",
        "weights-1-of-2.safetensors", "weights-2-of-2.safetensors",
    ]  # fmt: skip
    whole = load_file(NANO / "model.safetensors")
    told = {name for part in out.glob("weights-*") for name in load_file(part)}
    assert told == whole.keys()


def test_a_stage_of_the_rehearsal_trains_and_writes_a_model(script: Any, tmp_path: Path) -> None:
    """The part itself in its smallest form: recipe, worker process, two steps, model folder."""
    changes = [*script.PLANS["tiny"].changes, "compile=false", "model.folder=nano"]
    assert (
        script.train(str(tmp_path / "a"), "cpu", "groups", script.time.time() + 600, changes) == 0
    )
    assert script.has_started(tmp_path / "a")
    model = load_file(tmp_path / "a" / "model" / "model.safetensors")
    before = load_file(NANO / "model.safetensors")
    assert model.keys() == before.keys()
    assert not all(torch.equal(model[name], before[name]) for name in model)


def test_a_model_is_scored_group_by_group_while_there_is_time(script: Any, tmp_path: Path) -> None:
    told = {"model": "nano", "out": str(tmp_path), "work": str(tmp_path / "work"), "device": "cpu"}
    scored = [("core-48", 1), ("full", 1)]
    assert script.score(**told, time_for_it=-1, scored=scored, groups=["single"]) == 0
    assert not (tmp_path / "card.json").exists()
    assert script.score(**told, time_for_it=1e3, scored=scored[:1], groups=["single"]) == 0
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["core-48"]["single"]["items_per_task"] == 1
    assert 0 <= card["core-48"]["single"]["tasks"]["single"] <= 1
