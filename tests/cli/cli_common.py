"""What the tests of the command line share: the engines' file, and a command that ended."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import cli_engines
import pytest
from typer.testing import CliRunner

from lmconform.cli import app

ENGINES = Path(cli_engines.__file__)
ENVIRONMENT = {
    **os.environ,
    "COLUMNS": "2000",
    "OMP_NUM_THREADS": "1",
    "NO_COLOR": "1",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
}
"""Wide enough that no sentence is broken, and without plugins that are only slow to load."""
CHECK = ("-m", "lmconform", "check", "--no-controls")
"""What Python is started with; the controls have tests of their own."""


@dataclass
class Ended:
    """A command that ended."""

    code: int
    out: str
    err: str
    report: Path

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        lines = (self.report / "records.jsonl").read_text().splitlines()
        return [json.loads(line, parse_constant=pytest.fail) for line in lines]

    @cached_property
    def content(self) -> dict[str, Any]:
        return json.loads((self.report / "report.json").read_text(), parse_constant=pytest.fail)

    @property
    def verdicts(self) -> dict[str, str]:
        return {one["id"]: one["verdict"] for one in self.content["requirements"]}


def start(arguments: list[str], folder: Path) -> "subprocess.Popen[str]":
    """Start ``python ...`` in ``folder``."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        cwd=folder,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )


def run(*arguments: object) -> Ended:
    """A command of lmconform in this process."""
    result = CliRunner(env={"COLUMNS": "400"}).invoke(app, [str(one) for one in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return Ended(result.exit_code, result.stdout, result.stderr, Path())
