"""Names that modules, tests and programs import from the package are there.

The types of src are checked by mypy; programs beside it are run by hand, so a name that moved is
seen here first.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src"


def module_file(name: str) -> Path | None:
    """The file of a module of the package."""
    place = PACKAGE.joinpath(*name.split("."))
    found = (place.with_suffix(".py"), place / "__init__.py")
    return next((path for path in found if path.is_file()), None)


@cache
def names_of(file: Path) -> frozenset[str]:
    """Names that a module defines, assigns or imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)  # of lazily imported ones
    return frozenset(names)


def missing(program: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(program.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("nextstep"):
            continue
        file = module_file(str(node.module))
        found += [
            f"{program.relative_to(ROOT)}:{node.lineno}: {node.module}.{alias.name}"
            for alias in node.names
            if file is None or alias.name not in names_of(file)
            if module_file(f"{node.module}.{alias.name}") is None
        ]
    return found


@pytest.mark.parametrize("folder", ["scripts", "benchmarks", "examples", "tests"])
def test_imported_names_exist(folder: str) -> None:
    programs = sorted((ROOT / folder).rglob("*.py"))
    assert programs and [line for program in programs for line in missing(program)] == []
