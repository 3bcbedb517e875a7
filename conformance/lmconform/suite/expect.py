"""What a test may say: `bites`; `agrees`, `close`, `tokens`; `reads`, `sees`, `zero`; `same`, `holds`.

A test never writes a tolerance. Budgets come from ``judging``; an exceedance carries a Finding for the failure card.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.edits import Edit
from lmconform.judging.budgets import CERTAIN, Budget, centred
from lmconform.suite.subject import Scores, Subject, Tokens

Relation = Callable[[int, int], bool]
Mask = Callable[[int, int], Array]


def itself(position: int, seen: int) -> bool:
    """The token at the row's own position."""
    return seen == position


def earlier(position: int, seen: int) -> bool:
    """Tokens before the row's position."""
    return seen < position


def later(position: int, seen: int) -> bool:
    """Tokens after the row's position."""
    return seen > position


@dataclass(frozen=True)
class Finding:
    """What was wrong, in words and numbers, for one failure card."""

    what: str
    measured: str
    wanted: str
    where: str
    error: float
    budget: float

    @property
    def excess(self) -> float:
        """Error in units of the budget."""
        return self.error / self.budget if self.budget else float("inf")


class Exceeded(AssertionError):
    """The engine is beyond what a right engine can be."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(f"{finding.what}: measured {finding.measured}, wanted {finding.wanted}, at {finding.where}")
        self.finding = finding


class Unfit(Exception):
    """In this number format legal errors drown these scores: the example decides nothing."""


@dataclass
class Tally:
    """What the examples of one test amounted to."""

    examples: int = 0
    bites: int = 0
    """Examples that could have shown a fault."""
    worst: float = 0.0
    """Largest error seen, in units of its budget."""
    unresolved: list[str] = field(default_factory=list)
    suspicions: int = 0
    """Exceedances of noise's size that fresh draws did not confirm."""


class Expect:
    """Bound to one model and one example."""

    def __init__(self, subject: Subject, tally: Tally) -> None:
        self._subject = subject
        self._tally = tally
        self.bit = False
        """Whether this example could have shown a fault."""

    def bites(self, could_show_a_fault: bool) -> None:
        """Say whether this example could have shown the fault. A requirement that never bit is vacuous."""
        self.bit |= bool(could_show_a_fault)

    def agrees(self, scores: Scores, what: str, fault: Edit | None = None) -> None:
        """Scores of the engine are the oracle's, row by row, up to a constant a row.

        ``fault`` makes the checkpoint on which the oracle computes what a wrong engine would: the example bites if the
        budget would have shown it. Without it every example bites.
        """
        truth, budget = self._subject.yardstick.budget(scores.places, scores.columns, logprobs=scores.logprobs)
        if budget.unfit:
            raise Unfit(f"legal errors are {budget.size:.2g} beside a spread of {budget.spread:.2g}")
        self.bites(fault is None or budget.excess(self._as_edited(scores, fault) - centred(truth)) > 1)
        self._within(centred(scores.values), truth, truth, scores, budget, what)

    def close(self, *, got: Scores, wanted: Scores, what: str, fault: tuple[Mask, Mask] | Edit | None = None) -> None:
        """Two results of the engine agree, row by row, up to a constant a row.

        ``fault`` is the mask with which a wrong engine would have made ``got``, and the one for ``wanted``; or the edit
        that makes the checkpoint on which the oracle computes what it would: the example bites if the budget would
        have shown it. Without it the test itself calls ``bites``.
        """
        shared = _shared_columns(got, wanted)
        got, wanted = (got.only(shared), wanted.only(shared)) if shared is not None else (got, wanted)
        truth, budget = self._subject.yardstick.budget(wanted.places, wanted.columns, logprobs=wanted.logprobs, sides=2)
        if budget.unfit:
            raise Unfit(f"legal errors are {budget.size:.2g} beside a spread of {budget.spread:.2g}")
        if fault is not None:
            moved = self._moved(got, wanted, fault)
            self.bites(budget.excess(moved) > 1)
        self._within(centred(got.values), centred(wanted.values), truth, wanted, budget, what)

    def same(self, got: object, wanted: object, what: str, where: str = "") -> None:
        """Something discrete (tokens, a reason, a count) is what it should be."""
        self.holds(got == wanted, what, repr(got), repr(wanted), where)

    def holds(self, condition: bool, what: str, measured: str, wanted: str, where: str = "") -> None:
        """A statement about something discrete is true; if it is not, no second look is needed."""
        if not condition:
            raise Exceeded(Finding(what, measured, wanted, where or self._subject.case.checkpoint, float("inf"), 0.0))

    def _within(self, left: Array, right: Array, truth: Array, scores: Scores, budget: Budget, what: str) -> None:
        """Raise Exceeded if ``left`` and ``right``, both centred, differ by more than the budget."""
        excess = budget.excess(left - right)
        self._tally.worst = max(self._tally.worst, excess)
        if excess > 1:
            raise Exceeded(_difference(what, left, right, truth, scores, budget))

    def tokens(self, *, prompt: Tokens, got: Tokens, wanted: Tokens, what: str) -> None:
        """Two greedy continuations of ``prompt`` are the same tokens.

        A token is judged where the oracle's best score leads the second by far more than two legal errors. Where the
        continuations part undecided, the rest has other contexts and is not compared.
        """
        for step, (mine, other) in enumerate(zip(got, wanted, strict=False)):
            context = prompt + wanted[:step]
            (row,), budget = self._subject.yardstick.budget([(context, len(context) - 1)])
            second, first = np.partition(row, -2)[-2:]
            lead, error = float(first - second), 2 * budget.largest
            decided = lead > CERTAIN * error
            self.bites(decided)
            if not decided:
                self._tally.unresolved.append(f"a lead of {lead:.2g} beside legal errors of {error:.2g}")
            if mine != other and decided:
                place = f"new token {step} after a prompt of {len(prompt)} tokens"
                best = f"id {other} (oracle: id {int(row.argmax())}, ahead by {lead:.3g})"
                raise Exceeded(Finding(what, f"id {mine}", best, place, lead, error))
            if mine != other:
                return

    def reads(self, scores: Scores, relation: Relation, what: str) -> None:
        """The attention weights that the scope reads are the standard's.

        A weight counts only where the standard's stands out of the budget.
        """
        got, wanted, bounds = self._weights(scores)
        worst: Finding | None = None
        for row, column, seen in self._standing_out(scores, relation, wanted, bounds):
            error, bound = float(abs(got[row, column] - wanted[row, column])), float(bounds[row])
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

    def _moved(self, got: Scores, wanted: Scores, fault: tuple[Mask, Mask] | Edit) -> Array:
        """The difference between ``got`` and ``wanted`` that a faulty engine would make."""
        if isinstance(fault, tuple):
            return self._as_if(got, fault[0]) - self._as_if(wanted, fault[1])
        return self._as_edited(got, fault) - self._as_edited(wanted, fault)

    def _as_if(self, scores: Scores, mask: Mask) -> Array:
        return _centred_columns(self._subject.as_if(mask, scores.places), scores)

    def _as_edited(self, scores: Scores, edit: Edit) -> Array:
        return _centred_columns(self._subject.as_edited(edit, scores.places), scores)


def _centred_columns(rows: Array, scores: Scores) -> Array:
    """The columns of ``rows`` [n, V] that ``scores`` has, centred."""
    return centred(rows if scores.columns is None else rows[:, list(scores.columns)])


def _shared_columns(one: Scores, other: Scores) -> list[int] | None:
    """Ids that both hold; None if both hold the whole vocabulary."""
    if one.columns is None and other.columns is None:
        return None
    if one.columns is None or other.columns is None:
        return list(one.columns or other.columns or ())
    return sorted(set(one.columns) & set(other.columns))


def _difference(what: str, left: Array, right: Array, truth: Array, wanted: Scores, budget: Budget) -> Finding:
    """The first row that is beyond its budget, and in it the id with the largest error."""
    error = np.abs(left - right)
    sizes = np.sqrt((error**2).mean(axis=1))
    beyond = (sizes > budget.rows) | (error.max(axis=1) > budget.largest) | ~np.isfinite(sizes)
    row = int(np.argmax(beyond)) if beyond.any() else int(np.argmax(sizes))
    column = int(np.argmax(error[row]))
    token = column if wanted.columns is None else wanted.columns[column]
    tokens, position = wanted.places[row]
    return Finding(
        what,
        measured=f"{left[row, column]:+.5g}",
        wanted=f"{right[row, column]:+.5g} (oracle {truth[row, column]:+.5g})",
        where=f"position {position} of {len(tokens)}, score of id {token}",
        error=float(error[row, column]),
        budget=float(budget.largest),
    )
