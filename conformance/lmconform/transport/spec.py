"""Which engine to start, and how: the command line, the environment and the bootstrap."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..engines import UnknownEngine, resolve
from .dispatch import Dispatcher
from .errors import StartError
from .links import InProcess, Process
from .locate import construct

PACKAGE = Path(__file__).resolve().parents[1]

BOOTSTRAP = """
import sys
if sys.version_info < (3, 10):
    sys.exit("The engine's interpreter is Python %d.%d; lmconform's host needs 3.10 or newer." % sys.version_info[:2])
try:
    import numpy
except ImportError:
    sys.exit("The engine's environment has no NumPy: " + sys.executable + " -m pip install numpy")
import importlib.util
folder = sys.argv.pop(1)
spec = importlib.util.spec_from_file_location(
    "lmconform", folder + "/__init__.py", submodule_search_locations=[folder])
module = sys.modules["lmconform"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from lmconform.transport.host import main
sys.exit(main(sys.argv[1:]))
"""
"""Run by the engine's interpreter. It makes this package importable there, and nothing that is installed beside it."""

OURS = ("PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "__PYVENV_LAUNCHER__", "VIRTUAL_ENV")
"""Variables that would lead another interpreter into our environment."""


@dataclass(frozen=True)
class EngineSpec:
    """Which engine, in which interpreter, with which options."""

    target: str = ""
    """A name of `lmconform engines`, ``module:Class``, or ``path/to/file.py:Class``."""
    python: Path | str | None = None
    """Interpreter of the engine's own environment, which needs NumPy and the engine; None is this one."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Keyword arguments of the adapter's constructor."""
    in_process: bool = False
    """Without a process of its own and without time limits, for a debugger."""
    command: Sequence[str] = ()
    """Instead of a target: a program that speaks the protocol on stdin and stdout. It is given ``--option K=V``."""

    def __post_init__(self) -> None:
        if not self.target and not self.command:
            raise ValueError(
                "No engine is named: give an adapter (`lmconform engines` lists targets), or --command with a program "
                "that speaks the protocol."
            )
        if self.target and self.command:
            command = shlex.join(self.command)
            raise ValueError(f"Two engines are named, the adapter {self.target} and {command}: leave one out.")
        if self.command and self.python:
            raise ValueError(
                "--python is the interpreter of an adapter, and --command starts a program of its own: leave out "
                "--python, and write the interpreter into the command if it needs one."
            )
        if self.in_process and (self.command or self.python):
            raise ValueError(
                "in_process hosts an adapter in this interpreter: leave out --python and --command, or --in-process."
            )

    @classmethod
    def named(
        cls,
        target: str = "",
        command: str = "",
        *,
        python: Path | str | None = None,
        options: Sequence[str] = (),
        in_process: bool = False,
    ) -> EngineSpec:
        """The engine that a command line names: ``command`` is one string, options are ``KEY=VALUE`` each.

        Raises ValueError for what names no engine.
        """
        return cls(target, python, options_of(options), in_process, _words(command))

    @classmethod
    def recorded(cls, record: Mapping[str, Any], python: Path | str | None, in_process: bool) -> EngineSpec:
        """The engine of a ``record``, unless ``python`` is None in another interpreter."""
        command = tuple(map(str, record.get("command", ())))
        return cls(record["target"], python or record["python"], dict(record["options"]), in_process, command)

    def record(self) -> dict[str, Any]:
        """What reports keep, to start the same engine again."""
        return {
            "target": self.target,
            "command": list(self.command),
            "python": str(self.python) if self.python else None,
            "options": dict(self.options),
        }

    @property
    def label(self) -> str:
        """The engine's name before it has told it."""
        return self.target or shlex.join(self.command)

    def connect(self, folder: str) -> Process | InProcess:
        """Start the engine's process in ``folder``, or prepare a dispatcher in this one. Raises StartError."""
        options = [part for key, value in self.options.items() for part in ("--option", f"{key}={value}")]
        if self.command:
            return _start([*self.command, *options], dict(os.environ), folder, "The command")
        try:
            target = resolve(self.target)
        except UnknownEngine as error:
            raise StartError(str(error)) from None
        if self.in_process:
            return InProcess(Dispatcher(lambda: construct(target, self.options)))
        environment = dict(os.environ)
        python = sys.executable
        if self.python is not None:
            python = str(self.python)
            environment = {key: value for key, value in environment.items() if key not in OURS}
        return _start([python, "-c", BOOTSTRAP, str(PACKAGE), target, *options], environment, folder, "The interpreter")


def options_of(pairs: Sequence[str]) -> dict[str, str]:
    """Options from ``KEY=VALUE`` each. Raises ValueError for another form."""
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ValueError(f"--option takes KEY=VALUE; got {pair!r}.")
        found[key] = value
    return found


def _words(command: str) -> tuple[str, ...]:
    """A command line as a shell would split it. Raises ValueError."""
    try:
        return tuple(shlex.split(command))
    except ValueError as error:
        raise ValueError(
            f"--command {command!r} cannot be split into words: {error}. Quote it as for a shell."
        ) from None


def _start(command: Sequence[str], environment: Mapping[str, str], folder: str, role: str) -> Process:
    program = str(Path(folder, command[0])) if os.sep in command[0] else command[0]
    if shutil.which(program) is None:
        raise StartError(f"{role} {command[0]} does not exist or cannot be run. Give the path of an executable file.")
    try:
        return Process(command, environment, folder)
    except OSError as error:
        raise StartError(f"{role} {command[0]} could not be started: {error}.") from error
