"""The data sheet of a kernel library: every operator by itself, from crafted inputs."""

from __future__ import annotations

from collections.abc import Callable

from lmconform.adapter import AttentionOperator, Operator, RMSNormOperator, RopeOperator
from lmconform.judging.operators import OperatorYardstick
from lmconform.measure.kernel_attention import attention
from lmconform.measure.kernel_norm import norm
from lmconform.measure.kernel_rope import rope
from lmconform.measure.sheet import Entry
from lmconform.suite.operators import Kernel
from lmconform.transport.client import Connection

SHEETS: dict[str, Callable[[Kernel], list[Entry]]] = {
    AttentionOperator.kind: attention,
    RopeOperator.kind: rope,
    RMSNormOperator.kind: norm,
}
"""By kind of operator: what reads it."""


def operators(connection: Connection) -> dict[str, list[Entry]]:
    """The sheets of all operators of an engine, by the operator's name. Raises NotOffered if it offers none."""
    yardstick = OperatorYardstick(connection.description.precision)
    return {name: kernels(name, one, yardstick) for name, one in connection.operators().items()}


def kernels(name: str, operator: Operator, yardstick: OperatorYardstick) -> list[Entry]:
    """The sheet of one operator; ``yardstick`` has the precision of its engine."""
    return SHEETS[operator.kind](Kernel(name, operator, yardstick))
