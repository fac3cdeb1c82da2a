"""Import every module of nextstep, as after `pip install .` without an extra.

`--hide-extras` hides the packages that only extras bring, so that a full installation can be
checked too. Packages that need an extra are listed in `EXTRAS`; of all others every module has to
be importable.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lock
import nextstep

EXTRAS = {"nextstep.serve": "serve"}
"""Package -> the extra without which its modules cannot be imported."""


class Hidden:
    """A finder of modules that finds none of `names`."""

    def __init__(self, names: set[str]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Refuse hidden modules, leave the others to the next finder."""
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def of_extras_only() -> set[str]:
    """Modules of installed packages that the dependencies without an extra do not need."""
    needed: set[tuple[str, frozenset[str]]] = set()
    work = [Requirement(line) for line in lock.project()["dependencies"]]
    while work:
        one = work.pop()
        key = (canonicalize_name(one.name), frozenset(one.extras))
        if key in needed:
            continue
        needed.add(key)
        try:
            work += lock.needed(distribution(one.name).requires or (), one.extras)
        except PackageNotFoundError:  # of another system
            continue
    kept = {name for name, _ in needed} | {lock.project()["name"]}
    found = packages_distributions().items()
    return {name for name, own in found if not any(canonicalize_name(one) in kept for one in own)}


def modules() -> Iterator[str]:
    """Names of all modules, without running the ones that are programs."""
    for one in pkgutil.walk_packages(nextstep.__path__, "nextstep.", onerror=lambda name: None):
        if not one.name.endswith(".__main__"):
            yield one.name


def failures() -> tuple[int, dict[str, str]]:
    """Number of modules that were imported, and those that cannot be although they should."""
    found, number = {}, 0
    for name in modules():
        try:
            importlib.import_module(name)
            number += 1
        except ModuleNotFoundError as error:
            missing = str(error.name).partition(".")[0]
            needs_extra = any(f"{name}.".startswith(f"{package}.") for package in EXTRAS)
            if missing == "nextstep" or not needs_extra:
                found[name] = str(error)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return number, found


def main() -> int:
    parser = argparse.ArgumentParser(description="Import every module of nextstep.")
    parser.add_argument("--hide-extras", action="store_true", help="as without any extra")
    if parser.parse_args().hide_extras:
        sys.meta_path.insert(0, Hidden(of_extras_only()))
    number, found = failures()
    for name, reason in found.items():
        print(f"{name}: {reason}")
    print(f"{number} modules imported, {len(found)} failed")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
