"""All mutants of the reference's computing core, each with an id, its one-line diff and its code.

The maintained tools (mutmut, cosmic-ray) write each mutant to a file and start a test command for it, which for some
hundred mutants costs hours; a pass over the syntax tree makes them in memory, for a process that is warm already.
"""

from __future__ import annotations

import ast
import copy
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from itertools import takewhile
from pathlib import Path
from types import CodeType
from typing import cast

import numpy as np

from lmconform.mutants.operators import OPERATORS
from lmconform.mutants.spared import spared

PACKAGE = "refdecoder"
TARGETS = ("config", "rope", "cache", "model", "sampling", "stopping", "generate")
"""Modules of the reference that compute."""
SHOWN, BESIDE = 100, 36
"""A diff shows lines of so many characters whole; of longer ones what changes and so many on each side of it."""


@dataclass(frozen=True, eq=False)
class Mutant:
    """One change of one module."""

    module: str
    path: Path
    operator: str
    index: int
    """Which of the changes that the operator makes at this place."""
    tree: ast.Module
    statement: ast.stmt
    """The smallest statement around the change."""
    node: ast.AST
    replacement: ast.AST

    @property
    def id(self) -> str:
        """``rope.py:34:15:arithmetic:0``: file, line, column from 0, operator, index."""
        line, column = getattr(self.node, "lineno", 0), getattr(self.node, "col_offset", 0)
        return f"{self.path.name}:{line}:{column}:{self.operator}:{self.index}"

    def code(self) -> CodeType:
        """The changed module, compiled."""
        return compile(ast.fix_missing_locations(cast(ast.Module, self._changed(self.tree))), str(self.path), "exec")

    def diff(self) -> tuple[str, str]:
        """The line before and after, as ``ast.unparse`` writes it; of a long one the part around the change."""
        before, after = (ast.unparse(one).splitlines() for one in (self.statement, self._changed(self.statement)))
        changed = (pair for pair in zip(before, after, strict=False) if pair[0] != pair[1])
        return _around(*(line.strip() for line in next(changed)))

    def _changed(self, tree: ast.AST) -> ast.AST:
        """A copy of ``tree`` with the replacement in the node's place."""
        replacement = ast.copy_location(copy.copy(self.replacement), self.node)
        return copy.deepcopy(tree, {id(self.node): replacement})


@cache
def mutants() -> tuple[Mutant, ...]:
    """All mutants, in the order of the modules and of their lines."""
    return tuple(mutant for name in TARGETS for mutant in mutants_of(f"{PACKAGE}.{name}", source_of(name)))


def source_of(name: str) -> Path:
    """The file of a module of the reference, found without importing it."""
    package = importlib.util.find_spec(PACKAGE)
    return Path(str(package and package.origin)).with_name(f"{name}.py")


def mutants_of(module: str, path: Path) -> list[Mutant]:
    """All mutants of one file."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    left = spared(tree)
    found = [
        Mutant(module, path, name, 0, tree, statement, target, replacement)
        for statement, node in _places(tree, left)
        for name, operator in OPERATORS.items()
        for target, replacement in operator(node)
        if id(target) not in left
    ]
    return _numbered(_distinct(found))


def named(identifier: str) -> Mutant:
    """The mutant with this id; raises LookupError with the nearest ids if there is none."""
    known = {one.id: one for one in mutants()}
    if identifier not in known:
        near = ", ".join(get_close_matches(identifier, known, 3)) or "none; --list prints them all"
        raise LookupError(f"There is no mutant {identifier!r}. Near are: {near}.")
    return known[identifier]


def drawn(count: int, seed: int) -> list[Mutant]:
    """``count`` of all mutants, each as likely as any other, in the order of the files; all if there are fewer."""
    every = mutants()
    chosen = np.random.default_rng(seed).permutation(len(every))[:count]
    return [every[place] for place in sorted(chosen.tolist())]


def _places(tree: ast.Module, left: set[int]) -> Iterator[tuple[ast.stmt, ast.AST]]:
    """Every node that is not spared, in the order of the source, with the smallest statement around it."""

    def below(node: ast.AST, statement: ast.stmt | None) -> Iterator[tuple[ast.stmt, ast.AST]]:
        if id(node) in left:
            return
        statement = node if isinstance(node, ast.stmt) else statement
        if statement is not None:
            yield statement, node
        if (isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant)) or (
            isinstance(node, ast.keyword) and node.arg == "dim"
        ):
            return  # changed as a whole
        for child in ast.iter_child_nodes(node):
            yield from below(child, statement)

    return below(tree, None)


def _distinct(found: list[Mutant]) -> list[Mutant]:
    """Those whose change differs from every other of the same node, and from the node itself."""
    kept: dict[tuple[int, str], Mutant] = {}
    for one in found:
        change = ast.dump(one.replacement)
        if change != ast.dump(one.node):
            kept.setdefault((id(one.node), change), one)
    return list(kept.values())


def _numbered(found: list[Mutant]) -> list[Mutant]:
    """With an index each among those of one operator at one place."""
    counts: dict[str, int] = {}
    numbered = []
    for one in found:
        place = one.id.rpartition(":")[0]
        counts[place] = counts.get(place, -1) + 1
        numbered.append(replace(one, index=counts[place]))
    return numbered


def _around(before: str, after: str) -> tuple[str, str]:
    """Both lines, of long ones what differs and some of what stands around it."""
    if max(len(before), len(after)) <= SHOWN:
        return before, after
    head = _same(before, after)
    tail = _same(before[head:][::-1], after[head:][::-1])
    start, rest = max(0, head - BESIDE), max(0, tail - BESIDE)
    first, second = (
        f"{'...' * bool(start)}{line[start : len(line) - rest]}{'...' * bool(rest)}" for line in (before, after)
    )
    return first, second


def _same(one: str, other: str) -> int:
    """How many characters two lines have in common at their beginning."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))
