"""Common misspellings are found in every kind of file, and the repository has none."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MISSPELT = "rec" + "ieve"


def codespell(folder: Path, *files: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "codespell_lib", *files],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_repository_has_no_misspelt_words() -> None:
    done = codespell(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "name",
    ["docs/page.md", "src/module.py", "kernels/code.h", ".github/workflows/a.yml", "web/a.js"],
)
def test_misspelt_word_is_found(tmp_path: Path, name: str) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text(f"to {MISSPELT} a picture\n")
    done = codespell(tmp_path)
    assert done.returncode > 0 and f"{MISSPELT} ==> receive" in done.stdout


def test_every_allowed_word_is_still_used() -> None:
    words = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["codespell"]
    texts = [
        path.read_text(encoding="utf-8").lower()
        for folder in ("src/nextstep", "tests")
        for path in (ROOT / folder).rglob("*.py")
    ]
    unused = [
        word
        for word in words["ignore-words-list"].split(",")
        if not any(word in text for text in texts)
    ]
    assert not unused
