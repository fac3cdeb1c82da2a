"""On a disk that is really full commands end with one sentence, and leave nothing half-written."""

from __future__ import annotations

import errno
import json
import os
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


ROOT = Path(__file__).parents[2]
PATHS = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", str(ROOT / "src"))])


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


def test_world_of_several_sets_and_pictures_leave_nothing(
    tiny_folder: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    build = ["world", "build", str(disk / "world"), "-n", "30", "-t", "single", "-t", "recolour"]
    draw = ["generate", "a", "-m", str(tiny_folder), "--size", "128x128", "--steps", "1", "-o"]
    pictures = [[*draw, str(disk / name)] for name in ("a.png", "a.jpg")]
    left, said = run(disk, "4k", build, build, *pictures)
    assert [one["status"] for one in left] == [1, 1, 1, 1]
    assert [one["files"] for one in left] == [{}, {}, {}, {}]
    # The second time the folder of the first would be in the way.
    assert said[0] == said[1] == f"nextstep: {disk / 'world'}: No space left on device"
    assert all("No space left on device" in told for told in said)


def test_fine_tuning_says_it_in_one_sentence(
    pictures: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft", reason="fine-tuning needs peft: pip install peft")
    disk = tmp_path / "disk"
    command = ["finetune", "--data", str(pictures), "-o", str(disk / "out"), "-m",
               str(tiny_folder), "--steps", "1", "--sheets", "0"]  # fmt: skip
    for size in ("64k", "160k"):
        left, said = run(disk, size, command)
        assert left[0]["status"] == 1 and "No space left on device" in said[0]
        assert not [name for name in left[0]["files"] if name.endswith(".part")]
        assert not [name for name in left[0]["files"] if "adapter" in name]
        disk.rmdir()


ENCODING = """
import json, pathlib, sys
from nextstep.data.latents import build_cache
from nextstep.text.tokenizer import TextTokenizer
from nextstep.vae.tokenizer import ImageTokenizer
from tests.conftest import TINY_VAE
from tests.data.test_latents import edit_source, edits

disk, folder = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
source = edit_source(TextTokenizer.from_folder(folder), edits(90))
tokenizer = ImageTokenizer(TINY_VAE)
try:
    build_cache(source, tokenizer, disk / "latents", samples_per_part=3)
except OSError as error:
    left = sorted(p.name for p in (disk / "latents").iterdir())
    print(json.dumps([error.errno, str(error.filename), left]))
"""


def test_encoding_keeps_whole_parts(tiny_folder: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    script = [sys.executable, "-c", ENCODING, str(disk), str(tiny_folder)]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", MOUNT.format(size="40k"), str(disk), *script],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": PATHS},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    number, name, left = json.loads(done.stdout)
    assert number == errno.ENOSPC and name.startswith(str(disk / "latents"))
    whole = {path.partition(".")[0] for path in left if path.endswith(".json")} - {"cache"}
    assert whole, "some parts were written"
    assert all(f"{part}.bin" in left for part in whole)
    assert not [path for path in left if path.startswith(".")]


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
