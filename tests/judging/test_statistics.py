"""The tests of draws: exact where they say so, with the error rates that they declare."""

import numpy as np
import pytest
from scipy.stats import binom, multinomial

from lmconform.judging.statistics import (
    CERTAIN,
    CONFIRMATION,
    FALSE_ALARM,
    MOST_QUESTIONS,
    POWER,
    SUSPICION,
    Question,
    ask,
    binomial,
    interval,
    power,
)
from lmconform.spec.numerics import two_sided

LADDER = np.array([0.36, 0.24, 0.16, 0.10, 0.06, 0.04, 0.025, 0.015])
FAIR = np.array([0.5, 0.5])


def coin(equals: int, temperature: float = 1.0) -> np.ndarray:
    """One id with half of the mass at temperature 1, and equal ones."""
    powers = np.exp(np.array([np.log(equals)] + [0.0] * equals) / temperature)
    return powers / powers.sum()


def without(p: np.ndarray, outcome: int) -> np.ndarray:
    left = np.where(np.arange(len(p)) == outcome, 0.0, p)
    return left / left.sum()


def drawing(p: np.ndarray, seed: int):
    generator = np.random.default_rng(seed)
    return lambda count: generator.choice(len(p), size=count, p=p).tolist()


def test_a_run_of_200_questions_fails_a_right_engine_once_in_a_million() -> None:
    assert pytest.approx(1e-6) == MOST_QUESTIONS * FALSE_ALARM


@pytest.mark.parametrize("draws", [1, 2, 7, 40, 333])
@pytest.mark.parametrize("null", [(0.5, 0.5), (0.01, 0.01), (0.0, 0.0), (1.0, 1.0), (0.3, 0.35)])
def test_the_binomial_test_is_exact(draws, null) -> None:
    counts = np.arange(draws + 1)
    values = binomial(counts, np.full(draws + 1, draws), np.array(null[0]), np.array(null[1]))
    for level in (0.2, 0.05, SUSPICION, CONFIRMATION, CERTAIN):
        for true in np.linspace(*null, 3):
            assert binom.pmf(counts[values <= level], draws, true).sum() <= level
        for true in (0.0, 0.2, 0.6, 1.0):
            wanted = binom.pmf(counts[values <= level], draws, true).sum()
            assert power(draws, level, null, true) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(("count", "draws", "p"), [(9, 10, 0.5), (0, 7, 0.3), (7, 7, 0.9), (30, 200, 0.25)])
def test_the_binomial_test_is_that_of_the_page(count, draws, p) -> None:
    value = binomial(np.array(count), np.array(draws), np.array(p), np.array(p))
    assert float(value) == pytest.approx(two_sided(count, draws, p))


@pytest.mark.parametrize("draws", [3, 8, 12])
def test_the_chain_is_exact_at_small_counts(draws) -> None:
    """Over all tables that so many draws can give, the probability of a p-value of at most a is at most a."""
    p = np.array([0.7, 0.2, 0.07, 0.03])
    question = Question(p, ())
    found = []
    for a in range(draws + 1):
        for b in range(draws + 1 - a):
            for c in range(draws + 1 - a - b):
                table = np.array([a, b, c, draws - a - b - c])
                value = question.evidence(np.repeat(np.arange(4), table)).p_value
                found.append((value, multinomial.pmf(table, draws, p)))
    values, weights = np.array(found).T
    assert weights.sum() == pytest.approx(1)
    for level in (0.2, 0.05, 0.01, 1e-3, 1e-5):
        assert weights[values <= level].sum() <= level


@pytest.mark.parametrize("p", [LADDER, FAIR, coin(100)], ids=["ladder", "fair", "coin"])
def test_right_draws_are_suspicious_no_more_often_than_declared(p) -> None:
    question, draw = Question(p, (without(p, len(p) - 1),)), drawing(p, 1)
    values = np.array([question.evidence(np.array(draw(60))).p_value for _ in range(2000)])
    for level in (0.1, 0.01, SUSPICION):
        assert (values <= level).sum() <= binom.ppf(1 - 1e-6, len(values), level)


PLANS = {
    "temperature of 1.1, 1,023 equal ids": (coin(1023), coin(1023, 1.1), (386, 580)),
    "temperature of 1.1, 100 equal ids": (coin(100), coin(100, 1.1), (859, 1289)),
    "bias of 3 points": (FAIR, np.array([0.53, 0.47]), (10215, 15321)),
    "bias of 10 points": (FAIR, np.array([0.6, 0.4]), (919, 1375)),
    "crossing id of mass 1/4": (np.array([0.45, 0.3, 0.25]), np.array([0.6, 0.4, 0]), (29, 50)),
    "crossing id of mass 1/20": (np.array([0.65, 0.3, 0.05]), np.array([13 / 19, 6 / 19, 0]), (162, 279)),
    "5 % copies of one in 64": (np.array([63, 1]) / 64, np.array([0.95 * 63 / 64, 0.05 + 0.95 / 64]), (508, 739)),
}
"""What the page says of the draws that it takes."""


@pytest.mark.parametrize(("right", "wrong", "draws"), PLANS.values(), ids=PLANS)
def test_as_many_are_drawn_as_show_the_fault(right, wrong, draws) -> None:
    question = Question(right, (wrong,))
    assert question.draws(20_000) == draws
    (side,) = question.sides
    null, fault = (float(right[side].sum()),) * 2, float(wrong[side].sum())
    both = power(draws[0], SUSPICION / 2, null, fault) * power(draws[1], CONFIRMATION / 2, null, fault)
    assert both >= POWER
    assert question.draws(draws[1] - 1) is None


@pytest.mark.parametrize(("right", "wrong", "draws"), [one for one in PLANS.values() if one[1][0] != 0.53])
def test_a_fault_is_shown_as_often_as_declared(right, wrong, draws) -> None:
    question = Question(right, (wrong,))
    answers = [ask(question, drawing(wrong, seed), 20_000) for seed in range(300)]
    shown = sum(answer.evidence is not None for answer in answers)
    assert shown >= binom.ppf(1e-3, 300, POWER)


def test_a_right_engine_passes_and_a_suspicion_is_looked_at_again() -> None:
    question = Question(LADDER, (without(LADDER, 1),))
    answers = [ask(question, drawing(LADDER, seed), 2000) for seed in range(300)]
    assert not any(answer.evidence for answer in answers)
    calls = []

    def wrong_once(count: int) -> list[int]:
        calls.append(count)
        return drawing(without(LADDER, 1) if len(calls) == 1 else LADDER, 0)(count)

    unlucky = ask(question, wrong_once, 2000)
    assert (unlucky.evidence, unlucky.suspected, unlucky.draws) == (None, True, sum(calls))
    assert len(calls) == 2


def test_an_outcome_that_cannot_be_fails_at_once() -> None:
    impossible = Question(np.array([0.6, 0.4, 0.0]), (np.array([0.5, 0.4, 0.1]),))
    answer = ask(impossible, lambda count: [0] * (count - 1) + [2], 1000)
    assert answer.evidence.outcomes == (2,)
    assert answer.evidence.p_value == 0
    assert not answer.suspected


def test_the_faults_that_too_many_draws_would_need_are_left_out() -> None:
    small, large = np.array([0.51, 0.49]), np.array([0.6, 0.4])
    assert Question(FAIR, (small, large)).draws(2000) == Question(FAIR, (large,)).draws(2000)
    assert Question(FAIR, (small,)).draws(2000) is None
    assert ask(Question(FAIR, (small,)), drawing(FAIR, 0), 2000) is None


def test_rounding_is_allowed_for() -> None:
    shifted = np.array([0.51, 0.49])  # what errors of 0.02 in two scores make of equal ones
    sure, lenient = Question(FAIR, (), slack=0.0), Question(FAIR, (), slack=0.02)
    outcomes = np.repeat([0, 1], (shifted * 100_000).astype(int))
    assert sure.evidence(outcomes).p_value < CERTAIN
    assert lenient.evidence(outcomes).p_value > 0.1


def test_an_interval_misses_the_truth_as_rarely_as_it_says() -> None:
    for draws, truth, level in ((40, 0.1, 1e-2), (300, 0.5, 1e-4), (25, 0.98, 1e-3)):
        counts = range(draws + 1)
        missed = [not low <= truth <= high for low, high in (interval(count, draws, level) for count in counts)]
        assert sum(binom.pmf(count, draws, truth) for count in counts if missed[count]) <= level
    assert (interval(0, 10, 0.1)[0], interval(10, 10, 0.1)[1]) == (0, 1)
