"""What the commands share: the values of their options, and how one ends that cannot start."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import NoReturn

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


def stop(message: str) -> NoReturn:
    """Print why, and end with exit code 2."""
    print(message, file=sys.stderr)
    raise typer.Exit(2)
