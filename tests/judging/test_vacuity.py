"""No requirement passes on fewer than five examples that could have shown a fault, or through a door where none did."""

from collections.abc import Iterable

import pytest

from lmconform.judging.verdict import MIN_BITES, Verdict
from lmconform.report.results import Outcome, Results
from lmconform.spec import Requirement, requirements

ALL = list(requirements().values())
SEVERAL = [one for one in ALL if len(one.access) > 1]


def records(requirement: Requirement, bites: Iterable[int]) -> list[dict]:
    """A passing test for each door of the requirement."""
    rows = zip(requirement.access, bites, strict=False)
    return [
        {"requirement": requirement.id, "door": door, "verdict": "pass", "bites": found, "examples": 5, "worst": 0.0}
        for door, found in rows
    ]


def exit_code(requirement: Requirement, some: list[dict]) -> int:
    """Of a run of these tests, beside another requirement that passes."""
    other = next(one for one in ALL if one != requirement)
    passing = records(other, [MIN_BITES] * len(other.access))
    return Results({}, {}, {requirement.id: len(some), other.id: len(passing)}, [*some, *passing]).exit_code()


@pytest.mark.parametrize("requirement", ALL, ids=lambda one: one.id)
def test_fewer_than_five_bites_of_all_doors_are_no_pass(requirement: Requirement) -> None:
    doors = len(requirement.access)
    few = [(MIN_BITES - 1) // doors + (door < (MIN_BITES - 1) % doors) for door in range(doors)]
    assert sum(few) == MIN_BITES - 1
    assert Outcome(requirement, records(requirement, few)).verdict == Verdict.VACUOUS
    assert exit_code(requirement, records(requirement, few)) == 1
    enough = [few[0] + 1, *few[1:]]
    assert Outcome(requirement, records(requirement, enough)).verdict == Verdict.PASS
    assert exit_code(requirement, records(requirement, enough)) == 0


@pytest.mark.parametrize("requirement", SEVERAL, ids=lambda one: one.id)
def test_a_door_where_nothing_bit_is_no_pass_whatever_the_others_showed(requirement: Requirement) -> None:
    all_but_one = records(requirement, [0, *[MIN_BITES] * (len(requirement.access) - 1)])
    outcome = Outcome(requirement, all_but_one)
    assert outcome.verdict == Verdict.VACUOUS
    assert outcome.silent == [requirement.access[0]]
    assert exit_code(requirement, all_but_one) == 1
    assert Outcome(requirement, all_but_one[1:]).verdict == Verdict.PASS  # as --access without that door judges


def test_a_silent_test_beside_one_that_bit_is_a_pass() -> None:
    (first, *_) = SEVERAL
    bitten = records(first, [MIN_BITES] * len(first.access))
    outcome = Outcome(first, [*bitten, *records(first, [0])])
    assert outcome.verdict == Verdict.PASS
    assert outcome.silent == []


@pytest.mark.parametrize(("declining", "wanted"), [(0, Verdict.VACUOUS), (4, Verdict.UNSUPPORTED)])
@pytest.mark.parametrize("verdict", [Verdict.PASS, Verdict.UNSUPPORTED])
def test_too_few_bites_are_no_lack_of_the_suite_where_the_engine_declined_examples(
    declining: int, wanted: Verdict, verdict: Verdict
) -> None:
    (first, *_) = ALL
    bitten, other = records(first, [MIN_BITES - 1]), records(first, [0])
    other[0] |= {"declined": declining, "verdict": verdict, "reason": "the engine refused: too long"}
    assert Outcome(first, [*bitten, *other]).verdict == wanted
