"""Where the command line writes checkpoints: never over something that is there."""

from __future__ import annotations

from pathlib import Path


class CannotMake(RuntimeError):
    """The checkpoint cannot be made; the message says what is missing and how to get it."""


def check_place(directory: Path) -> None:
    """Raise CannotMake unless ``directory`` is new or empty."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise CannotMake(f"{directory} exists and is not an empty directory. Name a new or an empty one.")
