"""Turns and ratios: who is timed when, and what the intervals promise."""

import itertools
import random
from math import comb

import pytest

from benchmarks.paired import (
    COVERAGE,
    FEWEST_ROUNDS,
    LEAST_ROUNDS,
    MOST_ROUNDS,
    SUBJECT,
    Ratio,
    Turns,
    coverage,
    false_alarm,
    ratio_of,
)


class Clock:
    """Time that passes only where a call takes it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order = ""

    def __call__(self) -> float:
        return self.now

    def call(self, name: str, seconds: float):
        def run() -> None:
            self.order += name
            self.now += seconds

        return run


def test_parties_take_turns_before_and_after() -> None:
    clock = Clock()
    turns = Turns(clock.call("s", 3), {"a": clock.call("a", 1), "b": clock.call("b", 2)}, clock)
    turns.run(4)
    assert clock.order == "abssbaabssba"
    assert turns.times == {SUBJECT: [3] * 4, "a": [1] * 4, "b": [2] * 4}


def test_rounds_are_what_fits_between_the_bounds() -> None:
    for seconds, wanted in ((0, FEWEST_ROUNDS), (60, 10), (10**6, MOST_ROUNDS)):
        clock = Clock()
        turns = Turns(clock.call("s", 4), {"a": clock.call("a", 2)}, clock)
        assert turns.rounds(seconds) == wanted
        assert clock.order == "sasa"  # warmed up, and measured once
        assert turns.times == {SUBJECT: [], "a": []}


def test_the_interval_is_the_narrowest_of_its_coverage() -> None:
    for n in range(LEAST_ROUNDS, MOST_ROUNDS + 1):
        found = ratio_of([float(i) for i in range(n)])
        assert coverage(n, found.rank) >= COVERAGE > coverage(n, found.rank + 1)
        assert (found.low, found.high) == (found.rank - 1, n - found.rank)
        assert found.judged
    few = ratio_of([3.0, 1.0, 2.0])
    assert (few.median, few.low, few.high, few.judged) == (2, 1, 3, False)


def test_coverage_is_that_of_a_binomial() -> None:
    # All sides of the median that 7 rounds can take; the interval of rank 2 holds it unless at most 1 is on a side.
    sides = list(itertools.product((0, 1), repeat=7))
    assert coverage(7, 2) == sum(1 < sum(one) < 6 for one in sides) / len(sides)


def test_no_rounds_are_no_ratio() -> None:
    with pytest.raises(ValueError, match="no round"):
        ratio_of([])


def made(n: int, rank: int) -> Ratio:
    return Ratio(1.0, 1.0, 1.0, n, rank)


def test_the_false_alarm_rate_is_exact() -> None:
    assert false_alarm(made(9, 1), made(9, 1)) == 1 / comb(18, 9)  # all of the new below all of the old
    # All orders of 4 new and 5 old rounds, with intervals of ranks 2 and 1.
    orders = [set(new) for new in itertools.combinations(range(9), 4)]
    alarms = sum(sorted(new)[2] < sorted(set(range(9)) - new)[0] for new in orders)
    assert false_alarm(made(5, 1), made(4, 2)) == pytest.approx(alarms / len(orders))


def test_intervals_hold_the_median_as_often_as_they_promise() -> None:
    draw = random.Random(1)
    held = 0
    for _ in range(2000):
        found = ratio_of([draw.lognormvariate(0, 0.3) for _ in range(11)])
        held += found.low <= 1 <= found.high
    assert held / 2000 >= COVERAGE - 0.005
