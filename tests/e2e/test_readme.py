"""What the README tells readers to run works as it stands there, with the shipped model."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from nextstep.cli import main as cli
from nextstep.flow.solvers import SOLVERS
from nextstep.model.folder import SHIPPED
from nextstep.world.tasks import TASKS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

LESS = {"-n 20": "-n 1 --task single"}
"""Amounts of which a test takes less."""
ITEM = {"tag": "single_object", "include": [{"class": "apple", "count": 1}], "prompt": "red apple"}
"""One item of GenEval, in the layout of its file."""


def commands() -> list[str]:
    """Lines of the README's shell blocks that run `nextstep`, without their comments."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.partition(" #")[0].strip() for line in lines if line.startswith("nextstep ")]


def run(command: str) -> int:
    """Run a command in this process; its status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", shlex.split(command))
        try:
            cli.run()
        except SystemExit as leaving:
            return int(leaving.code or 0)
    return 0


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(httpx2.HTTPError):
            if httpx2.get(f"{url}/ready", timeout=5).status_code == 200:
                return
        time.sleep(0.2)
    pytest.fail("the service did not become ready")


def test_commands_of_the_readme_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("evaluation_metadata.jsonl").write_text(json.dumps(ITEM) + "\n")
    found = [command for command in commands() if command != "nextstep serve"]
    assert len(found) > 8
    for command in found:
        shorter = command
        for much, little in LESS.items():
            shorter = shorter.replace(much, little)
        status = run(shorter)
        assert status == 0, f"{shorter}: {status}\n{capsys.readouterr().err}"
    for written in ("apple.png", "blue.png", "scenes.png", "scores", "geneval"):
        assert Path(written).exists(), written


def test_service_of_the_readme_answers(tmp_path: Path) -> None:
    assert "nextstep serve" in commands()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "nextstep", "serve", "--port", str(port)],
        cwd=tmp_path,
        env={**os.environ, "XDG_DATA_HOME": str(tmp_path)},
        stdout=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process)
        assert httpx2.get(f"{url}/v1/models").json()["data"][0]["id"] == "nano"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def test_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    made: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), made)
    assert (tmp_path / "pets.png").exists() and "dog" in made


def test_installation_of_the_readme_names_what_exists() -> None:
    make = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?m)^make (\w+)", README):
        assert re.search(rf"(?m)^{target}:", make), target
    for place in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / place).exists(), place


def test_figures_of_the_readme_are_those_of_the_card_and_the_world() -> None:
    card = (SHIPPED["nano"] / "README.md").read_text(encoding="utf-8")
    (groups,) = re.findall(r"(?s)^Groups: (.+?) \(", card, re.M)
    measured = dict(re.findall(r"([a-z]+(?: state)?) (\d+)", groups))
    said = dict(re.findall(r"([a-z]+(?:\sstate)?)\s(\d+)\s%", README.partition("Of 200")[2]))
    assert {name.replace("\n", " "): share for name, share in said.items()} == measured
    assert f"{len(TASKS)} tasks" in README
    assert "ten solvers" in README and len(SOLVERS) == 10
