"""Whether draws follow a distribution: exact tests of which both error rates are declared.

A question is asked twice. Stage 1 is cheap and often suspicious (1 in 1,000 right engines); a suspicion gets fresh
draws and a strict stage 2, and only both together are a failure. A first stage beyond what both stages together allow,
such as a token that cannot occur, fails at once. (``spec/numerics.md``, "Statistics of samplers")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import exp, sqrt

import numpy as np
from scipy.special import bdtr, bdtrc, betaincinv, chdtrc

from lmconform.adapter import Array

SUSPICION = 1e-3
"""Stage 1 is suspicious of a right engine with at most this probability."""
CONFIRMATION = 2.5e-6
"""Stage 2, on fresh draws, confirms it with at most this probability."""
CERTAIN = SUSPICION * CONFIRMATION
"""A first stage less probable than both together fails at once."""
FALSE_ALARM = 2 * CERTAIN
"""A right engine fails one question with at most this probability: by both stages, or at once."""
MOST_QUESTIONS = 200
"""Questions that a run may ask, so that it fails a right engine with probability of at most 1e-6."""
POWER = 0.99
"""Both stages together show the fault that a question is planned for with at least this probability."""

IMPOSSIBLE = 1e-15
"""Probabilities below it are 0: what float64 rounding leaves of them means nothing."""


def binomial(count: Array, draws: Array, low: Array, high: Array) -> Array:
    """Two-sided p-values of ``count`` in ``draws`` where the probability lies anywhere from ``low`` to ``high``.

    Exact: twice the smaller tail, at most 1. A right engine gets a value of at most a with probability of at most a.
    """
    count, draws = np.asarray(count, np.int64), np.asarray(draws, np.int64)
    below = np.where(count >= draws, 1.0, bdtr(np.minimum(count, draws), draws, low))
    above = np.where(count <= 0, 1.0, bdtrc(np.maximum(count - 1, 0), draws, high))
    return np.minimum(1.0, 2 * np.minimum(below, above))


def interval(count: int, draws: int, level: float) -> tuple[float, float]:
    """All probabilities that ``binomial`` does not reject at ``level`` (Clopper and Pearson).

    The true one lies outside with probability of at most ``level``.
    """
    low = float(betaincinv(count, draws - count + 1, level / 2)) if count else 0.0
    high = 1 - float(betaincinv(draws - count, count + 1, level / 2)) if count < draws else 1.0
    return low, high


def power(draws: int, level: float, null: tuple[float, float], fault: float) -> float:
    """Probability that ``binomial`` is at most ``level`` when the true probability is ``fault``."""
    few = _first(draws, lambda count: 2 * bdtr(count, draws, null[0]) > level)  # the least that are not too few
    many = _first(draws, lambda count: 2 * bdtrc(count, draws, null[1]) <= level)  # more than these are too many
    below = float(bdtr(few - 1, draws, fault)) if few else 0.0
    return below + (float(bdtrc(many, draws, fault)) if many < draws else 0.0)


def _first(draws: int, true: Callable[[int], bool]) -> int:
    """The least count below ``draws`` from which on ``true`` holds; ``draws`` if there is none."""
    least, most = 0, draws
    while least < most:
        middle = (least + most) // 2
        least, most = (least, middle) if true(middle) else (middle + 1, most)
    return least


@lru_cache(maxsize=1024)
def draws_needed(level: float, null: tuple[float, float], fault: float, wanted: float, most: int) -> int | None:
    """Draws with which ``power`` is ``wanted``; fewer are not enough, but for a few. None if it takes over ``most``."""
    if null[0] <= fault <= null[1]:
        return None
    enough = 1
    while power(enough, level, null, fault) < wanted:
        enough *= 2
        if enough > 2 * most:
            return None
    least = enough // 2
    while enough - least > 1:
        middle = (least + enough) // 2
        if power(middle, level, null, fault) >= wanted:
            enough = middle
        else:
            least = middle
    return enough if enough <= most else None


@dataclass(frozen=True)
class Evidence:
    """Against draws: the outcomes that tell most, and how improbable they are."""

    outcomes: tuple[int, ...]
    count: int
    draws: int
    expected: float
    """Probability of these outcomes together."""
    p_value: float


@dataclass(frozen=True, eq=False)
class Question:
    """Do draws have the probabilities ``wanted`` [K], and not those of one of ``faults``?

    Each fault splits the outcomes in two: those that it makes more probable, and the others. The count of the first is
    an exact binomial. All outcomes together are judged by the chain of conditional binomials: outcome i among the draws
    that are none of the outcomes before it. Given those their p-values are independent, so Fisher's sum of their
    logarithms is exact too, whatever the counts. Pearson's and the G statistic are so only where all counts are large.
    """

    wanted: Array
    faults: tuple[Array, ...]
    slack: float = 0.0
    """Scores of right engines may be off by so much, by rounding."""

    @cached_property
    def sides(self) -> list[Array]:
        """For each fault the outcomes that it makes more probable, bool [K]."""
        return [fault > self.wanted * (1 + 1e-9) + IMPOSSIBLE for fault in self.faults]

    def draws(self, most: int) -> tuple[int, int] | None:
        """Draws of either stage that show every fault which ``most`` a stage could show; None if they show none."""
        needed = []
        for side, fault in zip(self.sides, self.faults, strict=True):
            true, bounds = min(1.0, float(fault[side].sum())), self._bounds(float(self.wanted[side].sum()))
            first, second = (
                draws_needed(self._share(level), bounds, true, sqrt(POWER), most) for level in (SUSPICION, CONFIRMATION)
            )
            if first is not None and second is not None:
                needed.append((first, second))
        return (max(first for first, _ in needed), max(second for _, second in needed)) if needed else None

    def evidence(self, outcomes: Array) -> Evidence:
        """The strongest evidence against ``wanted`` in these draws; its p-value is that of the whole question."""
        counts = np.bincount(outcomes, minlength=len(self.wanted))
        found = [self._of(side, counts) for side in self.sides]
        split = [Evidence(*one[:-1], min(1.0, one[-1] / self._share(1.0))) for one in found]
        return min([self._chain(counts), *split], key=lambda one: one.p_value)

    def _share(self, level: float) -> float:
        """The part of the level that one split gets: the chain has half, the different splits share the other."""
        return level / 2 / len({side.tobytes() for side in self.sides})

    def _bounds(self, probability: float) -> tuple[float, float]:
        """What rounding may make of a probability: its odds move by at most a factor of exp(2·slack)."""
        if probability < IMPOSSIBLE:
            return 0.0, 0.0
        factor, other = exp(2 * self.slack), max(0.0, 1 - probability)
        return probability / (probability + other * factor), probability / (probability + other / factor)

    def _of(self, side: Array, counts: Array) -> tuple[tuple[int, ...], int, int, float, float]:
        count, total = int(counts[side].sum()), int(counts.sum())
        expected = min(1.0, float(self.wanted[side].sum()))
        value = float(binomial(np.array(count), np.array(total), *map(np.array, self._bounds(expected))))
        return tuple(np.flatnonzero(side).tolist()), count, total, expected, value

    def _chain(self, counts: Array) -> Evidence:
        impossible = self.wanted < IMPOSSIBLE
        if counts[impossible].any():
            drawn = impossible & (counts > 0)
            return Evidence(
                tuple(np.flatnonzero(drawn).tolist()), int(counts[drawn].sum()), int(counts.sum()), 0.0, 0.0
            )
        order = np.argsort(-self.wanted, kind="stable")[: int((~impossible).sum())]
        mine, p = counts[order], self.wanted[order]
        left = mine[::-1].cumsum()[::-1]  # draws that are none of the outcomes before
        chance = np.minimum(1.0, p / p[::-1].cumsum()[::-1])
        low, high = np.array([self._bounds(one) for one in chance]).T
        values = binomial(mine, left, low, high)[:-1]  # the last outcome is what is left
        if not values.size:
            return Evidence((), 0, int(counts.sum()), 1.0, 1.0)
        together = float(chdtrc(2 * len(values), -2 * np.log(np.maximum(values, 1e-300)).sum()))
        worst = int(order[int(np.argmin(values))])
        return Evidence(
            (worst,), int(counts[worst]), int(counts.sum()), float(self.wanted[worst]), min(1.0, 2 * together)
        )


@dataclass(frozen=True)
class Answer:
    """What a question came to."""

    draws: int
    evidence: Evidence | None
    """What the failure rests on; None where the engine passes."""
    suspected: bool
    """Whether stage 2 was needed."""


def ask(question: Question, draw: Callable[[int], Sequence[int]], most: int) -> Answer | None:
    """Judge fresh draws; ``draw(n)`` makes at least n. None if ``most`` draws a stage show none of its faults."""
    planned = question.draws(most)
    if planned is None:
        return None
    first, second = planned
    outcomes = np.asarray(draw(first), np.int64)
    evidence = question.evidence(outcomes)
    if evidence.p_value > SUSPICION:
        return Answer(len(outcomes), None, False)
    if evidence.p_value <= CERTAIN:
        return Answer(len(outcomes), evidence, False)
    again = np.asarray(draw(second), np.int64)
    confirmed = question.evidence(again)
    failed = confirmed if confirmed.p_value <= CONFIRMATION else None
    return Answer(len(outcomes) + len(again), failed, True)
