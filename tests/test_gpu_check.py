"""The script for a GPU, as far as a machine without one can run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_rehearsal_of_the_gpu_check_runs_all_its_parts() -> None:
    """Programs, options and JSON; a GPU is not lent for minutes that end in a wrong option."""
    command = ["bash", "scripts/gpu_check.sh", sys.executable]
    ran = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "REHEARSE": "1"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    told = json.loads(ran.stdout)
    assert ran.returncode == 0, told
    assert "tests collected" in told["tests"]
    assert [row["batch"] for row in told["pictures"]["nano"]] == [1, 4, 16]
    assert told["training"]
