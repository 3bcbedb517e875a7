"""What a test may say.

`bites`, `shows`; `agrees`, `close`, `tokens`; `reads`, `measures`, `sees`, `zero`; `weighs`; `same`, `holds`,
`undecided`; `on`; `follows`, `sums_to_one`; `in_vocabulary`, `refuses`.

A test never writes a tolerance. Budgets come from ``judging``; an exceedance carries a Finding for the failure card.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import NoReturn, Protocol, TypeVar

import numpy as np

from lmconform.adapter import Array, Refused
from lmconform.checkpoints.edits import Edit
from lmconform.judging.budgets import CERTAIN, Budget, centred, sum_bound
from lmconform.judging.statistics import Evidence, Question, ask
from lmconform.suite.meters import measured
from lmconform.suite.subject import Scores, Subject, Tokens
from lmconform.transport.client import EngineRaised, NotFinite, UnknownId

Relation = Callable[[int, int], bool]
Mask = Callable[[int, int], Array]
Meter = Callable[[Array], Array]
"""What is read from the scores [n, K] of a scope's columns: [n, L, H_q, ...]."""
Answer = TypeVar("Answer")


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
    odds: str = ""
    """How improbable it is, where draws are judged and no budget is."""

    @property
    def excess(self) -> float:
        """Error in units of the budget."""
        return self.error / self.budget if self.budget else float("inf")


class Exceeded(AssertionError):
    """The engine is beyond what a right engine can be."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(f"{finding.what}: measured {finding.measured}, wanted {finding.wanted}, at {finding.where}")
        self.finding = finding


@dataclass(frozen=True)
class Edits:
    """The checkpoints on which the oracle computes what a wrong engine makes of each side of a law."""

    got: Edit
    wanted: Edit


Fault = tuple[Mask, Mask] | Edit | Edits
"""What is wrong with an imagined engine: its masks, or edits; one for both sides of a law, or one for each."""


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
    refusals: list[str] = field(default_factory=list)
    """Why an operator refused examples."""
    suspicions: int = 0
    """Exceedances of noise's size that fresh draws did not confirm."""
    questions: int = 0
    """Asked of draws; each may fail a right engine with probability FALSE_ALARM."""
    draws: int = 0


class Draws(Protocol):
    """Something that can be drawn again and again, and the probabilities that its outcomes should have."""

    wanted: Array
    slack: float
    where: str

    def __call__(self, number: int, /) -> list[int]:
        """At least ``number`` fresh outcomes."""


class Expect:
    """Bound to one model and one example."""

    def __init__(self, subject: Subject, tally: Tally) -> None:
        self._subject = subject
        self._tally = tally
        self.bit = False
        """Whether this example could have shown a fault."""

    @property
    def subject(self) -> Subject:
        """The model that this example is about."""
        return self._subject

    @property
    def tally(self) -> Tally:
        """What the examples of the test amount to so far."""
        return self._tally

    def bites(self, could_show_a_fault: bool) -> None:
        """Say whether this example could have shown the fault. A requirement that never bit is vacuous."""
        self.bit |= bool(could_show_a_fault)

    def shows(self, scores: Scores, fault: Edit) -> None:
        """The example bites if these scores of a faulty engine would be beyond the budget of two results.

        ``fault`` makes the checkpoint on which the oracle computes what that engine would.
        """
        truth, budget = self._subject.yardstick.budget(scores.places, scores.columns, logprobs=scores.logprobs, sides=2)
        self.bites(budget.excess(self._as_edited(scores, fault) - centred(truth)) > 1)

    def undecided(self, reason: str) -> NoReturn:
        """This example decides nothing, and why."""
        raise Unfit(reason)

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

    def close(self, *, got: Scores, wanted: Scores, what: str, fault: Fault | None = None) -> None:
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

    def follows(self, draws: Draws, what: str, faults: Sequence[Array]) -> None:
        """Fresh draws have the probabilities that they should, and not those of one of ``faults``.

        As many are drawn as show each fault with probability 0.99; a fault that the profile's draws cannot show is left
        out, and with none left the example decides nothing. Each draw counts as an example that could have shown it.
        """
        question = Question(draws.wanted, tuple(faults), draws.slack)
        answer = ask(question, lambda count: self.in_vocabulary(lambda: draws(count), what), self._subject.most_draws)
        if answer is None:
            raise Unfit(f"{self._subject.most_draws} draws show none of the faults of {what}")
        self._tally.questions += 1
        self._tally.draws += answer.draws
        self._tally.examples += answer.draws
        self._tally.bites += answer.draws
        self._tally.suspicions += answer.suspected and answer.evidence is None
        if answer.evidence is not None:
            raise Exceeded(_improbable(what, answer.evidence, draws.where))

    def sums_to_one(self, scores: Scores, what: str) -> None:
        """The exponentials of each row of log-probabilities add up to 1."""
        self.bites(True)
        for values, (tokens, position) in zip(scores.values, scores.places, strict=True):
            error = abs(float(np.log(np.exp(values).sum())))
            bound = sum_bound(values, self._subject.yardstick.precision)
            self._tally.worst = max(self._tally.worst, error / bound)
            if not error <= bound:
                place, total = f"position {position} of {len(tokens)}", np.exp(values).sum()
                raise Exceeded(Finding(what, f"{total:.6g}", "1", place, error, bound))

    def in_vocabulary(self, call: Callable[[], Answer], what: str) -> Answer:
        """The answer of ``call``, which may hold no id beyond the vocabulary."""
        try:
            return call()
        except UnknownId as fault:
            wanted, vocab_size = "an id of the vocabulary", self._subject.vocab_size
            place = f"{self._subject.case.checkpoint}, whose ids are 0 to {vocab_size - 1}"
            raise Exceeded(Finding(what, f"id {fault.token}", wanted, place, float("inf"), 0.0)) from None

    def refuses(self, call: Callable[[], object], what: str) -> None:
        """``call`` ends in an error that the caller sees: Refused, an exception of the engine, or NaN in the answer."""
        self.bites(True)
        try:
            answer = call()
        except (Refused, EngineRaised, NotFinite):
            return
        self.holds(False, what, f"an answer: {answer!r}", "an error")

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

    def measures(
        self, scores: Scores, meter: Meter, what: str, fault: Edit | None = None, like: Scores | None = None
    ) -> None:
        """What ``meter`` reads from scores of the scope's columns is the standard's; or what it reads from ``like``.

        The example bites if the reading of the engine that ``fault`` describes would be out of bounds; without
        ``fault``, if a reading stands out of its bound.
        """
        got = meter(scores.values)
        shape, (wanted, bounds) = got.shape, self._reading(scores, meter)
        right = wanted
        if like is not None:
            bounds = np.hypot(bounds, self._reading(like, meter)[1])
            right = meter(like.values).reshape(wanted.shape)
        self._stands_out(scores, meter, wanted, bounds, fault, like)
        error = np.abs(got.reshape(wanted.shape) - right)
        excess = np.divide(error, bounds, out=np.full_like(error, np.inf), where=bounds > 0)
        excess[error == 0] = 0
        worst = int(np.where(np.isnan(excess), np.inf, excess).argmax())
        if not excess.flat[worst] <= 1:
            row, layer, head, *rest = map(int, np.unravel_index(worst, shape))
            (tokens, position), which = scores.places[row], f", reading {rest[0]}" if shape[3] > 1 else ""
            place = f"position {position} of {len(tokens)}, layer {layer}, head {head}{which}"
            read, true = f"{got.flat[worst]:.4g}", f"{right.flat[worst]:.4g}"
            raise Exceeded(Finding(what, read, true, place, float(error.flat[worst]), float(bounds[row, 0])))
        self._tally.worst = max(self._tally.worst, float(excess.flat[worst]))

    def _reading(self, scores: Scores, meter: Meter) -> tuple[Array, Array]:
        """What ``meter`` should read, [n, K], and the bound of a legal error a row, [n, 1]."""
        wanted, budget = self._subject.yardstick.budget(
            scores.places, self._subject.scope.columns, logprobs=scores.logprobs, reading=meter
        )
        return wanted, budget.reading[:, None]

    def _stands_out(
        self, scores: Scores, meter: Meter, wanted: Array, bounds: Array, fault: Edit | None, like: Scores | None
    ) -> None:
        """Say whether this number format can tell the reading from that of a faulty engine."""
        if fault is None:
            could = np.abs(wanted) > 2 * bounds
        else:
            columns = self._subject.scope.columns
            faulty, other = (
                meter(self._subject.as_edited(fault, one.places)[:, columns]).reshape(wanted.shape)
                for one in (scores, like or scores)
            )
            could = np.abs(faulty - (wanted if like is None else other)) > bounds
        self.bites(bool(could.any()))
        if not could.any():
            self._tally.unresolved.append(f"legal errors of {bounds.max():.2g} hide the fault")

    def weighs(self, scores: Scores, quantity: str, what: str) -> None:
        """What the instrument weighs, ``quantity``, is the standard's; ``scores`` are the rows that it needs.

        A number counts only where a legal error is less than half of what a fault would change it by, and is wrong
        where it is off by more than a legal error, and by more than faults of other kinds move it.
        """
        worst: Finding | None = None
        for number in measured(self._subject, scores, quantity):
            if not number.decided:
                self._tally.unresolved.append(number.doubt)
                continue
            self.bites(True)
            finding = Finding(what, *number.words, number.error, number.allowed)
            if number.error <= number.allowed:
                self._tally.worst = max(self._tally.worst, finding.excess)
            elif worst is None or not finding.excess <= worst.excess:
                worst = finding
        if worst is not None:
            raise Exceeded(worst)

    def on(self, subject: Subject) -> Expect:
        """The same words for an edited checkpoint, whose oracle then judges; ``bites`` is not said through it."""
        other = copy(self)
        other._subject = subject
        return other

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

    def _moved(self, got: Scores, wanted: Scores, fault: Fault) -> Array:
        """The difference between ``got`` and ``wanted`` that a faulty engine would make."""
        if isinstance(fault, Edits):
            return self._as_edited(got, fault.got) - self._as_edited(wanted, fault.wanted)
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


def _improbable(what: str, evidence: Evidence, where: str) -> Finding:
    """What draws say against the distribution."""
    named = ", ".join(map(str, evidence.outcomes[:6])) + (" and others" if len(evidence.outcomes) > 6 else "")
    share = evidence.count / evidence.draws
    return Finding(
        what,
        measured=f"{evidence.count} of {evidence.draws} draws ({share:.3g}) are {named}",
        wanted=f"a share of {evidence.expected:.3g}",
        where=where,
        error=abs(share - evidence.expected),
        budget=0.0,
        odds=f"right engines draw so with a probability of at most {evidence.p_value:.1g}",
    )


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
