"""What an archive of the source, a wheel and an editable installation carry."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from nextstep.recipe.load import RECIPES, recipe_file

ROOT = Path(__file__).parents[1]
LARGE = shutil.ignore_patterns("weights", "atlas", "web", "lib", "__pycache__", "*.egg-info")


def run(folder: Path, *command: str, **variables: str) -> str:
    environment = {**os.environ, **variables}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, check=True, capture_output=True,
        text=True,
    ).stdout  # fmt: skip


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked archive of the source, without its largest files."""
    pytest.importorskip("setuptools", minversion="77")
    copy = tmp_path_factory.mktemp("package") / "copy"
    shutil.copytree(ROOT / "src", copy / "src", ignore=LARGE, symlinks=True)
    shutil.copytree(ROOT / "recipes", copy / "recipes")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, copy)
    run(copy, "setup.py", "-q", "sdist", "--dist-dir", "dist")
    with tarfile.open(next((copy / "dist").glob("*.tar.gz"))) as packed:
        packed.extractall(copy / "out", filter="data")
    (unpacked,) = (copy / "out").iterdir()
    return unpacked


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.yaml"))


def test_the_source_holds_no_links() -> None:
    # Checkouts on Windows have none.
    assert not [path for path in (ROOT / "src").rglob("*") if path.is_symlink()]


def test_a_checkout_reads_the_recipes_at_its_root() -> None:
    assert RECIPES == ROOT / "recipes"
    assert recipe_file("pretrain-nano") == ROOT / "recipes" / "pretrain-nano.yaml"


def test_a_wheel_from_the_source_archive_carries_the_recipes(archive: Path) -> None:
    assert names(archive / "recipes") == names(ROOT / "recipes") != []
    # Without a compiler; compiling is tested where the kernels are.
    run(archive, "setup.py", "-q", "build_py", "--build-lib", "built", CXX="no-such-compiler")
    inside = archive / "built" / "nextstep" / "recipes"
    assert names(inside) == names(ROOT / "recipes")
    # The installed package finds them there, wherever it is started.
    script = "from nextstep.recipe.load import recipe_file; print(recipe_file('pretrain-nano'))"
    found = run(archive.parent, "-c", script, PYTHONPATH=str(archive / "built"))
    assert Path(found.strip()) == inside / "pretrain-nano.yaml"


def test_an_editable_build_copies_nothing(archive: Path) -> None:
    script = (
        "import sys; sys.argv = ['setup.py', '-q', 'editable_wheel', '--dist-dir', 'editable'];"
        "exec(open('setup.py').read())"
    )
    run(archive, "-c", script, CXX="no-such-compiler")
    assert list((archive / "editable").glob("*.whl"))
    assert not (archive / "src" / "nextstep" / "recipes").exists()
