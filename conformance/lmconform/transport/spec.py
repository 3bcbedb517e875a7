"""Which engine to start, and how: the command line, the environment and the bootstrap."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

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
        if bool(self.target) == bool(self.command):
            raise ValueError(
                "No engine is named, or two are: an EngineSpec has either a target or a command. `lmconform engines` "
                "lists targets."
            )
        if self.in_process and (self.command or self.python):
            raise ValueError(
                "in_process hosts an adapter in this interpreter: leave out --python and command, or --in-process."
            )

    @property
    def label(self) -> str:
        """The engine's name before it has told it."""
        return self.target or " ".join(self.command)

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


def _start(command: Sequence[str], environment: Mapping[str, str], folder: str, role: str) -> Process:
    if shutil.which(command[0]) is None:
        raise StartError(f"{role} {command[0]} does not exist or cannot be run. Give the path of an executable file.")
    try:
        return Process(command, environment, folder)
    except OSError as error:
        raise StartError(f"{role} {command[0]} could not be started: {error}.") from error
