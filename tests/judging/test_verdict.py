"""Verdicts of a requirement and of a run."""

from itertools import combinations

import pytest

from lmconform.judging import verdict
from lmconform.judging.verdict import BLOCKING, MEANING, MIN_BITES, Verdict, exit_code

V = Verdict
MANY = 10 * MIN_BITES


def merge(verdicts: list[Verdict], bites: int) -> Verdict:
    """Merge verdicts of tests that each ask through another door."""
    return verdict.merge([(f"door {number}", one) for number, one in enumerate(verdicts)], bites)


def test_what_a_test_leaves_unresolved_another_decides_through_the_same_door() -> None:
    pairs = [("score", V.PASS), ("generate", V.UNRESOLVED)]
    assert verdict.merge(pairs, MANY) == V.UNRESOLVED
    assert verdict.merge([*pairs, ("generate", V.PASS)], MANY) == V.PASS
    assert verdict.merge([*pairs, ("generate", V.PASS)], MIN_BITES - 1) == V.VACUOUS
    assert verdict.merge([*pairs, ("generate", V.FAIL)], MANY) == V.FAIL


@pytest.mark.parametrize(("one", "other"), list(combinations(Verdict, 2)))
def test_the_stronger_of_two_wins(one, other) -> None:
    assert merge([one, other], MANY) == merge([other, one], MANY) == one


def test_the_order_is_that_of_the_standard() -> None:
    assert list(Verdict) == ["fail", "error", "vacuous", "not-run", "unresolved", "pass", "unsupported"]
    assert set(MEANING) == set(Verdict)


@pytest.mark.parametrize("bites", range(MIN_BITES + 1))
def test_a_pass_that_hardly_bit_is_vacuous(bites) -> None:
    wanted = V.PASS if bites >= MIN_BITES else V.VACUOUS
    assert merge([V.PASS, V.PASS, V.UNSUPPORTED], bites) == wanted


def test_what_is_decided_without_a_bite_stays() -> None:
    assert merge([V.FAIL, V.PASS], 0) == V.FAIL
    assert merge([V.UNSUPPORTED], 0) == V.UNSUPPORTED
    assert merge([V.UNRESOLVED, V.UNSUPPORTED], 0) == V.UNRESOLVED
    assert merge([], MANY) == V.NOT_RUN


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        ([V.PASS], 0),
        ([V.PASS, V.UNSUPPORTED, V.UNRESOLVED], 0),
        *[([V.PASS, blocking], 1) for blocking in BLOCKING],
        ([V.FAIL], 1),
        ([V.ERROR], 1),
        ([V.UNSUPPORTED], 2),
        ([V.UNRESOLVED], 2),
        ([V.NOT_RUN], 2),
        ([], 2),
    ],
)
def test_exit_codes(verdicts, code) -> None:
    assert exit_code(verdicts) == code
