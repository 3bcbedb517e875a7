"""What no mutant touches: validation, messages and annotations, which are not computing."""

from __future__ import annotations

import ast
from collections.abc import Iterator


def spared(tree: ast.Module) -> set[int]:
    """Return the ``id`` of every node of ``tree`` that is to be left as it is.

    Spared are annotations, decorators, f-strings (messages all), ``raise`` and ``assert``; conditions whose only effect
    is to raise; and functions and constants of the module that nothing but the above makes use of.
    """
    found = {id(node) for top in _tops(tree) for node in ast.walk(top)}
    while helpers := [node for node in _helpers(tree, found) if id(node) not in found]:
        found |= {id(node) for top in helpers for node in ast.walk(top)}
    return found


def _tops(tree: ast.Module) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        match node:
            case ast.Raise() | ast.Assert() | ast.JoinedStr():
                yield node
            case ast.If():
                if _only_raises(node.body) or (node.orelse and _only_raises(node.orelse)):
                    yield node.test
            case ast.For():
                if _only_raises([node]):
                    yield node
            case ast.FunctionDef():
                yield from node.decorator_list
                yield from [node.returns] if node.returns else []
            case ast.ClassDef():
                yield from node.decorator_list
            case ast.arg() | ast.AnnAssign():
                yield from [node.annotation] if node.annotation else []
            case _:
                pass


def _only_raises(body: list[ast.stmt]) -> bool:
    """Whether nothing comes of these statements but an exception."""
    return bool(body) and all(_raises(one) for one in body)


def _raises(node: ast.stmt) -> bool:
    match node:
        case ast.Raise() | ast.Assert():
            return True
        case ast.Expr(ast.Constant(str())):
            return True
        case ast.If():
            return _only_raises(node.body) and (not node.orelse or _only_raises(node.orelse))
        case ast.For():
            return _only_raises(node.body) and not node.orelse
    return False


def _helpers(tree: ast.Module, found: set[int]) -> Iterator[ast.AST]:
    """Functions that only raise and the calls of them, and what only spared code makes use of."""
    checks = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and _only_raises(node.body)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and _name(node.value.func) in checks:
            yield node
    uses: dict[str, set[int]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            uses.setdefault(node.id, set()).add(id(node))
    for one in tree.body:
        names = [one.name] if isinstance(one, ast.FunctionDef) else []
        if isinstance(one, ast.Assign):
            names = [target.id for target in one.targets if isinstance(target, ast.Name)]
        if any(name in uses and uses[name] <= found for name in names):
            yield one


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
