"""What the commands share: the values of their options, and how one ends that cannot start."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer


class ProfileName(StrEnum):
    """How much a run does."""

    MATRIX = "matrix"
    QUICK = "quick"
    STANDARD = "standard"
    EXHAUSTIVE = "exhaustive"


class PlantedIn(StrEnum):
    """What the planted faults are changes of."""

    REFERENCE = "reference"
    TRANSFORMERS = "transformers"
    NOTHING = "nothing"


class DTypeName(StrEnum):
    """Number format of a checkpoint's tensors."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class FormatName(StrEnum):
    """File format of a checkpoint."""

    HF = "hf"
    GGUF = "gguf"


Engine = Annotated[
    str, typer.Argument(help="A name of `lmconform engines`, module:Class, or file.py:Class.", show_default=False)
]
Command = Annotated[
    str,
    typer.Option(
        metavar="CMD",
        help="Instead of ENGINE: a program that speaks the protocol on stdin and stdout.",
        show_default=False,
    ),
]
Option = Annotated[list[str] | None, typer.Option(help="KEY=VALUE for the adapter's constructor, or for CMD.")]
Python = Annotated[Path | None, typer.Option(help="Interpreter of the engine's own environment.")]
InProcess = Annotated[bool, typer.Option("--in-process", help="No process of its own, for a debugger.")]
TimeLimit = Annotated[float, typer.Option(help="Seconds for one call of the engine.")]


def stop(message: str) -> NoReturn:
    """Print why, and end with exit code 2."""
    print(message, file=sys.stderr)
    raise typer.Exit(2)
