"""The word `reading`, on what a scope reads from scores: it `agrees`, is `close`, or has the right `signs`.

A reading turns rows of scores [n, K] into [n, layers, heads or pairs, elements]. Its budget is what legal errors of the
scores make of it, row by row (``budget.reading``), so a reading may be any function of the scores.
"""

from __future__ import annotations

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.edits import Edit
from lmconform.judging.budgets import Reading
from lmconform.suite.findings import Edits, Exceeded, Finding
from lmconform.suite.subject import Scores
from lmconform.suite.words import Words

NEARLY = 2.0**-20
"""By so much the standard's own readings may differ where a law says that they do not, and the engine's with them. The
turns of a dial are small and not nothing: 3e-7 of a share, which the rounding of every format but float64 hides."""


class Gauge:
    """Bound to one example and to one reading of a scope. Scores hold just the columns that the reading asks for.

    ``axes`` are the words by which a failure names layer, head and element.
    """

    def __init__(self, expect: Words, reading: Reading, axes: tuple[str, str, str]) -> None:
        self._expect = expect
        self._reading = reading
        self._axes = axes

    def agrees(self, scores: Scores, what: str, fault: Edit | None = None) -> None:
        """The reading is the standard's.

        ``fault`` makes the checkpoint on which the oracle computes what a wrong engine would: the example bites if its
        reading is out of the budget. Without it the example bites if the standard's reading stands out from 0.
        """
        truth, bounds = self._truth(scores)
        if fault is None:
            self._stand_out(truth, bounds)
        else:
            self._show(self._faulty(scores, fault) - truth, bounds, fault)
        self._within(self._read(scores), truth, np.tile(bounds[:, None], truth.shape[1]), scores, what)

    def close(self, *, got: Scores, wanted: Scores, what: str, fault: Edit | Edits | None = None) -> None:
        """Two results of the engine read the same, row by row; each side brings its own legal errors.

        ``fault`` is what a wrong engine makes of both sides, or of each: the example bites if the budget would have
        shown it. Without it the example bites if the standard's reading stands out from 0.
        """
        (twin, others), (truth, bounds) = self._truth(got), self._truth(wanted)
        bounds = np.hypot(bounds, others)
        if fault is None:
            self._stand_out(truth, bounds)
        else:
            each = fault if isinstance(fault, Edits) else Edits(fault, fault)
            self._show(self._faulty(got, each.got) - self._faulty(wanted, each.wanted), bounds, each.got)
        apart = np.abs(twin - truth)
        self._within(
            self._read(got), self._read(wanted), bounds[:, None] + np.where(apart <= NEARLY, apart, 0), got, what
        )

    def signs(self, scores: Scores, what: str) -> None:
        """The reading has the standard's sign, wherever the standard's stands out from 0."""
        truth, bounds = self._truth(scores)
        self._stand_out(truth, bounds)
        got = self._read(scores)
        wrong = _clear(truth, bounds) & ~(np.sign(got) == np.sign(truth))
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            error = abs(float(got[row, column] - truth[row, column]))
            self._raise(scores, row, column, what, got, truth, error, float(bounds[row]))

    def _read(self, scores: Scores) -> Array:
        return self._values(scores.values).reshape(len(scores), -1)

    def _values(self, scores: Array) -> Array:
        """The reading of rows that may be wrong: weights of 0 or below, or none that turn."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self._reading(scores)

    def _truth(self, scores: Scores) -> tuple[Array, Array]:
        """The standard's reading, [n, X], and the bound of a legal error a row, [n]."""
        truth, budget = self._expect.subject.yardstick.budget(
            scores.places, scores.columns, logprobs=scores.logprobs, reading=self._reading
        )
        return truth, budget.reading

    def _faulty(self, scores: Scores, fault: Edit) -> Array:
        """What a wrong engine would read, [n, X]."""
        rows = self._expect.subject.as_edited(fault, scores.places)  # [n, V]
        return self._values(rows[:, list(scores.columns or range(rows.shape[1]))]).reshape(len(scores), -1)

    def _show(self, moved: Array, bounds: Array, fault: Edit) -> None:
        """Count the example if a fault would have ``moved`` the reading out of its bounds, else say why not."""
        share = float(_shares(moved, bounds[:, None]).max())
        self._expect.bites(share > 1)
        if share <= 1:
            name = getattr(fault, "__name__", "the fault")
            self._expect.tally.unresolved.append(f"{name} would move this reading by {share:.2g} budgets")

    def _stand_out(self, truth: Array, bounds: Array) -> None:
        """Count the example if the standard's reading is clearly not 0 somewhere, else say why not."""
        clear = bool(_clear(truth, bounds).any())
        self._expect.bites(clear)
        if not clear:
            size, bound = np.abs(truth).max(), bounds.max()
            self._expect.tally.unresolved.append(f"a reading of {size:.2g} is within legal errors of {bound:.2g} of 0")

    def _within(self, got: Array, wanted: Array, bounds: Array, scores: Scores, what: str) -> None:
        """Every element, of arrays [n, X] all, is within its bound."""
        share = _shares(got - wanted, bounds)
        row, column = np.unravel_index(int(share.argmax()), share.shape)
        self._expect.tally.worst = max(self._expect.tally.worst, float(share[row, column]))
        if share[row, column] > 1:
            error = float(np.nan_to_num(np.abs(got[row, column] - wanted[row, column]), nan=np.inf))
            self._raise(scores, int(row), int(column), what, got, wanted, error, float(bounds[row, column]))

    def _raise(
        self, scores: Scores, row: int, column: int, what: str, got: Array, wanted: Array, error: float, bound: float
    ) -> None:
        tokens, position = scores.places[row]
        _, _, heads, elements = self._values(scores.values).shape
        layer, rest = divmod(column, heads * elements)
        head, element = divmod(rest, elements)
        numbered = zip(self._axes[: 3 if elements > 1 else 2], (layer, head, element), strict=False)
        place = f"position {position} of {len(tokens)}, " + ", ".join(f"{axis} {index}" for axis, index in numbered)
        read, true = f"{got[row, column]:.4g}", f"{wanted[row, column]:.4g}"
        raise Exceeded(Finding(what, read, true, place, error, bound))


class ReadingWords(Words):
    """The quantities that a scope reads."""

    def reading(self, reading: Reading, *, layer: str = "layer", head: str = "head", element: str = "reading") -> Gauge:
        """What to say of a reading; a failure calls its axes so, counted from 0."""
        return Gauge(self, reading, (layer, head, element))


def _clear(truth: Array, bounds: Array) -> Array:
    """Which elements of ``truth`` [n, X] a legal error cannot bring to 0."""
    found: Array = np.abs(truth) > 2 * bounds[:, None]
    return found


def _shares(error: Array, bounds: Array) -> Array:
    """What part of its bound each element of ``error`` [n, X] uses; infinite where there is no number.

    ``bounds`` are [n, X], or [n, 1]. A bound of 0 allows an exact reading alone; an infinite one, any and none.
    """
    bounds = np.broadcast_to(bounds, error.shape)
    size = np.where(np.isinf(bounds), 0, np.abs(error))
    share = np.divide(size, bounds, out=np.full_like(size, np.inf), where=bounds > 0)
    share[size == 0] = 0
    return np.where(np.isfinite(share), share, np.inf)
