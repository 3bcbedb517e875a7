"""The words on draws and on probabilities: `follows`, `sums_to_one`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from lmconform.adapter import Array
from lmconform.judging.budgets import sum_bound
from lmconform.judging.statistics import Evidence, Question, ask
from lmconform.suite.findings import Exceeded, Finding, Unfit
from lmconform.suite.subject import Scores
from lmconform.suite.words import Words


class Draws(Protocol):
    """Something that can be drawn again and again, and the probabilities that its outcomes should have."""

    wanted: Array
    slack: float
    where: str

    def __call__(self, number: int, /) -> list[int]:
        """At least ``number`` fresh outcomes."""


class DrawWords(Words):
    """What a sampler draws, and the probabilities that it draws from."""

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
