"""Times taken in turn, and ratios of them with an interval.

A machine that others use, that heats up or that changes its clock is slower in one minute than in the next. So whoever
is compared is timed in the same round, one right after the other, in the order A B, B A, A B, ... A round gives one
ratio; a run gives their median, with an interval that assumes nothing of their distribution.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from statistics import median

Call = Callable[[], object]
Times = Mapping[str, list[float]]
"""Seconds by party, one number a round."""
SUBJECT = "subject"
COVERAGE = 0.995
"""Least probability with which an interval that is judged holds the true median."""
LEAST_ROUNDS = 9
"""Fewer are shown and not judged."""
FEWEST_ROUNDS, MOST_ROUNDS = 3, 15


class Turns:
    """Parties that are timed in turn: the subject, and others before it in one round and after it in the next."""

    def __init__(
        self, subject: Call, others: Mapping[str, Call], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._calls = {SUBJECT: subject, **others}
        self._others = list(others)
        self._clock = clock
        self.times: dict[str, list[float]] = {name: [] for name in self._calls}

    def rounds(self, seconds: float) -> int:
        """How many rounds fit into ``seconds``, but from ``FEWEST_ROUNDS`` to ``MOST_ROUNDS``.

        For that everybody is called twice, which also warms up: the first call may compile, allocate or load.
        """
        for call in self._calls.values():
            call()
        started = self._clock()
        for call in self._calls.values():
            call()
        return int(min(max(seconds / (self._clock() - started), FEWEST_ROUNDS), MOST_ROUNDS))

    def before(self) -> None:
        """In even rounds, time the others."""
        if len(self.times[SUBJECT]) % 2 == 0:
            for name in self._others:
                self._time(name)

    def subject(self) -> None:
        """Time the subject."""
        self._time(SUBJECT)

    def after(self) -> None:
        """In odd rounds, time the others, backwards. The subject's own time of the round is in already."""
        if len(self.times[SUBJECT]) % 2 == 0:
            for name in reversed(self._others):
                self._time(name)

    def run(self, rounds: int) -> None:
        """Time ``rounds`` rounds."""
        for _ in range(rounds):
            self.before()
            self.subject()
            self.after()

    def _time(self, name: str) -> None:
        started = self._clock()
        self._calls[name]()
        self.times[name].append(self._clock() - started)


@dataclass(frozen=True)
class Ratio:
    """The median of a ratio's rounds, between two of their order statistics."""

    median: float
    low: float
    high: float
    rounds: int
    rank: int
    """``low`` is the rank-th least of the rounds, and ``high`` the rank-th greatest; 1 is the extreme."""

    @property
    def judged(self) -> bool:
        """Whether there were rounds enough for an interval of the declared coverage."""
        return self.rounds >= LEAST_ROUNDS

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g}, {self.rounds} rounds)"


def ratio_of(values: Sequence[float]) -> Ratio:
    """Return the median of ``values`` and the narrowest interval of coverage ``COVERAGE``, or the widest there is."""
    if not values:
        raise ValueError("There is no round to take a ratio of.")
    ordered, n = sorted(values), len(values)
    ranks = [rank for rank in range(1, (n + 1) // 2 + 1) if coverage(n, rank) >= COVERAGE]
    rank = max(ranks, default=1)
    return Ratio(median(ordered), ordered[rank - 1], ordered[n - rank], n, rank)


def coverage(n: int, rank: int) -> float:
    """Probability that the true median lies between the rank-th least and the rank-th greatest of n rounds.

    Each round lies below the median with probability 1/2, so that the number of those below is binomial.
    """
    return 1 - 2 * sum(comb(n, k) for k in range(rank)) / 2**n


def false_alarm(old: Ratio, new: Ratio) -> float:
    """Probability that the interval of ``new`` lies below that of ``old`` although nothing changed.

    Exact for independent rounds of one continuous distribution, whatever it is: all orders of the rounds of both runs
    are then equally likely, and the greatest bound of the new must have fewer than ``old.rank`` old rounds below it.
    """
    n, m, place = new.rounds, old.rounds, new.rounds - new.rank + 1  # the bound is the place-th least of the new
    below = sum(comb(place - 1 + i, i) * comb(n - place + m - i, m - i) for i in range(old.rank))
    return below / comb(n + m, m)
