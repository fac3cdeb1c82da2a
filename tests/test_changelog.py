"""The changelog keeps to its groups, so that a reader finds what changed for them."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

from nextstep.version import __version__

TEXT = (Path(__file__).parents[1] / "CHANGELOG.md").read_text(encoding="utf-8")
GROUPS = ["Added", "Changed", "Fixed", "Removed"]
LINES = 4
"""Of an entry, at most."""


def releases() -> list[tuple[str, str]]:
    parts = re.split(r"(?m)^## (.+)\n", TEXT)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def test_newest_release_is_the_version_of_the_package() -> None:
    title = releases()[0][0]
    assert re.fullmatch(rf"{re.escape(__version__)} \((unreleased|\d{{4}}-\d\d-\d\d)\)", title)


def test_entries_are_in_groups_of_the_usual_order() -> None:
    for title, body in releases():
        before, *parts = re.split(r"(?m)^### (.+)\n", body)
        assert not before.strip(), f"{title}: an entry outside of a group"
        names = parts[::2]
        assert names and all(name in GROUPS for name in names), title
        assert all(GROUPS.index(a) < GROUPS.index(b) for a, b in pairwise(names)), title
        assert all("\n* " in group for group in parts[1::2]), title


def test_entries_are_short() -> None:
    for entry in re.findall(r"(?m)^\* .*(?:\n  .*)*", TEXT):
        assert entry.count("\n") < LINES, entry
