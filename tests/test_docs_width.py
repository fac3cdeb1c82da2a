"""Pages stay at 100 columns, and wrapping a page changes nothing but where its lines break."""

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "scripts" / "docs_width.py"
spec = importlib.util.spec_from_file_location("docs_width", SCRIPT)
assert spec and spec.loader
docs_width = importlib.util.module_from_spec(spec)
spec.loader.exec_module(docs_width)


def test_no_page_has_a_line_that_is_too_long() -> None:
    pages = docs_width.pages()
    assert len(pages) > 30
    long = [
        f"{page}:{number}"
        for page in pages
        for number, line in enumerate(page.read_text(encoding="utf-8").split("\n"), 1)
        if docs_width.too_long(line)
    ]
    assert not long, "run `python scripts/docs_width.py --fix`; code blocks are wrapped by hand"


def test_paragraphs_and_list_items_are_wrapped_with_their_indent() -> None:
    page = "* " + "word " * 30 + "\n  more\n\n" + "text " * 30 + "\n"
    fixed = docs_width.fix(page).split("\n")
    assert all(len(line) <= 100 for line in fixed)
    assert (
        fixed[0].startswith("* word")
        and fixed[1].startswith("  word")
        and fixed[1].endswith("more")
    )
    assert " ".join(docs_width.fix(page).split()) == " ".join(page.split())
    assert docs_width.fix(docs_width.fix(page)) == docs_width.fix(page)


def test_code_tables_and_headings_are_left_as_they_are() -> None:
    long = "x " * 80
    page = f"```bash\n{long}\n```\n\n    {long}\n\n| {long} |\n\n# {long}\n"
    assert docs_width.fix(page) == page
    rows = page.split("\n")
    assert [docs_width.too_long(row) for row in rows] == [
        row.endswith("x ") and not row.startswith("|") for row in rows
    ]


def test_code_spans_and_links_are_not_broken_and_no_line_becomes_a_list_item() -> None:
    page = "lead " * 18 + "`a b c d e f` [some words](https://x.org/a){ width=3 } "
    page += "1 - 2 + 3 " * 12
    fixed = docs_width.fix(page).split("\n")
    assert any("`a b c d e f`" in row for row in fixed)
    assert any("[some words](https://x.org/a){ width=3 }" in row for row in fixed)
    assert not any(row.startswith(("-", "+", "*")) for row in fixed)


def test_one_piece_that_cannot_be_broken_may_be_longer() -> None:
    assert not docs_width.too_long("* [a name](https://x.org/" + "y" * 100 + ")")
    assert docs_width.too_long("see [a name](https://x.org/" + "y" * 100 + ")")
