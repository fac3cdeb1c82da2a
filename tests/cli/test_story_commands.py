"""`nextstep story`, `read` and `predict`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from nextstep.engine.engine import Engine
from nextstep.engine.pretrained import load_parts
from tests.cli.test_commands import nextstep
from tests.test_pipeline import picture


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    path = tmp_path / "scene.png"
    picture().save(path)
    return path


def test_predict_draws_one_picture_an_action(
    tiny_folder: Path, tmp_path: Path, scene: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "next.png"
    status, said, _ = nextstep(
        capsys, "predict", scene, "-a", "it moves right", "-a", "and back", "-m", tiny_folder,
        "-o", out, "--json",
    )  # fmt: skip
    assert status == 0
    made = json.loads(said)["pictures"]
    assert [m["path"] for m in made] == [str(tmp_path / f"next-{i}.png") for i in range(2)]
    assert made[1]["prompt"].endswith("it moves right<image>and back")
    with Image.open(made[0]["path"]) as drawn:
        assert drawn.size == (32, 32)


def test_read_says_something_and_names_what_is_missing(
    tiny_folder: Path, tmp_path: Path, scene: Path, capsys: pytest.CaptureFixture
) -> None:
    status, said, _ = nextstep(
        capsys, "read", scene, "-q", "what?", "-m", tiny_folder, "--max-tokens", 4, "--json"
    )
    assert status == 0
    assert json.loads(said)["question"] == "what?"
    status, _, err = nextstep(capsys, "read", tmp_path / "none.png", "-m", tiny_folder)
    assert (status, len(err.strip().splitlines())) == (2, 1)


def test_story_writes_its_pictures_and_text(
    tiny_folder: Path,
    tmp_path: Path,
    scene: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    special = load_parts(tiny_folder).text_tokenizer.ids
    script = iter([20, special.image_area, 21, special.image_area, special.eos])
    monkeypatch.setattr("nextstep.engine.text_sampling.greedy", lambda logits: next(script))
    status, said, _ = nextstep(
        capsys, "story", "once <image> upon a time", "-i", scene, "-m", tiny_folder,
        "-o", tmp_path / "s.png", "--json",
    )  # fmt: skip
    assert status == 0
    told = json.loads(said)["story"]
    assert [next(iter(entry)) for entry in told] == ["text", "picture"] * 2
    assert all(Path(entry["picture"]).exists() for entry in told[1::2])


@pytest.mark.parametrize("text", ["two <image> and <image>", "<image_5>"])
def test_tags_that_match_no_picture(
    tiny_folder: Path, scene: Path, capsys: pytest.CaptureFixture, text: str
) -> None:
    status, _, err = nextstep(capsys, "story", text, "-i", scene, "-m", tiny_folder)
    assert status == 2
    assert "tag" in err


def test_actions_that_do_not_fit_are_refused_before_the_first_picture(
    tiny_folder: Path,
    tmp_path: Path,
    scene: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    out = tmp_path / "next.png"
    actions = [word for _ in range(60) for word in ("-a", "it moves right")]
    status, _, err = nextstep(capsys, "predict", scene, *actions, "-m", tiny_folder, "-o", out)
    assert status == 2 and "reads at most" in err
    assert not list(tmp_path.glob("next*"))


@pytest.mark.parametrize(("made_by", "command"), [
    ("picture", ["generate", "a red apple", "-n", 3, "--batch-size", 1]),
    ("show", ["predict", "{scene}", "-a", "left", "-a", "right"]),
])  # fmt: skip
def test_a_picture_is_written_as_soon_as_it_is_drawn(
    tiny_folder: Path,
    tmp_path: Path,
    scene: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    made_by: str,
    command: list[Any],
) -> None:
    """What ends a run later takes no picture away."""
    plain, made = getattr(Engine, made_by), []

    def interrupted(engine: Engine, *given: Any) -> Any:
        made.append(given)
        if len(made) > 1:
            raise KeyboardInterrupt
        return plain(engine, *given)

    monkeypatch.setattr(Engine, made_by, interrupted)
    words = [str(word).format(scene=scene) for word in command]
    status, _, _ = nextstep(capsys, *words, "-m", tiny_folder, "-o", tmp_path / "out.png")
    assert status == 130
    assert [path.name for path in sorted(tmp_path.glob("out-*"))] == ["out-0.png"]
