"""The container files name things that are there; no engine is needed to see that."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from nextstep.cli.main import command_line

ROOT = Path(__file__).parents[2]
FILES = ["deploy/Dockerfile", "deploy/Dockerfile.cuda"]


def instructions(name: str) -> list[tuple[str, str]]:
    text = (ROOT / name).read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines()]
    return [
        (word, rest) for line in lines if line and not line.startswith("#")
        for word, _, rest in [line.partition(" ")]
    ]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_dockerfiles(name: str) -> None:
    found = instructions(name)
    words = [word for word, _ in found]
    assert set(words) <= {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "USER", "VOLUME",
                          "EXPOSE", "HEALTHCHECK", "STOPSIGNAL", "ENTRYPOINT", "CMD"}  # fmt: skip
    # Everything that runs in the end runs as somebody who is not root.
    assert words.index("USER") < words.index("ENTRYPOINT")
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for word, rest in found:
        if word == "COPY" and "--from" not in rest:
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists()
                assert f"!{source.removeprefix('./')}" in ignored
    froms = [rest for word, rest in found if word == "FROM"]
    assert all(
        re.match(r"python:3\.12-slim@sha256:[0-9a-f]{64}( AS build)?$", one) for one in froms
    )
    installs = [rest for word, rest in found if word == "RUN" and "pip install" in rest]
    assert installs and all("-c /wheels/constraints.txt" in one for one in installs)
    command = [*json.loads(dict(found)["ENTRYPOINT"]), *json.loads(dict(found)["CMD"])]
    assert command[:2] == ["nextstep", "serve"]
    serve = typer.main.get_command(command_line()).commands["serve"]  # type: ignore[attr-defined]
    known = {option for parameter in serve.params for option in parameter.opts}
    assert {word for word in command if word.startswith("--")} <= known
    assert re.search(r"/ready", dict(found)["HEALTHCHECK"])


def test_compose() -> None:
    made: dict[str, Any] = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
    assert set(made["services"]) == {"pictures", "pictures-cuda"}
    for service in made["services"].values():
        assert service["build"]["dockerfile"] in FILES
        assert (ROOT / "deploy" / service["build"]["context"]).resolve() == ROOT.resolve()
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert {volume.split(":")[0] for volume in service["volumes"]} <= set(made["volumes"])
        assert set(service["secrets"]) <= set(made["secrets"])
        assert service["read_only"] and service["cap_drop"] == ["ALL"]


def test_readme_installs_what_its_commands_need() -> None:
    text = (ROOT / "README.md").read_text()
    block = next(b for b in re.findall(r"```bash\n(.*?)```", text, re.S) if "nextstep serve" in b)
    (install,) = re.findall(r"pip install '\.\[(\w+)\]'", block)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extras["optional-dependencies"][install] == ["open-nextstep[serve,train,data]"]
    assert "https://download.pytorch.org/whl/cpu" in text
