"""The examples that start many processes: they are sound shell, and say what the code reads."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nextstep.train.parallel import PLACES

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = [EXAMPLES / "torchrun.sh", EXAMPLES / "slurm" / "train.sbatch"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)


def stand_in(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_slurm_script_gives_every_task_its_place_and_queues_what_is_unfinished(
    tmp_path: Path,
) -> None:
    """With stand-ins for SLURM's commands and for training, which notes what it finds."""
    bin_folder, run = tmp_path / "bin", tmp_path / "run"
    bin_folder.mkdir()
    noted = tmp_path / "noted"
    stand_in(
        bin_folder,
        "srun",
        'while [[ "$1" == --* ]]; do shift; done\n'
        'for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i "$@"; done',
    )
    stand_in(
        bin_folder,
        "scontrol",
        f'if [ "$1" = show ]; then echo node7; echo node8; else echo "$@" >> {noted}; fi',
    )
    names = " ".join(f"${name}" for name in (*PLACES, "MASTER_ADDR", "MASTER_PORT"))
    stand_in(bin_folder, "nextstep", f'echo {names} "$@" >> {noted}')
    environment = {
        "PATH": f"{bin_folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "40007", "SLURM_NTASKS": "2",
        "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_CPUS_PER_TASK": "4", "RUN": str(run),
    }  # fmt: skip
    command = ["bash", str(SCRIPTS[1]), "some/recipe.yaml", "a=1 2"]
    subprocess.run(command, env=environment, check=True)
    told = f"some/recipe.yaml a=1 2 --folder {run}"
    first = [f"2 {rank} {rank} node7 20007 train {told}" for rank in (0, 1)]
    assert noted.read_text().splitlines() == [*first, "requeue 40007"]
    (run / "model").mkdir(parents=True)
    subprocess.run(command, env=environment, check=True)
    assert noted.read_text().splitlines()[3:] == first


def test_ray_example_hands_over_names_that_hold_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = runpy.run_path(str(EXAMPLES / "ray_train.py"))
    asked: list[Any] = []
    monkeypatch.setitem(script["main"].__globals__, "launch_on_ray", lambda *a: asked.append(a))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["x", "a.yaml", "run", "steps=3", "--processes", "4", "--cpu"])
    script["main"]()
    given = (str(tmp_path / "a.yaml"), ["steps=3"], str(tmp_path / "run"), "cpu")
    assert asked == [(script["work"], given, 4, False)]
