"""Every command that a page or a workflow names exists, with the options that it is given."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from nextstep.cli.main import command_line
from nextstep.utils import old_names

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("src/**/*.md")]
    if path.name not in {"CHANGELOG.md", "log.md"}
)
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"(?m)^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8")))
EXTRAS = set(PROJECT["project"]["optional-dependencies"])
COMMAND: Any = typer.main.get_command(command_line())
TOOLS = {
    "pytest": "pytest", "coverage": "coverage", "ruff": "ruff", "mypy": "mypy",
    "lint-imports": "importlinter", "codespell": "codespell_lib", "mkdocs": "mkdocs",
    "pre-commit": "pre_commit", "python": "json", "pip": "json", "nextstep": "nextstep",
}  # fmt: skip
"""Programs of the virtual environment, and the package that each belongs to."""


def commands(text: str) -> Iterator[list[str]]:
    """Words of each command of a shell text, without comments, variables and pipes."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="|;&<>")
        lexer.whitespace_split = True
        lexer.commenters = "#"
        try:
            words = list(lexer)
        except ValueError:  # prose, or the first line of a text in quotation marks
            continue
        command: list[str] = []
        for word in [*words, ";"]:
            if re.fullmatch(r"[|;&<>]+", word):
                while command and re.fullmatch(r"[A-Z_]+=.*", command[0]):
                    command = command[1:]
                if command:
                    yield command
                command = []
            else:
                command.append(word)


def shell_blocks(page: Path) -> Iterator[str]:
    yield from re.findall(r"```(?:bash|sh|shell)\n(.*?)```", page.read_text(encoding="utf-8"), re.S)


def wrong_options(words: list[str]) -> str:
    """What is wrong with a call of `nextstep`; empty if nothing is."""
    command, at = COMMAND, 1
    while hasattr(command, "commands") and at < len(words) and not words[at].startswith("-"):
        if words[at].startswith("$"):  # one of several commands
            return ""
        found = command.commands.get(words[at])
        if found is None:
            return f"no command {' '.join(words[: at + 1])}"
        command, at = found, at + 1
    names = {name for one in command.params for name in [*one.opts, *one.secondary_opts]}
    names |= {"-h", "--help"}
    for word in words[at:]:
        name = word.partition("=")[0]
        if re.fullmatch(r"--?[A-Za-z][\w-]*", name) and name not in names:
            if name in old_names.OPTIONS:
                return f"{name} is called {old_names.OPTIONS[name]}"
            return f"{' '.join(words[:at])} has no option {name}"
    return ""


def wrong_script(words: list[str]) -> str:
    """What is wrong with a call of a program of the repository; empty if nothing is."""
    files = [one for one in words[1:] if re.match(r"(scripts|benchmarks|examples|tests)/", one)]
    missing = [one for one in files if not (ROOT / one.partition("::")[0]).exists()]
    if missing:
        return f"no file {missing}"
    if words[0] == "python" and files and words[1] == files[0]:
        text = (ROOT / files[0]).read_text(encoding="utf-8")
        for word in words[2:]:
            if word.startswith("--") and f'"{word.partition("=")[0]}"' not in text:
                return f"{files[0]} has no option {word}"
    return ""


def wrong(words: list[str]) -> str:
    """What is wrong with a command of this project; empty if nothing is, or it is another's."""
    program = words[0].removeprefix("./")
    if program.startswith(".venv/bin/"):
        program = program.removeprefix(".venv/bin/")
        if importlib.util.find_spec(TOOLS.get(program, f"no_{program}")) is None:
            return f"no program {program}"
    if program == "nextstep":
        return wrong_options(words)
    if program == "make":
        unknown = [one for one in words[1:] if "=" not in one and one not in TARGETS]
        return f"no target {unknown}" if unknown else ""
    if program.startswith(("scripts/", ".ci/")) and not (ROOT / program).is_file():
        return f"no file {program}"
    if program in {"python", "pytest", "torchrun", "bash"}:
        return wrong_script(words)
    asked = re.findall(r"(?:open-nextstep|\.)\[([\w,]+)\]", " ".join(words))
    unknown = [one for line in asked for one in line.split(",") if one not in EXTRAS]
    return f"no extra {unknown}" if unknown else ""


def problems(texts: Iterator[str]) -> list[str]:
    found = [(" ".join(words), wrong(words)) for text in texts for words in commands(text)]
    return [f"{command}: {reason}" for command, reason in found if reason]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_of_a_page_exist(page: Path) -> None:
    assert problems(shell_blocks(page)) == []


def test_every_figure_of_the_benchmarks_names_a_command_that_exists() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    table = page.split("\n\n", 2)[2].partition("\n\n")[0]
    rows = [row.split(" | ") for row in table.splitlines()[2:] if not row.startswith("| **")]
    assert len(rows) > 20
    how = [re.findall(r"`((?:python|nextstep) [^`]+)`", row[2]) for row in rows]
    assert problems(iter([one for found in how for one in found])) == []
    for row, found in zip(rows, how, strict=True):
        assert found or row[2].startswith("the same"), row[0]


def test_wrong_commands_are_found() -> None:
    text = """
    nextstep generate "a --b" --seed 1 --no-such 2   # a comment with --other
    nextstep nothing && make test && make nothing
    A=1 nextstep world show --lines | python scripts/none.py
    .venv/bin/black . ; pip install '.[all,none]'
    nextstep generate x --lookahead 8
    python benchmarks/generate.py --cold --warm
    """
    assert [line.rpartition(": ")[2] for line in problems(iter([text]))] == [
        "nextstep generate has no option --no-such",
        "no command nextstep nothing",
        "no target ['nothing']",
        "nextstep world show has no option --lines",
        "no file ['scripts/none.py']",
        "no program black",
        "no extra ['none']",
        "--lookahead is called --jacobi-window",
        "benchmarks/generate.py has no option --warm",
    ]


def jobs(path: Path) -> dict[str, dict[str, Any]]:
    made: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    return made


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_calls_what_exists_and_may_only_read(path: Path) -> None:
    made = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert made["permissions"] == {"contents": "read"}
    assert True in made or "on" in made  # YAML 1.1 reads the key as a truth value
    steps = [step for job in made["jobs"].values() for step in job["steps"]]
    assert problems(step["run"] for step in steps if "run" in step) == []
    for step in steps:
        assert ("run" in step) != ("uses" in step)
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+(\.\d+)*", step["uses"])
    for job in made["jobs"].values():
        matrix = job.get("strategy", {}).get("matrix", {})
        used = set(re.findall(r"\$\{\{ matrix\.(\w+) \}\}", json.dumps(job)))
        assert used == set(matrix)


def test_tests_and_wheels_run_on_every_system_and_python() -> None:
    systems = {"ubuntu-latest", "ubuntu-24.04-arm", "macos-latest"}
    matrix = jobs(ROOT / ".github/workflows/ci.yml")["test"]["strategy"]["matrix"]
    assert set(matrix["system"]) == systems
    assert matrix["python"] == ["3.11", "3.12", "3.13"]
    assert PROJECT["project"]["requires-python"] == f">={matrix['python'][0]}"
    wheels = jobs(ROOT / ".github/workflows/wheels.yml")["wheels"]["strategy"]["matrix"]
    assert set(wheels["system"]) == systems
    built = PROJECT["tool"]["cibuildwheel"]
    assert built["linux"]["archs"] == ["x86_64", "aarch64"] and built["macos"]["archs"] == ["arm64"]


def test_hooks_before_a_commit_run_programs_of_the_environment() -> None:
    made = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repo in made["repos"] for hook in repo["hooks"]]
    assert {"ruff-check", "mypy", "imports", "codespell"} <= {hook["id"] for hook in hooks}
    assert problems(hook["entry"] for hook in hooks) == []


def test_issue_forms_have_what_a_form_needs() -> None:
    folder = ROOT / ".github" / "ISSUE_TEMPLATE"
    forms = [path for path in folder.glob("*.yml") if path.name != "config.yml"]
    assert len(forms) == 2
    for path in forms:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert form["name"] and form["description"] and form["body"]
        names = [field["id"] for field in form["body"]]
        assert len(set(names)) == len(names)
        for field in form["body"]:
            assert field["type"] in {"textarea", "input", "dropdown", "checkboxes"}
            assert field["attributes"]["label"]
