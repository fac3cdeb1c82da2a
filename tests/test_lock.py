"""constraints.txt pins all that the project needs, everywhere it runs, and nothing else."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "lock.py"
spec = importlib.util.spec_from_file_location("lock", SCRIPT)
assert spec and spec.loader
lock = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lock)

PROJECT = """
[project]
name = "small"
dependencies = ["typer>=0.15"]
[project.optional-dependencies]
look = ["rich>=13"]
all = ["small[look]"]
"""


def small(folder: Path, pins: str, project: str = PROJECT) -> Path:
    (folder / "pyproject.toml").write_text(project)
    (folder / "constraints.txt").write_text(pins)
    return folder


def closure(folder: Path) -> str:
    """Pins of all that the small project needs, as installed here."""
    small(folder, "")
    pinned: dict[str, str] = {}
    while found := lock.problems(folder):
        for problem in found:
            name = lock.Requirement(problem.removesuffix(" is not pinned")).name
            pinned[name] = lock.distribution(name).version
        small(folder, "".join(f"{name}=={version}\n" for name, version in pinned.items()))
    return (folder / "constraints.txt").read_text()


def test_pins_are_in_step_with_the_project() -> None:
    assert lock.problems() == []
    assert len(lock.pins()) > 150


def test_package_that_is_not_pinned_is_named(tmp_path: Path) -> None:
    assert lock.problems(small(tmp_path, "")) == [
        "rich>=13 is not pinned",
        "typer>=0.15 is not pinned",
    ]
    pins = closure(tmp_path)
    assert "markdown-it-py==" in pins  # needed by rich alone
    assert lock.problems(small(tmp_path, pins)) == []
    rest = "".join(row for row in pins.splitlines(True) if not row.startswith("mdurl=="))
    assert [problem.split("~")[0] for problem in lock.problems(small(tmp_path, rest))] == ["mdurl"]


def test_pin_outside_what_is_asked_for_is_named(tmp_path: Path) -> None:
    pins = closure(tmp_path)
    newer = small(tmp_path, pins, PROJECT.replace("rich>=13", "rich>=900"))
    version = lock.distribution("rich").version
    assert lock.problems(newer) == [f"rich>=900 is asked for, {version} is pinned"]


def test_pin_that_nothing_needs_is_named(tmp_path: Path) -> None:
    pins = closure(tmp_path)
    assert lock.problems(small(tmp_path, pins + "numpy==2.0\n")) == ["nothing needs numpy"]


def test_needs_of_every_supported_system_and_python_count() -> None:
    lines = [
        "plain",
        "mac; sys_platform == 'darwin'",
        "windows; sys_platform == 'win32'",
        "older; python_version < '3.12'",
        "oldest; python_version < '3.11'",
        "arm; platform_machine == 'aarch64' and platform_system == 'Linux'",
        "wanted; extra == 'a'",
        "unwanted; extra == 'b'",
    ]
    assert [one.name for one in lock.needed(lines, ["a"])] == [
        "plain",
        "mac",
        "older",
        "arm",
        "wanted",
    ]


def test_packages_of_other_systems_are_asked_for_and_pinned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[list[str], list[str]]] = []

    def resolved(root: Path, extra: list[str], options: list[str]) -> list[dict[str, Any]]:
        asked.append((extra, options))
        here = [
            {"name": "small", "version": "0.1", "requires_dist": ["Typer"]},
            {
                "name": "Typer",
                "version": "1.0+cpu",
                "requires_dist": ["mac; sys_platform == 'darwin'"],
            },
        ]
        return here + [{"name": name, "version": "2"} for name in extra]

    monkeypatch.setattr(lock, "resolved", resolved)
    lock.write(small(tmp_path, ""))
    assert (tmp_path / "constraints.txt").read_text() == f"{lock.HEADER}mac==2\nTyper==1.0\n"
    kept = ["-c", str(tmp_path / "constraints.txt")]
    assert asked == [([], kept), (["mac"], kept)]
    lock.write(tmp_path, upgrade=True)
    assert asked[-1] == (["mac"], [])
