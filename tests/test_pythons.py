"""Every file compiles on the other Pythons of this machine, where all it takes from them exists."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OTHERS = ("3.11", "3.12", "3.13", "3.14", "3.15")
FOLDERS = ("src", "benchmarks", "scripts", "examples", "tests")
CHECK = """
import ast, importlib, json, pathlib, sys, warnings
warnings.simplefilter("error")
missing, names = [], set()
for folder in json.loads(sys.argv[1]):
    for path in sorted(pathlib.Path(folder).rglob("*.py")):
        tree = compile(path.read_bytes(), str(path), "exec", ast.PyCF_ONLY_AST)
        compile(tree, str(path), "exec")
        bound = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for one in node.names:
                    names.add((one.name, ""))
                    top = one.name.partition(".")[0]
                    bound[one.asname or top] = one.name if one.asname else top
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.update((node.module, one.name) for one in node.names)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.value.id in bound:
                    names.add((bound[node.value.id], node.attr))
known = set(json.loads(sys.argv[2]))  # a module that this Python lacks must not pass for another's
for module, name in sorted(names):
    if module.partition(".")[0] not in known:
        continue
    try:
        found = importlib.import_module(module)
        if name and name != "*" and not hasattr(found, name):
            importlib.import_module(f"{module}.{name}")
    except ImportError:
        missing.append(f"{module} {name}")
print(json.dumps(missing))
"""


def others() -> list[str]:
    """Commands of Pythons that run here and are not this one."""
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    found = []
    for version in OTHERS:
        command = shutil.which(f"python{version}")
        if command is None or version == own:
            continue
        if subprocess.run([command, "-c", ""], capture_output=True, check=False).returncode == 0:
            found.append(command)
    return found


def checked(python: str) -> list[str]:
    folders = json.dumps([str(ROOT / name) for name in FOLDERS])
    modules = json.dumps(sorted(sys.stdlib_module_names))
    done = subprocess.run(
        [python, "-c", CHECK, folders, modules], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    missing: list[str] = json.loads(done.stdout)
    return missing


def test_oldest_python_is_the_one_that_packages_ask_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={OTHERS[0]}"


def test_other_pythons_have_all_that_is_used() -> None:
    pythons = others()
    if not pythons:
        pytest.skip(f"needs another Python, one of {', '.join(OTHERS)}, as python3.x")
    assert {python: checked(python) for python in pythons} == {python: [] for python in pythons}


def test_check_finds_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    for name in FOLDERS:
        (tmp_path / name).mkdir()
    (tmp_path / "src" / "a.py").write_text("import json\nfrom os import gone\njson.never(1)\n")
    assert checked(sys.executable) == ["json never", "os gone"]
