"""The environment of an engine: a venv that pip fills from files, made once and kept."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from lmconform.engine_matrix.entries import Entry

SECONDS = 3600.0
"""For one call of pip."""
READY = "ready"
"""A file that says that all was installed."""
WORDS = 600
"""Characters of pip's words that a report keeps."""


class NotInstalled(RuntimeError):
    """The engine does not install on this machine; the message says why, in pip's words."""


def interpreter(entry: Entry, folder: Path) -> Path | None:
    """The interpreter of the engine's environment, which is made if it is not there; None for the suite's own.

    Entries with the same files share one, and changed files make a new one. Raises NotInstalled.
    """
    files = [*entry.requirements, *entry.without_dependencies]
    if not files:
        return None
    content = b"\0".join([sys.version.encode(), *(path.read_bytes() for path in files)])
    place = folder.resolve() / f"{files[0].stem}-{hashlib.sha256(content).hexdigest()[:10]}"
    python = place / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not (place / READY).exists():
        _make(entry, place, python)
    return python


def _make(entry: Entry, place: Path, python: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    try:
        venv.create(place, with_pip=True, symlinks=os.name != "nt")
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotInstalled(f"The environment {place} cannot be made: {error}") from error
    for files, flags in ((entry.requirements, ()), (entry.without_dependencies, ("--no-deps",))):
        if files:
            _pip(python, *flags, *(word for file in files for word in ("-r", str(file))))
    (place / READY).touch()


def _pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"pip was not done within {SECONDS:g} s") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        errors = [line for line in lines if line.startswith("ERROR:")] or lines[-3:]
        raise NotInstalled(" ".join(errors)[:WORDS] or f"pip ended with exit code {done.returncode}")
