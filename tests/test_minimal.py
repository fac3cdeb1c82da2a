"""Without an extra every module can be imported, but those that are an extra's own."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("import_modules")


def test_every_module_is_imported_without_the_packages_of_extras() -> None:
    counts = []
    for options in ([], ["--hide-extras"]):
        command = [sys.executable, str(SCRIPTS / "import_modules.py"), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        (count,) = re.findall(r"(\d+) modules imported, 0 failed", done.stdout)
        counts.append(int(count))
    assert 300 < counts[1] < counts[0]  # the service's modules need its extra


def test_packages_of_extras_are_hidden_and_needed_ones_are_not(script: ModuleType) -> None:
    hidden = script.of_extras_only()
    assert {"fastapi", "tensorboard", "scipy", "pytest"} <= hidden
    assert not {"torch", "numpy", "PIL", "typer", "nextstep"} & hidden
    with pytest.raises(ModuleNotFoundError, match="fastapi"):
        script.Hidden({"fastapi"}).find_spec("fastapi.routing")


def test_package_that_only_an_extra_brings_is_allowed_in_its_modules_alone(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> None:
        raise ModuleNotFoundError(f"No module named 'fastapi' in {name}", name="fastapi")

    monkeypatch.setattr(script, "modules", lambda: iter(["nextstep.serve.a", "nextstep.server"]))
    monkeypatch.setattr(script.importlib, "import_module", fail)
    assert list(script.failures()[1]) == ["nextstep.server"]
