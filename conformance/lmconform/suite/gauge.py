"""What a test may say of one quantity that an instrument reads from scores: ``agrees``, ``close``, ``signs``.

A reading turns rows of scores [n, K] into [n, layers, heads or pairs, elements]. Its budget is what legal errors of the
scores make of it, row by row (``budget.reading``), so a reading may be any function of the scores.
"""

from __future__ import annotations

from math import sqrt

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.edits import Edit
from lmconform.judging.budgets import Reading
from lmconform.suite.expect import Exceeded, Expect, Finding
from lmconform.suite.subject import Scores


class Gauge:
    """Bound to one example and to one reading of its instrument. Scores hold the columns that the reading asks for."""

    def __init__(self, expect: Expect, reading: Reading) -> None:
        self._expect = expect
        self._reading = reading

    def agrees(self, scores: Scores, what: str, fault: Edit) -> None:
        """The reading is the standard's.

        ``fault`` makes the checkpoint on which the oracle computes what a wrong engine would: the example bites if its
        reading is out of the budget.
        """
        truth, bounds = self._truth(scores)
        self._show(self._faulty(scores, fault) - truth, bounds, fault)
        self._within(self._read(scores), truth, bounds, scores, what)

    def close(self, *, got: Scores, wanted: Scores, what: str, fault: Edit) -> None:
        """Two results of the engine read the same, row by row; ``fault`` is what a wrong engine makes of ``got``."""
        truth, bounds = self._truth(wanted)
        self._show(self._faulty(got, fault) - truth, sqrt(2) * bounds, fault)
        self._within(self._read(got), self._read(wanted), sqrt(2) * bounds, wanted, what)

    def signs(self, scores: Scores, what: str) -> None:
        """The reading has the standard's sign, wherever the standard's stands out from 0."""
        truth, bounds = self._truth(scores)
        clear = np.abs(truth) > 2 * bounds[:, None]
        self._expect.bites(bool(clear.any()))
        if not clear.any():
            self._expect.tally.unresolved.append(f"{what} is {np.abs(truth).max():.2g}, within {bounds.max():.2g} of 0")
        got = self._read(scores)
        wrong = clear & ~(np.sign(got) == np.sign(truth))
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
        rows = self._expect.subject.as_edited(fault, scores.places)
        return self._values(rows[:, list(scores.columns or range(rows.shape[1]))]).reshape(len(scores), -1)

    def _show(self, moved: Array, bounds: Array, fault: Edit) -> None:
        """Count the example if a fault would have ``moved`` the reading out of its bounds, else say why not."""
        share = float(_shares(moved, bounds).max())
        self._expect.bites(share > 1)
        if share <= 1:
            name = getattr(fault, "__name__", "the fault")
            self._expect.tally.unresolved.append(f"{name} would move this reading by {share:.2g} budgets")

    def _within(self, got: Array, wanted: Array, bounds: Array, scores: Scores, what: str) -> None:
        share = _shares(got - wanted, bounds)
        row, column = np.unravel_index(int(share.argmax()), share.shape)
        self._expect.tally.worst = max(self._expect.tally.worst, float(share[row, column]))
        if share[row, column] > 1:
            error = float(share[row, column] * bounds[row])
            self._raise(scores, int(row), int(column), what, got, wanted, error, float(bounds[row]))

    def _raise(
        self, scores: Scores, row: int, column: int, what: str, got: Array, wanted: Array, error: float, bound: float
    ) -> None:
        tokens, position = scores.places[row]
        _, _, heads, elements = self._values(scores.values).shape
        layer, rest = divmod(column, heads * elements)
        head, element = divmod(rest, elements)
        place = f"position {position} of {len(tokens)}, layer {layer} of the reading, row {head}, element {element}"
        read, true = f"{got[row, column]:.4g}", f"{wanted[row, column]:.4g}"
        raise Exceeded(Finding(what, read, true, place, error, bound))


def _shares(error: Array, bounds: Array) -> Array:
    """What part of its row's bound each element of ``error`` [n, X] uses; infinite where there is no number."""
    share = np.abs(error) / bounds[:, None]
    return np.where(np.isfinite(share), share, np.inf)
