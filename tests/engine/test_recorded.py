"""Settings from files of anybody: refused in one sentence, shown without harm."""

from __future__ import annotations

import json
import os
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

from nextstep.cli.main import command_line
from nextstep.engine import reproduce
from nextstep.engine.metadata import KEY, read_record
from nextstep.engine.settings import GenerationSettings, ModelDefaults, generation_settings
from nextstep.engine.state import PictureState
from nextstep.errors import NextStepError, printable
from nextstep.pipeline import NextStepPipeline

GOOD = {
    "task": "generate", "prompt": "a", "seed": 1, "index": 0, "height": 32, "width": 32,
    **GenerationSettings().recorded(), "model": "tiny", "dtype": "float32", "backend": "torch",
    "version": "0.1.0", "threads": 1, "block_rows": 8,
}  # fmt: skip
WRONG: list[dict[str, Any]] = [
    {"threads": 200_000}, {"threads": -1}, {"threads": "4"}, {"threads": 1.5}, {"threads": True},
    {"index": -1}, {"index": "0"}, {"index": 2**70}, {"seed": -1}, {"seed": 2**63}, {"seed": None},
    {"height": 0}, {"width": 10**9}, {"height": "32"}, {"steps": 0}, {"steps": 10**9},
    {"steps": [1]}, {"solver": "magic"}, {"solver": 3}, {"guidance": "high"}, {"guidance": None},
    {"guidance": float("nan")}, {"guidance": float("inf")}, {"shift": {}}, {"table": [["a"]]},
    {"table": 7}, {"reasoning": 1}, {"token_norm": "yes"}, {"schedule": None}, {"prompt": 5},
    {"prompt": ["a"]}, {"positive_prompt": 3}, {"model": 7}, {"dtype": None}, {"sources": "abc"},
    {"sources": [1]}, {"adapter_scale": "1"}, {"adapter_scale": float("nan")}, {"quantize": 8},
    {"rows_done": -1}, {"mask": []}, {"version": 1}, {"jacobi_window": 10**6},
    {"jacobi_tolerance": -1.0}, {"lookahead": 0}, {"think": 1},
]  # fmt: skip


def picture_with(text: str, path: Path) -> Path:
    info = PngInfo()
    info.add_itxt(KEY, text)
    Image.new("RGB", (32, 32)).save(path, pnginfo=info)
    return path


def run(*words: str) -> tuple[int, str]:
    """Exit status and what is shown of a command that must not end in a traceback."""
    told = CliRunner().invoke(command_line(), list(words))
    if told.exception is not None and not isinstance(told.exception, SystemExit):
        assert isinstance(told.exception, ValueError), repr(told.exception)
        return 2, printable(str(told.exception))
    return told.exit_code, told.output


@pytest.mark.parametrize("change", WRONG, ids=[str(c)[:40] for c in WRONG])
def test_wrong_fields_are_refused_by_every_reader(change: dict[str, Any], tmp_path: Path) -> None:
    path = picture_with(json.dumps({**GOOD, **change}), tmp_path / "a.png")
    for command in ("show-settings", "verify", "replay"):
        status, said = run(command, str(path), *(["-o", str(tmp_path / "b.png")]
                                                 if command == "replay" else []))  # fmt: skip
        assert status == 2 and "are damaged" in said and len(said) < 400, (command, said)


@pytest.mark.parametrize(
    "text", ["", "nonsense", "[]", "null", "7", "[" * 100_000, '{"a":' * 50_000,
             '{"prompt": "\\ud800"}', "{" + '"a": 1,' * 3, "NaN"],
)  # fmt: skip
def test_records_that_are_none_are_refused(text: str, tmp_path: Path) -> None:
    path = picture_with(text, tmp_path / "a.png")
    for command in ("show-settings", "verify"):
        status, said = run(command, str(path))
        assert status == 2 and len(said) < 500, said[:500]


def test_pipes_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    for place in (pipe, Path("/dev/zero")):
        for command in ("show-settings", "verify"):
            status, said = run(command, str(place))
            assert status == 2 and "no plain file" in said


def test_control_characters_never_reach_the_terminal(tmp_path: Path) -> None:
    bad = "\x1b]0;owned\x07\x9b31m\u202etxt\x7f\r"
    record = {**GOOD, "prompt": bad, "model": bad, "of_tomorrow": {bad: bad}, bad: 1}
    path = picture_with(json.dumps(record), tmp_path / "a.png")
    for words in (("show-settings", str(path)), ("show-settings", str(path), "--json"),
                  ("verify", str(path))):  # fmt: skip
        _, said = run(*words)
        shown = said.replace("\n", "")
        assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs") or c == "\u202e"]
    told = CliRunner().invoke(command_line(), ["show-settings", str(path), "--json"])
    assert json.loads(told.output)["prompt"] == bad


def test_fields_of_newer_versions_are_shown(tmp_path: Path) -> None:
    path = picture_with(json.dumps({**GOOD, "of_tomorrow": [1, "two"]}), tmp_path / "a.png")
    assert read_record(path)["of_tomorrow"] == [1, "two"]
    assert read_record(path) == {**GOOD, "of_tomorrow": [1, "two"]}


def test_number_of_threads_fits_the_machine(
    tiny_pipeline: NextStepPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduce.os, "cpu_count", lambda: 2)
    asked: list[int] = []
    monkeypatch.setattr(reproduce.torch, "set_num_threads", asked.append)
    with pytest.raises(NextStepError, match="at most 64"), reproduce._threads(1000):
        pass
    with reproduce._threads(64):
        assert asked == [64]


@given(st.dictionaries(
    st.sampled_from([*GOOD, "unknown"]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=5,
    ),
))  # fmt: skip
def test_any_values_make_settings_or_are_refused(raw: dict[str, Any]) -> None:
    try:
        made = generation_settings(raw, "they")
    except NextStepError as error:
        assert "\n" not in str(error)
        return
    assert all(getattr(made, name) == (tuple(value) if name == "table" else value)
               for name, value in raw.items())  # fmt: skip


@pytest.mark.parametrize("change", [c for c in WRONG if set(c) <= set(vars(GenerationSettings()))],
                         ids=lambda c: str(c)[:40])  # fmt: skip
def test_states_and_model_folders_hold_the_same_settings(
    change: dict[str, Any], tmp_path: Path, tiny_pipeline: NextStepPipeline
) -> None:
    from safetensors.torch import save

    from nextstep.engine import state as module
    from tests.serve.conftest import engine_of

    engine = engine_of(tiny_pipeline)
    state = PictureState(engine.request("a"), engine.state(engine.request("a"), _none()).tokens,
                         engine.fingerprint)  # fmt: skip
    data = state.to_bytes()
    size = int.from_bytes(data[:8], "little")
    told = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][module.FORMAT])
    told["settings"] |= change
    told["version"] = 5  # before checksums
    with pytest.raises(NextStepError, match="damaged"):
        PictureState.from_bytes(save({"tokens": state.tokens}, {module.FORMAT: json.dumps(told)}))
    raw = ModelDefaults().to_dict()
    raw["edit"] |= change
    (tmp_path / "generation.json").write_text(json.dumps(raw))
    with pytest.raises(NextStepError, match="is damaged"):
        ModelDefaults.of_folder(tmp_path)


def test_reasoning_before_answers_comes_back_and_is_checked(tmp_path: Path) -> None:
    for told in (True, False):
        made = ModelDefaults(reasoning_before_answers=told)
        (tmp_path / "generation.json").write_text(json.dumps(made.to_dict()))
        assert ModelDefaults.of_folder(tmp_path) == made
    raw = ModelDefaults().to_dict() | {"reasoning_before_answers": "yes"}
    (tmp_path / "generation.json").write_text(json.dumps(raw))
    with pytest.raises(NextStepError, match="reasoning_before_answers is 'yes'"):
        ModelDefaults.of_folder(tmp_path)
    del raw["reasoning_before_answers"]  # of earlier versions
    (tmp_path / "generation.json").write_text(json.dumps(raw))
    assert not ModelDefaults.of_folder(tmp_path).reasoning_before_answers


def _none() -> Any:
    import torch

    return torch.empty(0, 64)


def test_settings_come_back_from_what_they_record() -> None:
    made = replace(GenerationSettings(), guidance=3, steps=5, positive_prompt="\x1b ok")
    assert generation_settings(made.recorded(), "they") == made
