"""The word `measures`, on lines of a data sheet: each is what the standard says, where this format can tell."""

from __future__ import annotations

from collections.abc import Sequence

from lmconform.measure.sheet import Entry, Outcome
from lmconform.suite.findings import Exceeded, Finding
from lmconform.suite.words import Words


class SheetWords(Words):
    """Quantities with their uncertainty."""

    def measures(self, lines: Sequence[Entry]) -> None:
        """No line differs. Lines that this format cannot tell count for nothing."""
        for line in lines:
            if line.outcome in (Outcome.NOT_RESOLVABLE, Outcome.NOT_OFFERED):
                self._tally.unresolved.append(f"{line.quantity}: {line.note}")
                continue
            self.bites(True)
            error, bound = line.error, line.bound
            if line.outcome is Outcome.DIFFERS:
                what = f"{line.section}: {line.quantity}"
                measured = f"{line.measured} ± {line.uncertainty}" if line.uncertainty else line.measured
                where = line.note or self._subject.case.checkpoint
                size = float("inf") if error is None else error
                raise Exceeded(Finding(what, measured, line.expected, where, size, bound or 0.0, named=True))
            if error and bound:
                self._tally.worst = max(self._tally.worst, error / bound)
