"""The walks of docs/concepts/architecture.md name files and functions that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "nextstep"
PAGE = (ROOT / "docs" / "concepts" / "architecture.md").read_text(encoding="utf-8")
WALKS = {
    title: re.findall(r"(?m)^\| (\d+) \| `([\w/.]+)` \| `([\w.]+)` \| (.+) \|$", body)
    for title, body in re.findall(r"(?ms)^## (From .+?)\n(.*?)(?=^## |\Z)", PAGE)
}


def defined(file: Path) -> set[str]:
    """Functions, classes and methods of a module, methods as `Class.method`."""
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            names.add(node.name)
            kinds = ast.FunctionDef | ast.AsyncFunctionDef
            names |= {f"{node.name}.{one.name}" for one in node.body if isinstance(one, kinds)}
    return names


def test_there_are_three_walks() -> None:
    assert list(WALKS) == [
        "From a prompt to a picture",
        "From an HTTP request to a picture",
        "From a shard to a weight",
    ]


@pytest.mark.parametrize("title", WALKS)
def test_every_hop_of_a_walk_names_what_exists(title: str) -> None:
    hops = WALKS[title]
    assert [int(number) for number, *_ in hops] == list(range(1, len(hops) + 1)) != []
    for number, file, name, _ in hops:
        assert (SOURCE / file).is_file(), f"hop {number}: no file {file}"
        assert name in defined(SOURCE / file), f"hop {number}: no {name} in {file}"


def test_a_newcomer_opens_twelve_files_for_one_picture() -> None:
    files = {file for _, file, _, _ in WALKS["From a prompt to a picture"]}
    assert len(files) <= 12


def test_all_other_paths_and_names_of_the_page_exist() -> None:
    for path in re.findall(r"`([\w/]+(?:/|\.py))`", PAGE):
        assert (SOURCE / path).exists() or (ROOT / path).exists(), path
    everything = {name for file in SOURCE.rglob("*.py") for name in defined(file)}
    for name in re.findall(r"`([A-Z]\w+(?:\.\w+)?)`", PAGE):
        assert name in everything, name


def test_every_package_is_listed() -> None:
    table = PAGE.partition("## From")[0]
    packages = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    packages |= {path.name for path in SOURCE.glob("*.py") if not path.name.startswith("__")}
    for name in packages:
        assert f"`{name}`" in table or f"`{name}/`" in table, name
