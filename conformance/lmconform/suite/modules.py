"""The suite's test modules, and what their tests decide."""

from __future__ import annotations

import importlib
import pkgutil

import lmconform.suite
from lmconform.suite.dsl import Decides


def decisions() -> list[Decides]:
    """What the test functions of the suite decide, in the order of the modules."""
    names = sorted(found.name for found in pkgutil.iter_modules(lmconform.suite.__path__))
    modules = [importlib.import_module(f"lmconform.suite.{name}") for name in names if name.startswith("test_")]
    return [value.decides for module in modules for value in vars(module).values() if hasattr(value, "decides")]
