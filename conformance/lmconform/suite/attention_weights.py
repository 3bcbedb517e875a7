"""The words on the attention weights that a scope reads: `reads`, `sees`, `zero`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lmconform.adapter import Array
from lmconform.suite.findings import Exceeded, Finding, Relation
from lmconform.suite.subject import Scores
from lmconform.suite.words import Words

SLACK = 2.0**-10
"""Part of a weight by which two ways of one engine may differ. An engine that is wrong elsewhere may round more than a
right one: by at most 1e-4 of a weight over the library. The least that a fault of the cache moves is 8e-3."""


class WeightWords(Words):
    """What the queries of a scope see of the tokens that stand in a relation to them."""

    def reads(self, scores: Scores, relation: Relation, what: str, alone: Scores | None = None) -> None:
        """The attention weights that the scope reads are the standard's, or those that it reads in ``alone``.

        ``alone`` are the same rows as the engine gives them in another way; each side brings its own legal errors. A
        weight counts only where the standard's stands out of the budget.
        """
        got, standard, bounds = self._weights(scores)
        wanted = standard
        if alone is not None:
            wanted, _, others = self._weights(alone)
            bounds = np.hypot(bounds, others)
            got = np.where(np.isnan(wanted), np.where(np.isnan(got), 0, got), got)  # broken in both ways: no difference
            wanted = np.nan_to_num(wanted, nan=0.0)
        worst: Finding | None = None
        for row, column, seen in self._standing_out(scores, relation, standard, bounds):
            error, bound = float(abs(got[row, column] - wanted[row, column])), float(bounds[row])
            if alone is not None:
                bound = max(bound, SLACK * float(standard[row, column]))
            self._tally.worst = max(self._tally.worst, error / bound)
            if not error <= bound and (worst is None or not error / bound <= worst.excess):
                place = self._place(scores, row, column, seen)
                read, true = f"{got[row, column]:.4g}", f"{wanted[row, column]:.4g}"
                worst = Finding(what, read, true, place, error, bound)
        if worst is not None:
            raise Exceeded(worst)

    def sees(self, scores: Scores, relation: Relation, what: str) -> None:
        """Positions that should be seen are: among equal scores, none has less than half of the head's largest weight.

        A query that also sees what it should not, or whose weights are off as a whole, is no fault here.
        """
        got, wanted, bounds = self._weights(scores)
        content = self._subject.scope.content
        largest = got.reshape(len(got), -1, content).max(axis=2).repeat(content, axis=1)  # [n, L·H_q·content]
        for row, column, seen in self._standing_out(scores, relation, wanted, bounds):
            if not got[row, column] > largest[row, column] / 2:
                place = self._place(scores, row, column, seen)
                read = f"{got[row, column]:.4g} beside {largest[row, column]:.4g} for another position of this row"
                missing = float(wanted[row, column] - got[row, column])
                raise Exceeded(
                    Finding(what, read, f"{wanted[row, column]:.4g}", place, missing, float(wanted[row, column] / 2))
                )

    def zero(self, scores: Scores, relation: Relation, what: str) -> None:
        """The attention weights that the scope reads are exactly 0."""
        got = self._subject.scope.read(scores.values).reshape(len(scores), -1)  # [n, L·H_q·content]
        leaks = []
        for row, column, seen in self._elements(scores, relation):
            self.bites(True)
            if got[row, column] != 0:
                leaks.append((-abs(got[row, column]), row, column, seen))
        if leaks:
            _, row, column, seen = min(leaks)
            weight = float(got[row, column])
            place = f"{self._place(scores, row, column, seen)} ({len(leaks)} such weights)"
            raise Exceeded(Finding(what, f"{weight:.4g}", "exactly 0", place, abs(weight), 0.0))

    def _weights(self, scores: Scores) -> tuple[Array, Array, Array]:
        """Weights read and the standard's, both [n, L·H_q·content], and the bound of a legal error a row, [n]."""
        scope = self._subject.scope
        wanted, budget = self._subject.yardstick.budget(
            scores.places, scope.columns, logprobs=scores.logprobs, reading=scope.read
        )
        return scope.read(scores.values).reshape(wanted.shape), wanted, budget.reading

    def _standing_out(
        self, scores: Scores, relation: Relation, wanted: Array, bounds: Array
    ) -> Iterator[tuple[int, int, int]]:
        """The weights in question that this number format can tell from 0; each of them bites."""
        for row, column, seen in self._elements(scores, relation):
            if bounds[row] > wanted[row, column] / 2:
                self._tally.unresolved.append(f"a weight of {wanted[row, column]:.3g} is within {bounds[row]:.2g} of 0")
                continue
            self.bites(True)
            yield row, column, seen

    def _elements(self, scores: Scores, relation: Relation) -> Iterator[tuple[int, int, int]]:
        """(row, flat column, seen position) of every weight in question, all layers and heads."""
        scope = self._subject.scope
        each = scope.layers * scope.heads
        for row, (tokens, position) in enumerate(scores.places):
            for seen, token in enumerate(tokens):
                if token < scope.content and relation(position, seen):
                    for head in range(each):
                        yield row, head * scope.content + token, seen

    def _place(self, scores: Scores, row: int, column: int, seen: int) -> str:
        scope = self._subject.scope
        tokens, position = scores.places[row]
        layer, head = divmod(column // scope.content, scope.heads)
        return f"position {position} of {len(tokens)}, looking at position {seen}, layer {layer}, head {head}"
