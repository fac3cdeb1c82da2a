"""`python -m nextstep` is the `nextstep` command."""

from nextstep.cli.main import run

run()
