"""What training asks of the host: before torch is there, and only where nobody else did."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

SETTLED = """
import json, os, sys
from nextstep.recipe import host
host.settle()
print(json.dumps([[os.environ[name] for name in host.VARIABLES], "torch" in sys.modules]))
"""

COMMANDS = """
import sys
from nextstep.recipe import host

class Settled(BaseException):
    pass

def settle():
    assert "torch" not in sys.modules
    raise Settled

host.settle = settle
from nextstep.cli.main import command_line
try:
    command_line(sys.argv[1:])(sys.argv[1:], standalone_mode=False)
except Settled:
    print("settled")
"""


NAMES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def python(program: str, *arguments: str, **environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_oneDNN_keeps_few_shapes_unless_the_environment_says_so() -> None:  # noqa: N802
    told, torch_is_there = json.loads(python(SETTLED, **dict(zip(NAMES, ("7", "9"), strict=True))))
    assert told == ["7", "9"]
    assert not torch_is_there
    assert json.loads(python(SETTLED))[0] == ["128", "128"]


@pytest.mark.parametrize(
    "command", [("train", "recipes/pretrain-nano.yaml"), ("finetune", "--data", "tests", "-o", "y")]
)
def test_commands_that_train_settle_first(command: tuple[str, ...]) -> None:
    assert python(COMMANDS, *command).strip() == "settled"
