"""One kernel by itself: what it shows of crafted inputs, beside the standard and all legal ways to compute it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lmconform.adapter import Array
from lmconform.judging.operators import Call
from lmconform.measure.observation import Value
from lmconform.measure.sheet import Entry, choice
from lmconform.suite.operators import Kernel

Quantity = Callable[..., Array]
"""Numbers of any shape, of the answers to some calls."""


def answers(kernel: Kernel, calls: Sequence[Call]) -> list[Array]:
    """The kernel's answers. Raises Refused if it declines a call."""
    return [np.asarray(kernel.operator.run(*call.inputs), np.float64) for call in calls]


def value(kernel: Kernel, quantity: Quantity, calls: Sequence[Call]) -> Value:
    """The quantity as the kernel shows it, as the standard says, and how far off a right kernel may be, [m] each."""

    def column(*outputs: Array) -> Array:
        return np.asarray(quantity(*outputs), np.float64).reshape(-1, 1)  # [m, 1]: a bound for each number

    with np.errstate(all="ignore"):  # a wrong kernel may give anything
        got = column(*answers(kernel, calls))
        wanted, budget = kernel.yardstick.budget(column, calls)
    return Value(got[:, 0], wanted[:, 0], budget.reading)


def named(kernel: Kernel, section: str, quantity: str, name: Callable[..., str], calls: Sequence[Call]) -> Entry:
    """One line for a choice that ``name`` reads off the answers: the kernel's beside the standard's."""
    with np.errstate(all="ignore"):
        got, wanted = name(*answers(kernel, calls)), name(*(call.truth() for call in calls))
    return choice(section, quantity, got, wanted)
