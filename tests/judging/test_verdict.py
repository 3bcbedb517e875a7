"""Verdicts of a requirement and of a run."""

from itertools import combinations

import pytest

from lmconform.judging import verdict
from lmconform.judging.verdict import BLOCKING, MEANING, MIN_BITES, Verdict, exit_code

V = Verdict
MANY = 10 * MIN_BITES


def merge(verdicts: list[Verdict], bites: int) -> Verdict:
    """Merge verdicts of tests through one door, of which the first has all bites."""
    return verdict.merge([("score", one, bites if number == 0 else 0) for number, one in enumerate(verdicts)])


def test_what_a_test_leaves_unresolved_another_decides_through_the_same_door() -> None:
    tests = [("score", V.PASS, MANY), ("generate", V.UNRESOLVED, 0)]
    assert verdict.merge(tests) == V.UNRESOLVED
    assert verdict.merge([*tests, ("generate", V.PASS, 1)]) == V.PASS
    assert verdict.merge([*tests, ("generate", V.PASS, 0)]) == V.UNRESOLVED
    assert verdict.merge([("score", V.PASS, 3), tests[1], ("generate", V.PASS, 1)]) == V.VACUOUS
    assert verdict.merge([*tests, ("generate", V.FAIL, 0)]) == V.FAIL


def test_what_bit_at_one_door_says_nothing_of_another() -> None:
    bitten, silent = ("score", V.PASS, MANY), ("generate", V.PASS, 0)
    assert verdict.merge([bitten, silent]) == V.VACUOUS
    assert verdict.merge([bitten, silent, ("generate", V.PASS, 1)]) == V.PASS
    assert verdict.merge([bitten, silent, ("session", V.UNRESOLVED, 0)]) == V.VACUOUS
    assert verdict.merge([bitten, ("generate", V.UNSUPPORTED, 0)]) == V.PASS
    assert verdict.merge([bitten, silent, ("generate", V.FAIL, 1)]) == V.FAIL


@pytest.mark.parametrize(("one", "other"), list(combinations(Verdict, 2)))
def test_the_stronger_of_two_doors_wins(one, other) -> None:
    tests = [("score", one, MANY), ("generate", other, MANY)]
    assert verdict.merge(tests) == verdict.merge(tests[::-1]) == one


def test_the_order_is_that_of_the_standard() -> None:
    order = "fail error unexpected vacuous not-run known unresolved pass unsupported"
    assert list(Verdict) == order.split()
    assert set(MEANING) == set(Verdict)


@pytest.mark.parametrize("bites", range(MIN_BITES + 1))
def test_a_pass_that_hardly_bit_is_vacuous(bites) -> None:
    wanted = V.PASS if bites >= MIN_BITES else V.VACUOUS
    assert merge([V.PASS, V.PASS, V.UNSUPPORTED], bites) == wanted


def test_what_is_decided_without_a_bite_stays() -> None:
    assert merge([V.FAIL, V.PASS], 0) == V.FAIL
    assert merge([V.UNSUPPORTED], 0) == V.UNSUPPORTED
    assert merge([V.UNRESOLVED, V.UNSUPPORTED], 0) == V.UNRESOLVED
    assert merge([V.UNRESOLVED, V.PASS], 0) == V.VACUOUS
    assert merge([], MANY) == V.NOT_RUN


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        ([V.PASS], 0),
        ([V.PASS, V.UNSUPPORTED, V.UNRESOLVED], 0),
        *[([V.PASS, blocking], 1) for blocking in BLOCKING],
        ([V.FAIL], 1),
        ([V.ERROR], 1),
        ([V.PASS, V.KNOWN], 0),
        ([V.KNOWN], 1),
        ([V.UNEXPECTED], 1),
        ([V.UNSUPPORTED], 2),
        ([V.UNRESOLVED], 2),
        ([V.NOT_RUN], 2),
        ([], 2),
    ],
)
def test_exit_codes(verdicts, code) -> None:
    assert exit_code(verdicts) == code
