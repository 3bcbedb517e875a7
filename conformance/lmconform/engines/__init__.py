"""Adapters to real engines, one file each. They are found by reading the files, so that listing them imports none."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent


class UnknownEngine(LookupError):
    """No adapter has this name; the message lists those there are."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class KnownEngine:
    """An adapter that comes with lmconform."""

    name: str
    """Short name, the file's with hyphens: ``torch-kernels``."""
    target: str
    """``module:Class``."""
    summary: str
    """First line of the module's docstring."""


@cache
def known(folder: Path = HERE) -> Mapping[str, KnownEngine]:
    """Return the adapters in ``folder`` by name: every file with a class that derives from ``Engine``."""
    found = {}
    for path in sorted(folder.glob("[!_]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef) and _is_engine(node)]
        if classes:
            summary = (ast.get_docstring(tree) or "").partition("\n")[0]
            name = path.stem.replace("_", "-")
            found[name] = KnownEngine(name, f"{__name__}.{path.stem}:{classes[0]}", summary)
    return found


def resolve(name: str, folder: Path = HERE) -> str:
    """Return the target of a short name; ``module:Class`` and ``path/to/file.py:Class`` are returned as they are.

    Raises UnknownEngine, naming the nearest.
    """
    if ":" in name:
        return name
    engines = known(folder)
    if name in engines:
        return engines[name].target
    near = difflib.get_close_matches(name, engines, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UnknownEngine(
        f"There is no engine {name!r}.{hint} Known are: {', '.join(engines) or 'none'}. An adapter of your own is named"
        " module:Class or path/to/file.py:Class."
    )


def _is_engine(node: ast.ClassDef) -> bool:
    return any(ast.unparse(base).rpartition(".")[2] == "Engine" for base in node.bases)
