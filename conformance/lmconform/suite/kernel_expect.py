"""What tests at the door ``operators`` expect of a kernel's answers.

Budgets come from ``judging.operators``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lmconform.adapter import Array
from lmconform.judging.budgets import Budget
from lmconform.judging.operators import Answer, RopeCall, both, rows
from lmconform.suite.findings import Exceeded, Finding, Tally, Unfit
from lmconform.suite.operators import Answered, Kernel, KernelDraw

ANGLE_FACTOR = 4
"""The angle at position p may be wrong by so many times p·2^-24, in radians.

Seven ways to compute frequencies in float32 (powers, exponentials, one from the other), each with NumPy's and torch's
cosine, were wrong by at most 1.9 times, over heads of 16 to 256, bases 10^4 to 10^6 and positions to 131,072.
"""


@dataclass
class KernelExpect:
    """Bound to one kernel and one example."""

    kernel: Kernel
    tally: Tally
    bit: bool = False
    """Whether this example could have shown a fault."""

    def bites(self, could_show_a_fault: bool) -> None:
        """Say whether this example could have shown the fault."""
        self.bit |= bool(could_show_a_fault)

    def agrees(self, got: Answered, what: str, fault: Answer | None = None) -> None:
        """The answer is the standard's. ``fault`` answers as a wrong kernel would: then the example says if it bites.

        Without ``fault`` every example bites, since the standard's answer is asked for.
        """
        wanted, budget = self._budget(got)
        self.bites(fault is None or budget.excess(_as_if(got, fault) - wanted) > 1)
        self._within(got, rows(got.values), wanted, budget, what)

    def close(self, *, got: Answered, wanted: Answered, what: str, fault: Answer | None = None) -> None:
        """Two answers of the kernel agree. ``fault`` answers both as a wrong kernel would."""
        (_, one), (_, other) = self._budget(got), self._budget(wanted)
        budget = both(one, other)
        self.bites(fault is None or budget.excess(_as_if(got, fault) - _as_if(wanted, fault)) > 1)
        self._within(got, rows(got.values), rows(wanted.values), budget, what)

    def inside(self, got: Answered, lower: Array, upper: Array, what: str, fault: Answer) -> None:
        """The answer lies between two arrays, but for legal errors. ``fault`` answers as a wrong kernel would."""
        _, budget = self._budget(got)
        low, high = rows(lower), rows(upper)
        wrong = _as_if(got, fault)
        self.bites(budget.excess(wrong - np.clip(wrong, low, high)) > 1)
        self._within(got, rows(got.values), np.clip(rows(got.values), low, high), budget, what)

    def turns(self, got: Answered, what: str, fault: Answer) -> None:
        """The angles of a rotation are right but for the rounding of a float32 product.

        The rotation's own legal errors come on top; in a narrow format they may hide a wrong angle. ``fault`` answers
        as a wrong kernel would.
        """
        (call,) = got.calls
        assert isinstance(call, RopeCall)
        wanted, rounding = self._budget(replace(got, calls=(replace(call, exact_angles=True),)))
        angle = ANGLE_FACTOR * call.positions * 2.0**-24  # [T], radians
        first, second = call.pairs(call.x.astype(np.float64))
        length = np.hypot(first, second)  # [H, T, D/2]
        allowed = rows(call.joined(length, length) * angle[:, None]) + rounding.largest
        self.bites(bool((np.abs(_as_if(got, fault) - wanted) > allowed).any()))
        self._each(got, wanted, allowed, what)

    def sees(self, got: Answered, shown: Array, what: str) -> None:
        """Weights [H_q, n, K] that should be seen are: none has less than half of its row's largest.

        ``shown`` says which, bool [n, K]. A query that also sees what it should not is no fault here.
        """
        self.bites(bool(shown.any()))
        values = np.where(np.isfinite(got.values), got.values, -np.inf)
        largest = np.maximum(values.max(axis=-1, keepdims=True), 0.0)
        missing = rows(shown & ~(values > largest / 2))
        if missing.any():
            row, column = (int(i) for i in np.argwhere(missing)[0])
            weight, top = float(rows(got.values)[row, column]), float(rows(largest)[row, 0])
            read = f"{weight:.4g} beside {top:.4g} for another key"
            raise Exceeded(Finding(what, read, "equal weights", got.place(row, column), top - weight, top / 2))

    def zero(self, got: Answered, what: str) -> None:
        """The answer is exactly 0."""
        self.bites(got.values.size > 0)
        error = rows(np.where(np.isfinite(got.values), np.abs(got.values), np.inf))
        if error.any():
            row, column = (int(i) for i in np.unravel_index(np.argmax(error), error.shape))
            read = f"{rows(got.values)[row, column]:.4g}"
            raise Exceeded(Finding(what, read, "exactly 0", got.place(row, column), float(error[row, column]), 0.0))

    def _budget(self, got: Answered) -> tuple[Array, Budget]:
        return self.kernel.yardstick.budget(got.reading, got.calls)

    def _within(self, place: Answered, got: Array, wanted: Array, budget: Budget, what: str) -> None:
        if budget.unfit:
            raise Unfit(f"legal errors are {budget.size:.2g} beside a spread of {budget.spread:.2g}")
        error = np.abs(got - wanted)
        excess = budget.excess(error)
        self.tally.worst = max(self.tally.worst, excess)
        if excess > 1:
            sizes = np.sqrt((error**2).mean(axis=1))
            beyond = (sizes > budget.rows) | (error.max(axis=1) > budget.largest) | ~np.isfinite(sizes)
            row = int(np.argmax(beyond)) if beyond.any() else int(np.argmax(sizes))
            self._exceeded(place, row, got, wanted, error, budget.largest, what)

    def _each(self, place: Answered, wanted: Array, allowed: Array, what: str) -> None:
        """Every element has a bound of its own."""
        got = rows(place.values)
        error = np.abs(got - wanted)
        part = np.where(np.isfinite(error), error / allowed, np.inf)
        self.tally.worst = max(self.tally.worst, float(part.max()))
        if part.max() > 1:
            row = int(np.argmax((part > 1).any(axis=1)))
            self._exceeded(place, row, got, wanted, error, float(allowed[row, int(np.argmax(part[row]))]), what)

    def _exceeded(
        self, place: Answered, row: int, got: Array, wanted: Array, error: Array, bound: float, what: str
    ) -> None:
        finite = np.where(np.isfinite(error[row]), error[row], np.inf)
        column = int(np.argmax(finite))
        raise Exceeded(
            Finding(
                what,
                measured=f"{got[row, column]:.6g}",
                wanted=f"{wanted[row, column]:.6g}",
                where=f"{place.place(row, column)} of operator {self.kernel.name}",
                error=float(finite[column]),
                budget=bound,
            )
        )


def kernel_words(kernel: Kernel, tally: Tally, seed: int) -> tuple[KernelExpect, KernelDraw]:
    """What a test of a kernel is called with, beside the kernel."""
    return KernelExpect(kernel, tally), KernelDraw(seed)


def _as_if(got: Answered, fault: Answer) -> Array:
    return rows(got.reading(*(fault(call) for call in got.calls)))
