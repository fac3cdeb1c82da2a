"""`nextstep rollout`: samples, their rewards, and going on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_commands import nextstep
from tests.recipe.conftest import REWARD


def test_rollouts_from_the_command_line(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "rewards.py").write_text(REWARD)
    (tmp_path / "prompts.txt").write_text("a red apple\ntwo cats\nmake it blue\n")
    asked = [
        "rollout", "-m", tiny_folder, "--prompts", tmp_path / "prompts.txt", "-n", "2",
        "--count", "2", "--reward", f"python:{tmp_path / 'rewards.py'}:red=2",
        "--watch", f"python:{tmp_path / 'rewards.py'}:bright",
        "--solver", "ode", "--steps", "2", "--json", "-o", tmp_path / "out",
    ]  # fmt: skip
    status, out, _ = nextstep(capsys, *asked)
    told = json.loads(out)
    assert status == 0
    assert told["prompts"] == 2 and told["reward"] == pytest.approx(2 * told["red"], abs=1e-3)
    assert "watch/bright" in told
    before = (tmp_path / "out" / "shard-00000.safetensors").stat().st_mtime_ns
    assert nextstep(capsys, *asked)[0] == 0
    assert (tmp_path / "out" / "shard-00000.safetensors").stat().st_mtime_ns == before
    status, _, error = nextstep(capsys, *asked, "--steps", "3")
    assert status == 2 and "other rollouts" in error
    status, _, error = nextstep(capsys, "rollout", "-o", tmp_path / "new")
    assert status == 2 and "either --prompts FILE or --world" in error


def test_rewards_of_the_world_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    status, out, _ = nextstep(
        capsys, "rollout", "-m", "nano", "--world", "tasks=[single]", "--world", "edition=core-48",
        "-n", "2", "--count", "2", "--steps", "2", "--solver", "ode", "--json", "-o",
        tmp_path / "out",
    )  # fmt: skip
    told = json.loads(out)
    assert status == 0
    assert 0 <= told["world/objects"] <= 1 and 0 <= told["world/right"] <= told["world/share"] <= 1
