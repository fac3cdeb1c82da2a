"""Settings by the names of earlier versions: pictures, states, folders, bodies, commands.

`picture.png` was drawn by version 0.1.0 before the names changed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from nextstep.engine.events import Event, Part
from nextstep.engine.metadata import KEY, as_texts, read_record
from nextstep.engine.pretrained import Parts
from nextstep.engine.reproduce import check_record, replay
from nextstep.engine.settings import GenerationSettings, ModelDefaults, check_used
from nextstep.engine.state import PictureState
from nextstep.errors import NextStepError
from nextstep.image.encode import encode
from nextstep.pipeline import NextStepPipeline
from nextstep.rollout.store import RolloutStore, read_rollouts
from nextstep.serve.jobs import backend as b
from nextstep.serve.jobs.store import Store
from nextstep.utils.old_names import OPTIONS, RECORD, SETTINGS, renamed
from tests.cli.test_commands import nextstep
from tests.rollout.test_sampler import PROMPTS, sampler

OLD_PICTURE = Path(__file__).with_name("picture.png")
OLD_OF = {new: old for old, new in RECORD.items()}
CHANGES = {"final_token_steps": 2, "jacobi_window": 3, "jacobi_tolerance": 0.4, "solver": "ab2"}


def in_old_words(values: dict[str, Any]) -> dict[str, Any]:
    old = {OLD_OF.get(name, name): value for name, value in values.items()}
    assert old != values
    return old


def test_a_picture_of_an_earlier_version_is_read() -> None:
    written = json.loads(Image.open(OLD_PICTURE).text[KEY])  # type: ignore[attr-defined]
    assert set(RECORD) <= set(written)
    record = read_record(OLD_PICTURE)
    check_record(record)
    assert not set(RECORD) & set(record)
    assert record == {RECORD.get(name, name): value for name, value in written.items()}
    assert (record["final_token_steps"], record["jacobi_window"]) == (2, 2)
    assert (record["jacobi_tolerance"], record["reasoning"]) == (0.02, False)
    assert record["backend"] == "kernels 2"


def test_a_record_in_old_words_makes_the_same_picture(
    tiny_pipeline: NextStepPipeline, tmp_path: Path
) -> None:
    made = tiny_pipeline.generate("a red apple", seed=4, steps=3, **CHANGES)[0]
    old = in_old_words(made.settings)
    assert replay(tiny_pipeline, old).png() == made.png()
    path = tmp_path / "old.png"
    path.write_bytes(encode(made.image, "PNG", as_texts(old)))
    assert read_record(path) == made.settings
    both = as_texts({**made.settings, "lookahead": 3})
    path.write_bytes(encode(made.image, "PNG", both))
    with pytest.raises(NextStepError, match="'lookahead' and 'jacobi_window' are the same"):
        read_record(path)


def test_a_state_in_old_words_goes_on_as_it_would_have(tiny_pipeline: NextStepPipeline) -> None:
    engine = tiny_pipeline.engine(1)
    ticket = engine.submit(engine.request("a red apple", seed=4, steps=3, **CHANGES))
    engine.step()
    state = engine.snapshot(ticket)
    data = state.to_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    told = json.loads(header["__metadata__"]["nextstep-picture-state"])
    told["settings"] = in_old_words(told["settings"])
    told["maker"] = told.pop("fingerprint")
    # The version before checksums.
    told["version"] = 5
    header["__metadata__"] = {"nextstep-picture-state": json.dumps(told)}
    head = json.dumps(header).encode()
    old = len(head).to_bytes(8, "little") + head + data[8 + size :]
    read = PictureState.from_bytes(old)
    assert read.request == state.request
    assert torch.equal(read.tokens, state.tokens)


def test_a_model_folder_in_old_words_is_read(tmp_path: Path) -> None:
    defaults = ModelDefaults(
        64,
        64,
        GenerationSettings(solver="ab2").with_values(**CHANGES),
        reasoning_before_answers=True,
    )
    raw = defaults.to_dict()
    raw["generate"], raw["edit"] = in_old_words(raw["generate"]), in_old_words(raw["edit"])
    raw["think_before_answers"] = raw.pop("reasoning_before_answers")
    (tmp_path / "generation.json").write_text(json.dumps(raw))
    assert ModelDefaults.of_folder(tmp_path) == defaults


def test_python_takes_old_and_new_names() -> None:
    own = GenerationSettings(solver="ab2")
    assert own.with_values(**in_old_words(CHANGES)) == own.with_values(**CHANGES)
    assert own.with_values(think=True).reasoning
    with pytest.raises(ValueError, match="'tolerance' and 'jacobi_tolerance' are the same"):
        own.with_values(jacobi_tolerance=0.1, tolerance=0.1)
    with pytest.raises(NextStepError, match="'reasoning' has no effect on a story"):
        check_used("story", {"think": True})


def test_every_old_name_has_a_new_one_that_is_a_setting() -> None:
    assert set(SETTINGS.values()) <= set(GenerationSettings.__dataclass_fields__)
    assert not set(SETTINGS) & set(GenerationSettings.__dataclass_fields__)
    with pytest.raises(ValueError, match="give one of them"):
        renamed({"a": 1, "b": 2}, {"a": "b"})
    assert renamed({"a": 1, "c": 2}, {"a": "b"}) == {"b": 1, "c": 2}


@pytest.mark.parametrize("old", sorted(OPTIONS.keys() - {"--out", "--n"}))
def test_commands_take_old_options(
    old: str, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    values = {"--lookahead": ["3"], "--tolerance": ["0.5"], "--last-steps": ["2"]}.get(old, [])
    made = []
    for name in (old, OPTIONS[old]):
        out = tmp_path / f"{name}.png"
        given = ["generate", "a", "-m", tiny_folder, "-o", out, "--solver", "ab2", name, *values]
        status, _, problem = nextstep(capsys, *given)
        assert status == 0, problem
        made.append(read_record(out))
    assert made[0] == made[1]
    status, said, _ = nextstep(capsys, "generate", "--help")
    assert status == 0 and old not in said.split()


def test_folders_and_numbers_of_items_are_taken_by_their_old_options(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given = ["lab", "scaling", "--cost", "--tiny", "--out", tmp_path / "lab", "--n"]
    status, _, problem = nextstep(capsys, *given, 3)
    assert status == 0, problem
    status, _, problem = nextstep(capsys, *given, "none")
    assert status == 2 and "--count" in problem


def test_jobs_stored_in_old_words_are_read(tmp_path: Path) -> None:
    settings, record = {"lookahead": 2, "think": False}, {"seed": 1, "computed_by": "torch"}
    store = Store(tmp_path, keep=9)
    job = store.add("a", b.JobRequest("generate", settings=settings), [])
    png = encode(Image.new("RGB", (2, 2)), "PNG")
    store.finish(job, Event("done", parts=(Part("", png, record),)))
    store.close()
    again = Store(tmp_path, keep=9)
    (found,) = again.of_owner("a", 9)
    assert found.request.settings == {"jacobi_window": 2, "reasoning": False}
    assert found.parts[0]["settings"] == {"seed": 1, "backend": "torch"}
    again.close()


def test_rollouts_in_old_words_are_read(tiny_parts: Parts, tmp_path: Path) -> None:
    groups = sampler(tiny_parts).draw([(PROMPTS[0], 1)])
    store = RolloutStore(tmp_path / "r", {"model": "tiny"})
    store.write(0, groups)
    (path,) = (tmp_path / "r").glob("shard-*")
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    records = json.loads(header["__metadata__"]["groups"])
    records[0]["settings"] = in_old_words(records[0]["settings"])
    header["__metadata__"]["groups"] = json.dumps(records)
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + data[8 + size :])
    (found,) = read_rollouts(tmp_path / "r")
    assert found.settings == groups[0].settings


def test_what_computed_before_is_read_in_old_words() -> None:
    before = {"by": "torch", "threads": 1}
    assert b.other_roundings(before, {"backend": "torch", "threads": 1}) == []
    assert b.other_roundings(before, {"backend": "kernels 3", "threads": 1}) == ["backend"]
