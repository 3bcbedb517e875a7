"""Mutation operators: what a small mistake makes of one node of the syntax tree.

They are the field's usual ones (Offutt et al. 1996, and the tools mutmut and cosmic-ray), and a few for tensors: the
dimension of a reduction, the bound of a slice, a ``clamp`` or ``clone`` left out.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

Replaced = Iterator[tuple[ast.AST, ast.AST]]
"""Pairs of a node and what stands there instead."""
Operator = Callable[[ast.AST], Replaced]

BOUNDARY: dict[type[ast.cmpop], type[ast.cmpop]] = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
NEGATION: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.GtE,
    ast.LtE: ast.Gt,
    ast.Gt: ast.LtE,
    ast.GtE: ast.Lt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC: dict[type[ast.operator], tuple[type[ast.operator], ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.FloorDiv,),
    ast.Pow: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
}
EXTREMES = {"min": "max", "max": "min", "any": "all", "all": "any", "argmax": "argmin", "argmin": "argmax"}
DROPPED_METHODS = ("clamp", "clone", "double", "to", "transpose", "square", "masked_fill", "flatten")
DROPPED_CONVERSIONS = ("list", "tuple", "sorted", "float", "int", "str")


def boundary(node: ast.AST) -> Replaced:
    """``<`` to ``<=``, and so on."""
    return _compared(node, BOUNDARY)


def negation(node: ast.AST) -> Replaced:
    """``<`` to ``>=``, ``is`` to ``is not``, and so on."""
    return _compared(node, NEGATION)


def _compared(node: ast.AST, table: dict[type[ast.cmpop], type[ast.cmpop]]) -> Replaced:
    if isinstance(node, ast.Compare):
        for place, one in enumerate(node.ops):
            if type(one) in table:
                ops = [*node.ops[:place], table[type(one)](), *node.ops[place + 1 :]]
                yield node, ast.Compare(node.left, ops, node.comparators)


def arithmetic(node: ast.AST) -> Replaced:
    """``+`` to ``-``, ``*`` to ``/``, ``**`` to ``*``, ``&`` to ``|``, and so on."""
    if isinstance(node, ast.BinOp):
        for other in ARITHMETIC.get(type(node.op), ()):
            yield node, ast.BinOp(node.left, other(), node.right)
    if isinstance(node, ast.AugAssign):
        for other in ARITHMETIC.get(type(node.op), ()):
            yield node, ast.AugAssign(node.target, other(), node.value)


def logic(node: ast.AST) -> Replaced:
    """``and`` to ``or``, and back."""
    if isinstance(node, ast.BoolOp):
        yield node, ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)


def inversion(node: ast.AST) -> Replaced:
    """A ``not``, a sign or a ``~`` is left out."""
    if isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant):
        yield node, node.operand


def integer(node: ast.AST) -> Replaced:
    """One more, and one less; of a dimension that is named so, see ``dimension``."""
    value = _constant(node)
    if type(value) is int:
        yield node, ast.Constant(value + 1)
        yield node, ast.Constant(value - 1)


def dimension(node: ast.AST) -> Replaced:
    """``dim=-1`` to ``dim=-2`` and ``dim=0``."""
    if isinstance(node, ast.keyword) and node.arg == "dim":
        yield node, ast.keyword("dim", ast.Constant(-2))
        yield node, ast.keyword("dim", ast.Constant(0))


def fraction(node: ast.AST) -> Replaced:
    """A float twice as great, and 0."""
    value = _constant(node)
    if type(value) is float:
        yield node, ast.Constant(2 * value or 1.0)
        yield node, ast.Constant(0.0)


def flag(node: ast.AST) -> Replaced:
    """True to False, and back."""
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield node, ast.Constant(not node.value)


def extreme(node: ast.AST) -> Replaced:
    """``min`` to ``max``, ``any`` to ``all``, ``argmax`` to ``argmin``, and back; ``clamp(min=...)`` too."""
    if not isinstance(node, ast.Call):
        return
    if isinstance(node.func, ast.Name) and node.func.id in EXTREMES:
        yield node.func, ast.Name(EXTREMES[node.func.id], ast.Load())
    if isinstance(node.func, ast.Attribute) and node.func.attr in EXTREMES:
        yield node.func, ast.Attribute(node.func.value, EXTREMES[node.func.attr], ast.Load())
    for one in node.keywords:
        if one.arg in ("min", "max"):
            yield one, ast.keyword(EXTREMES[one.arg], one.value)


def bound(node: ast.AST) -> Replaced:
    """A computed bound of a slice one more, one less, and left out; of a number, only left out."""
    if isinstance(node, ast.Slice):
        for lower in _shifted(node.lower):
            yield node, ast.Slice(lower, node.upper, node.step)
        for upper in _shifted(node.upper):
            yield node, ast.Slice(node.lower, upper, node.step)


def _shifted(value: ast.expr | None) -> list[ast.expr | None]:
    if value is None:
        return []
    if _constant(value) is not None:
        return [None]
    return [ast.BinOp(value, ast.Add(), ast.Constant(1)), ast.BinOp(value, ast.Sub(), ast.Constant(1)), None]


def statement(node: ast.AST) -> Replaced:
    """A call whose result is not used, or an assignment to an attribute or an element, is left out."""
    if isinstance(node, ast.Expr):
        dropped = isinstance(node.value, ast.Call)
    elif isinstance(node, ast.Assign):
        first = node.targets[0]
        dropped = isinstance(first.elts[0] if isinstance(first, ast.Tuple) else first, ast.Attribute | ast.Subscript)
    elif isinstance(node, ast.AnnAssign):
        dropped = isinstance(node.target, ast.Attribute)
    else:
        dropped = isinstance(node, ast.AugAssign | ast.Delete)
    if dropped:
        yield node, ast.Pass()


def argument(node: ast.AST) -> Replaced:
    """Two neighbouring arguments change places."""
    if isinstance(node, ast.Call) and not any(isinstance(one, ast.Starred) for one in node.args):
        for place in range(len(node.args) - 1):
            args = list(node.args)
            args[place], args[place + 1] = args[place + 1], args[place]
            yield node, ast.Call(node.func, args, node.keywords)


def keyword(node: ast.AST) -> Replaced:
    """An argument that is given by name is left out."""
    if isinstance(node, ast.Call):
        for place in range(len(node.keywords)):
            yield node, ast.Call(node.func, node.args, [*node.keywords[:place], *node.keywords[place + 1 :]])


def call(node: ast.AST) -> Replaced:
    """``x.clamp(...)`` or ``list(x)`` to ``x``: a step of a chain, or a conversion, is left out."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in DROPPED_METHODS:
        yield node, node.func.value
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in DROPPED_CONVERSIONS:
        for one in node.args[:1]:
            yield node, one


def operand(node: ast.AST) -> Replaced:
    """One operand is returned instead of what the operation makes of both."""
    if isinstance(node, ast.Return) and isinstance(node.value, ast.BinOp):
        yield node.value, node.value.left
        yield node.value, node.value.right
    if isinstance(node, ast.Return) and isinstance(node.value, ast.BoolOp):
        for one in node.value.values:
            yield node.value, one


def condition(node: ast.AST) -> Replaced:
    """A condition is taken to hold, or not to."""
    tests = node.ifs if isinstance(node, ast.comprehension) else []
    tests = [node.test] if isinstance(node, ast.If | ast.IfExp | ast.While) else tests
    for test in tests:
        yield test, ast.Constant(True)
        yield test, ast.Constant(False)


def conditional(node: ast.AST) -> Replaced:
    """The two values of a conditional expression change places; a negated comparison does that already."""
    if isinstance(node, ast.IfExp) and not isinstance(node.test, ast.Compare):
        yield node, ast.IfExp(node.test, node.orelse, node.body)


def _constant(node: ast.AST | None) -> object:
    """The value of a constant, with its sign; None for anything else."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        value = node.operand.value
        return -value if isinstance(value, int | float) else None
    return node.value if isinstance(node, ast.Constant) else None


OPERATORS: dict[str, Operator] = {
    one.__name__: one
    for one in (
        boundary,
        negation,
        arithmetic,
        logic,
        inversion,
        integer,
        dimension,
        fraction,
        flag,
        extreme,
        bound,
        statement,
        argument,
        keyword,
        call,
        operand,
        condition,
        conditional,
    )
}
"""All operators by name, in the order in which they are applied to a node."""
