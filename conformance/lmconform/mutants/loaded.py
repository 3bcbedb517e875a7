"""Puts a mutant into this process, so that whatever imports the reference from now on gets the changed one."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType

from lmconform.mutants.mutate import PACKAGE, Mutant

HOLDERS = (
    PACKAGE,
    "lmconform.engines.reference",
    "lmconform.engines.torch_kernels",
    "lmconform.faults",
    "lmconform.mutants.corpus",
)
"""Modules, and packages with all that is in them, that hold parts of the reference once they are imported."""


def install(mutant: Mutant) -> None:
    """Let later imports of the reference, and of what is built on it, find ``mutant``.

    What is imported already is forgotten first; objects that were made of it stay as they were. A process can hold one
    mutant, so this is for a child that was forked for it.
    """
    for name in [name for name in sys.modules if _holds(name)]:
        _forget(name)
    sys.meta_path.insert(0, _Finder(mutant.module, str(mutant.path), mutant.code()))


def _holds(name: str) -> bool:
    return any(name == holder or name.startswith(f"{holder}.") for holder in HOLDERS)


def _forget(name: str) -> None:
    """Remove a module from the table, and from the package that holds it as an attribute."""
    del sys.modules[name]
    package, _, own = name.rpartition(".")
    if own and own in vars(sys.modules.get(package, ModuleType(""))):
        delattr(sys.modules[package], own)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds one module, and loads it from code that was compiled before; all others are left to the usual finders."""

    def __init__(self, module: str, path: str, code: CodeType) -> None:
        self._module, self._path, self._code = module, path, code

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._module:
            return None
        return importlib.util.spec_from_file_location(fullname, self._path, loader=self)

    def get_code(self, fullname: str) -> CodeType:
        return self._code

    def get_source(self, fullname: str) -> None:
        return None  # the text that was compiled stands in no file
