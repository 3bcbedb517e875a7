"""The words on whole rows of scores: `shows`, `agrees`, `close`, `tokens`."""

from __future__ import annotations

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.edits import Edit
from lmconform.judging.budgets import CERTAIN, Budget, centred
from lmconform.suite.findings import Edits, Exceeded, Fault, Finding, Mask, Unfit
from lmconform.suite.subject import Scores, Tokens
from lmconform.suite.words import Words


class ScoreWords(Words):
    """Scores of the engine beside those of the oracle, or beside others of the engine."""

    def shows(self, scores: Scores, fault: Edit) -> None:
        """The example bites if these scores of a faulty engine would be beyond the budget of two results.

        ``fault`` makes the checkpoint on which the oracle computes what that engine would.
        """
        truth, budget = self._subject.yardstick.budget(scores.places, scores.columns, logprobs=scores.logprobs, sides=2)
        self.bites(budget.excess(self._as_edited(scores, fault) - centred(truth)) > 1)

    def agrees(self, scores: Scores, what: str, fault: Edit | None = None) -> None:
        """Scores of the engine are the oracle's, row by row, up to a constant a row.

        ``fault`` makes the checkpoint on which the oracle computes what a wrong engine would: the example bites if the
        budget would have shown it. Without it every example bites.
        """
        truth, budget = self._fit(scores, sides=1)
        self.bites(fault is None or budget.excess(self._as_edited(scores, fault) - centred(truth)) > 1)
        self._within(centred(scores.values), truth, truth, scores, budget, what)

    def differs(self, scores: Scores, what: str) -> None:
        """Scores are other than the oracle's: what this example asks for beside the model was not passed over."""
        truth, budget = self._fit(scores, sides=1)
        self.bites(True)
        same = budget.excess(centred(scores.values) - truth) <= 1
        self.holds(not same, what, "those without it", "others, or a refusal")

    def close(self, *, got: Scores, wanted: Scores, what: str, fault: Fault | None = None) -> None:
        """Two results of the engine agree, row by row, up to a constant a row.

        ``fault`` is the mask with which a wrong engine would have made ``got``, and the one for ``wanted``; or the edit
        that makes the checkpoint on which the oracle computes what it would: the example bites if the budget would
        have shown it. Without it the test itself calls ``bites``.
        """
        shared = _shared_columns(got, wanted)
        got, wanted = (got.only(shared), wanted.only(shared)) if shared is not None else (got, wanted)
        truth, budget = self._fit(wanted, sides=2)
        if fault is not None:
            moved = self._moved(got, wanted, fault)
            self.bites(budget.excess(moved) > 1)
        self._within(centred(got.values), centred(wanted.values), truth, wanted, budget, what)

    def _fit(self, scores: Scores, sides: int) -> tuple[Array, Budget]:
        """The oracle's rows and the budget; raise Unfit where they decide nothing."""
        if scores.columns is not None and len(scores.columns) < 2:
            raise Unfit(f"the results share {len(scores.columns)} ids, and a row is known up to a constant")
        truth, budget = self._subject.yardstick.budget(
            scores.places, scores.columns, logprobs=scores.logprobs, sides=sides
        )
        if budget.unfit:
            raise Unfit(f"legal errors are {budget.size:.2g} beside a spread of {budget.spread:.2g}")
        return truth, budget

    def tokens(self, *, prompt: Tokens, got: Tokens, wanted: Tokens, what: str, fault: Fault | None = None) -> None:
        """Two greedy continuations of ``prompt`` are the same tokens.

        A token is judged where the oracle's best score leads the second by far more than two legal errors. Where the
        continuations part undecided, the rest has other contexts and is not compared. ``fault`` is what a wrong engine
        makes of both, as in ``close``: the example bites if such an engine would choose other tokens for one of them.
        Without it the example bites if a token is judged.
        """
        for step, (mine, other) in enumerate(zip(got, wanted, strict=False)):
            context = prompt + wanted[:step]
            (row,), budget = self._subject.yardstick.budget([(context, len(context) - 1)])
            second, first = np.partition(row, -2)[-2:]
            lead, error = float(first - second), 2 * budget.largest
            decided = lead > CERTAIN * error
            if decided and not self.bit:
                self.bites(fault is None or self._parts(context, fault, error))
            if not decided:
                self._tally.unresolved.append(f"a lead of {lead:.2g} beside legal errors of {error:.2g}")
            if mine != other and decided:
                place = f"new token {step} after a prompt of {len(prompt)} tokens"
                best = f"id {other} (oracle: id {int(row.argmax())}, ahead by {lead:.3g})"
                raise Exceeded(Finding(what, f"id {mine}", best, place, lead, error))
            if mine != other:
                return

    def _within(self, left: Array, right: Array, truth: Array, scores: Scores, budget: Budget, what: str) -> None:
        """Raise Exceeded if ``left`` and ``right``, both centred, differ by more than the budget."""
        excess = budget.excess(left - right)
        self._tally.worst = max(self._tally.worst, excess)
        if excess > 1:
            raise Exceeded(_difference(what, left, right, truth, scores, budget))

    def _parts(self, context: Tokens, fault: Fault, error: float) -> bool:
        """Whether a faulty engine would choose other tokens after ``context`` on one side than on the other."""
        row = Scores(np.empty((1, 0)), ((context, len(context) - 1),))
        (got,), (wanted,) = self._sides(row, row, fault)
        return float(got.max() - got[wanted.argmax()]) > error

    def _moved(self, got: Scores, wanted: Scores, fault: Fault) -> Array:
        """The difference between ``got`` and ``wanted`` that a faulty engine would make."""
        one, other = self._sides(got, wanted, fault)
        return one - other

    def _sides(self, got: Scores, wanted: Scores, fault: Fault) -> tuple[Array, Array]:
        """What a faulty engine would give in place of ``got`` and of ``wanted``, centred."""
        if isinstance(fault, Edits):
            return self._as_edited(got, fault.got), self._as_edited(wanted, fault.wanted)
        if isinstance(fault, tuple):
            return self._as_if(got, fault[0]), self._as_if(wanted, fault[1])
        return self._as_edited(got, fault), self._as_edited(wanted, fault)

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
