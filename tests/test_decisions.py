"""Each decision has a date, a status, reasons and alternatives, and the index lists it."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "decisions"
PAGES = sorted(FOLDER.glob("[0-9]*.md"))
HEAD = re.compile(r"# (\d+)\. (.+)\n\n\* Date: (\d{4}-\d\d-\d\d)\n\* Status: (.+)\n\n")
SUPERSEDED = re.compile(r"superseded by \[(\d+)\]\(([\w-]+\.md)\)")
MENTION = re.compile(r"\[decision (\d+)\]\(([^)]+)\)|\bdecision (\d+)\b")


class Decision(NamedTuple):
    """The head of a page, and the rest of it."""

    number: int
    title: str
    date: str
    status: str
    body: str


def read(page: Path) -> Decision:
    text = page.read_text(encoding="utf-8")
    head = HEAD.match(text)
    assert head, f"{page.name} does not begin with its title, date and status"
    return Decision(int(head[1]), head[2], head[3], head[4], text[head.end() :])


def test_decisions_are_numbered_without_a_gap() -> None:
    assert [read(page).number for page in PAGES] == list(range(1, len(PAGES) + 1))
    assert all(page.name.startswith(f"{read(page).number:04d}-") for page in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name[:4])
def test_decision_has_a_date_a_status_reasons_and_alternatives(page: Path) -> None:
    decision = read(page)
    datetime.date.fromisoformat(decision.date)
    headings = re.findall(r"(?m)^## (.+)$", decision.body)
    assert headings == ["Decision", "Reasons", "Alternatives"]
    sections = re.split(r"(?m)^## .+$", decision.body)[1:]
    assert all(section.strip() for section in sections)
    superseded = SUPERSEDED.fullmatch(decision.status)
    if superseded:
        later = read(FOLDER / superseded[2])
        assert later.number == int(superseded[1]) > decision.number
    else:
        assert decision.status in {"proposed", "accepted", "rejected"}


def test_index_lists_every_decision_with_its_date_and_status() -> None:
    rows = [
        line
        for line in (FOLDER / "index.md").read_text(encoding="utf-8").split("\n")
        if line.startswith("| [")
    ]
    expected = [
        f"| [{one.number}]({page.name}) | {one.title} | {one.date} | {one.status} |"
        for page, one in ((page, read(page)) for page in PAGES)
    ]
    assert rows == expected


def test_mentions_of_a_decision_name_one_that_exists() -> None:
    known = {read(page).number: page.name for page in PAGES}
    suffixes = {".py", ".h", ".cpp", ".md", ".yaml"}
    found = 0
    for folder in ("src", "docs", "benchmarks", "scripts", "recipes"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix not in suffixes or not path.is_file():
                continue
            for mention in MENTION.finditer(path.read_text(encoding="utf-8")):
                found += 1
                number = int(mention[1] or mention[3])
                assert number in known, f"{path}: no decision {number}"
                if mention[2]:
                    assert Path(mention[2]).name == known[number], f"{path}: {mention[0]}"
    assert found
