"""What a rule is, and the two ways in which one is not kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmconform.protocol_check.talk import Talk


class Broken(Exception):
    """The program did something else than the rule says."""

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(f"expected {expected}; got {got}")
        self.expected = expected
        self.got = got


class NotExercised(Exception):
    """The rule could not be tried; the message says why."""


@dataclass(frozen=True)
class Rule:
    """One sentence of the protocol, and how it is tried."""

    name: str
    sentence: str
    check: Callable[[Talk], None]


def rules_of(module: ModuleType) -> list[Rule]:
    """The public functions that a module defines, in their order: name, and first line of the docstring."""
    found = []
    for name, value in vars(module).items():
        if callable(value) and not name.startswith("_") and getattr(value, "__module__", "") == module.__name__:
            found.append(Rule(name.replace("_", "-"), (value.__doc__ or "").partition("\n")[0], value))
    return found
