"""On a disk that is really full commands end with one sentence, and leave nothing half-written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.test_train_commands import TOKENIZER

MOUNT = 'mount -t tmpfs -o size={size} none "$0" && exec "$@"'
COMMANDS = """
import json, pathlib, sys, torch
from nextstep.cli import main

disk, commands = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
told = []
for command in commands:
    sys.argv = ["nextstep", *command]
    try:
        main.run()
        status = 0
    except SystemExit as left:
        status = left.code
    files = {str(p.relative_to(disk)): p.stat().st_size for p in disk.rglob("*") if p.is_file()}
    log = disk / "run" / "log.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    told.append({"status": status, "files": files, "rows": len(rows)})
print(json.dumps(told))
"""


def can_mount() -> bool:
    """Whether a small file system may be mounted in a namespace of one's own."""
    if shutil.which("unshare") is None:
        return False
    tried = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs none /mnt"]
    return subprocess.run(tried, capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(
    not can_mount(), reason="needs unshare and the right to mount a tmpfs in a user namespace"
)


def run(disk: Path, size: str, *commands: list[str]) -> tuple[list[dict], list[str]]:
    """What commands left behind on a disk of this size, and what they said."""
    disk.mkdir()
    script = [sys.executable, "-c", COMMANDS, str(disk), json.dumps(commands)]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", MOUNT.format(size=size), str(disk), *script],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("nextstep: ")]
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1]), said


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for place in range(4):
        pixels = rng.integers(0, 255, (96, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{place}.png")
        (folder / f"{place}.txt").write_text("noise")
    return folder


def test_data_build_and_convert_leave_nothing(
    pictures: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    left, said = run(
        disk, "64k",
        ["data", "build", str(pictures), str(disk / "set")],
        ["convert", str(tiny_folder), str(disk / "model")],
    )  # fmt: skip
    assert [one["status"] for one in left] == [1, 1]
    assert [one["files"] for one in left] == [{}, {}]
    assert said == [
        f"nextstep: {disk / name}: No space left on device" for name in ("set", "model")
    ]


def test_training_keeps_what_was_whole_and_writes_nothing_half(
    pictures: Path, tmp_path: Path
) -> None:
    disk, recipe = tmp_path / "disk", tmp_path / "tok.yaml"
    recipe.write_text(TOKENIZER.replace("PICTURES", str(pictures)))
    command = ["train", str(recipe), "steps=2", "--folder", str(disk / "run"), "--quiet"]
    (left,), (said,) = run(disk, "4m", command)
    assert left["status"] == 1
    assert "the checkpoint" in said and "No space left on device" in said
    assert left["rows"] == 2
    assert not [name for name in left["files"] if "checkpoints" in name or "part" in name]
