"""Keep the Markdown pages at 100 columns: `docs_width.py [--fix] [FILE...]`; all pages by default.

Rows of tables may be longer, and so may a line with one piece that cannot be broken (a link, a code
span, an address). Everything else is held, code blocks included. `--fix` fills the paragraphs that
hold a long line anew and leaves code blocks to the writer: a line break inside a paragraph changes
nothing in the page as it is shown.
"""

import argparse
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 100
FENCE = re.compile(r"\s*(```|~~~)")
MARK = re.compile(r"(?:[*+-]|\d+[.)])(?: +|$)|>(?: |$)")
"""What opens a list item or a quotation."""
VERBATIM = re.compile(r"\s*(?:$|\||#|<!--|!!!)|(?: {4,}|\t)")
"""Blank lines, tables, headings, comments, admonitions; code, unless a paragraph goes on."""
PIECE = re.compile(r"(?:`+[^`]+`+|!?\[[^\]]*\]\([^)\s]*\)(?:\{[^}]*\})?|\S)+")
"""What stays on one line: a word, a code span, a link with what clings to it."""


def too_long(line: str) -> bool:
    """Whether a line is over the width although it could be broken."""
    if len(line) <= WIDTH or line.lstrip().startswith("|"):
        return False
    return len(PIECE.findall(MARK.sub("", line.strip(), count=1))) > 1


def filled(lines: list[str]) -> list[str]:
    """A paragraph or list item, filled to the width anew."""
    text = " ".join(line.strip() for line in lines)
    indent = " " * (len(lines[0]) - len(lines[0].lstrip()))
    mark = MARK.match(text)
    first = mark[0] if mark else ""
    # A piece that would open a list item at the start of a line is bound to the piece before it.
    bound = re.sub(rf" (?={MARK.pattern})", "\0", " ".join(PIECE.findall(text[len(first) :])))
    bound = PIECE.sub(lambda piece: piece[0].replace(" ", "\0"), bound)
    rows = textwrap.wrap(
        bound,
        WIDTH,
        initial_indent=indent + first,
        subsequent_indent=indent + " " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [row.replace("\0", " ") for row in rows]


def blocks(text: str) -> list[tuple[bool, list[str]]]:
    """The page as groups of lines, each with whether it is a paragraph or list item."""
    found: list[tuple[bool, list[str]]] = []
    fenced = False
    for line in text.split("\n"):
        goes_on = bool(found) and found[-1][0]
        fence = bool(FENCE.match(line))
        plain = not (fenced or fence) and (
            not VERBATIM.match(line) or (goes_on and not VERBATIM.match(line.lstrip()))
        )
        fenced ^= fence
        if plain and goes_on and not MARK.match(line.lstrip()):
            found[-1][1].append(line)
        else:
            found.append((plain, [line]))
    return found


def fix(text: str) -> str:
    """The page with its paragraphs wrapped where one of their lines is too long."""
    rows = [
        filled(lines) if plain and any(map(too_long, lines)) else lines
        for plain, lines in blocks(text)
    ]
    return "\n".join(row for group in rows for row in group)


def pages() -> list[Path]:
    """Every Markdown page of the project."""
    folders = ("docs", "src", "tests", "recipes", "benchmarks", "examples", "deploy", ".github")
    return [
        *sorted(ROOT.glob("*.md")),
        *(page for name in folders for page in sorted((ROOT / name).rglob("*.md"))),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="Lines of Markdown pages over 100 columns.")
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--fix", action="store_true", help="wrap paragraphs")
    args = parser.parse_args()
    status = 0
    for path in args.files or pages():
        text = path.read_text(encoding="utf-8")
        if args.fix and (new := fix(text)) != text:
            path.write_text(new, encoding="utf-8")
            text = new
        for number, line in enumerate(text.split("\n"), 1):
            if too_long(line):
                print(f"{path}:{number}: {len(line)} columns, at most {WIDTH}")
                status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
