"""Pin every package that any extra of the project needs: `lock.py [--upgrade | --check]`.

Writes constraints.txt: what pip resolves for pyproject.toml with all extras, for every supported
Python and system. Without an option, versions that are pinned already stay. `--check` asks no index
and says what is out of step. The file has no hashes, because one file serves all systems and both
builds of PyTorch; packages that PyTorch's CUDA build needs are pinned by PyTorch itself.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
SYSTEMS = (
    {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
    {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "aarch64"},
    {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
)
HEADER = "# Versions of all packages, of every extra; written by scripts/lock.py.\n"


def project(root: Path = ROOT) -> dict[str, Any]:
    """The table `project` of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return table


def direct(table: dict[str, Any]) -> list[Requirement]:
    """What the project asks for, with every extra; without the project itself."""
    lines = [
        *table["dependencies"],
        *(x for e in table["optional-dependencies"].values() for x in e),
    ]
    found = [Requirement(line) for line in lines]
    return [one for one in found if one.name != table["name"]]


def pins(root: Path = ROOT) -> dict[str, Version]:
    """Canonical name -> version of constraints.txt."""
    lines = (root / "constraints.txt").read_text().splitlines()
    rows = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in rows}


def needed(requires: Iterable[str], extras: Iterable[str]) -> list[Requirement]:
    """Those of a package's requirements that some supported Python and system needs."""
    places = [
        {**system, "python_version": python, "python_full_version": f"{python}.0", "extra": extra}
        for system in SYSTEMS
        for python in PYTHONS
        for extra in ("", *extras)
    ]
    found = [Requirement(line) for line in requires]
    return [one for one in found if one.marker is None or any(map(one.marker.evaluate, places))]


def problems(root: Path = ROOT) -> list[str]:
    """What constraints.txt lacks or has too much, as far as the installed packages tell."""
    pinned, seen, found, unknown = pins(root), set(), [], False
    work = direct(project(root))
    while work:
        one = work.pop()
        name = canonicalize_name(one.name)
        if name not in pinned:
            found.append(f"{one} is not pinned")
            continue
        if not one.specifier.contains(pinned[name], prereleases=True):
            found.append(f"{one} is asked for, {pinned[name]} is pinned")
        if (name, frozenset(one.extras)) in seen:
            continue
        seen.add((name, frozenset(one.extras)))
        try:
            work.extend(needed(distribution(name).requires or (), one.extras))
        except PackageNotFoundError:
            unknown = True
    if not unknown:
        reached = {name for name, _ in seen}
        found += [f"nothing needs {name}" for name in sorted(pinned.keys() - reached)]
    return sorted(set(found))


def resolved(root: Path, extra: list[str], options: list[str]) -> list[dict[str, Any]]:
    """Metadata of what pip would install for the project with all extras and `extra` packages."""
    all_extras = ",".join(project(root)["optional-dependencies"])
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"]
        command += ["--quiet", "--report", str(report), *options, f"{root}[{all_extras}]", *extra]
        subprocess.run(command, check=True)
        return [one["metadata"] for one in json.loads(report.read_text())["install"]]


def write(root: Path = ROOT, upgrade: bool = False) -> None:
    """Write constraints.txt anew."""
    options = [] if upgrade else ["-c", str(root / "constraints.txt")]
    others: set[str] = set()
    while True:  # what only other systems need is asked for by name, until nothing new is found
        packages = resolved(root, sorted(others), options)
        here = {canonicalize_name(one["name"]) for one in packages}
        requires = [line for one in packages for line in one.get("requires_dist", ())]
        missing = {canonicalize_name(one.name) for one in needed(requires, ())} - here
        if not missing:
            break
        others |= missing
    own = project(root)["name"]
    rows = [
        f"{one['name']}=={Version(one['version']).public}\n"
        for one in packages
        if one["name"] != own
    ]
    (root / "constraints.txt").write_text(HEADER + "".join(sorted(rows, key=str.lower)))


def main() -> int:
    parser = argparse.ArgumentParser(description="Pin every package, or check the pins.")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--upgrade", action="store_true", help="take the newest versions of all")
    which.add_argument("--check", action="store_true", help="only say what is out of step")
    args = parser.parse_args()
    if not args.check:
        write(upgrade=args.upgrade)
        return 0
    found = problems()
    print("\n".join(found) or "constraints.txt is in step with pyproject.toml")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
