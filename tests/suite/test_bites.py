"""What examples claim to show, a planted fault shows; a claim without anything behind it is recognised."""

from collections.abc import Iterator

import pytest

from lmconform.calibrate.bites import Measuring, Row
from lmconform.faults import FAULTS
from lmconform.spec import requirements
from lmconform.suite.dsl import SCOPE, Draw, Expect, Subject, decides, lengths
from lmconform.suite.examples import Example
from lmconform.suite.modules import decisions

SAMPLE = (
    *("CM-9", "CM-11"),
    *("SDP-8", "SDP-10"),
    "GQA-2",
    *("ROPE-12", "ROPE-16"),
    *("PNR-5", "PNR-9"),
    *("KV-2", "KV-4"),
    "DEC-4",
    *("CAT-3", "CAT-6"),
    *("STOP-5", "STOP-14", "STOP-15", "STOP-20"),
)
"""Cheap requirements of every page."""


@pytest.fixture(scope="module")
def measuring() -> Iterator[Measuring]:
    made = Measuring()
    yield made
    made.close()


@pytest.mark.parametrize("requirement", SAMPLE)
def test_at_every_door_most_claims_are_shown_by_a_planted_fault(measuring: Measuring, requirement: str) -> None:
    rows = measuring.rows([spec for spec in decisions() if spec.requirement == requirement])
    assert {row.verdict for row in rows if row.asked} == {"true"}, "\n".join(row.line() for row in rows)


def test_the_sample_is_of_every_page() -> None:
    assert {requirements()[one].page for one in SAMPLE} == {one.page for one in requirements().values()}


DIGEST = requirements()["CM-4"].digest


@decides("CM-4", DIGEST, door="score", on=(SCOPE,), length=lengths(at_least=2))
def lies(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    model.score(draw.tokens(length))
    expect.bites(True)


@decides("CM-4", DIGEST, door="score", on=(SCOPE,), length=lengths(at_least=2))
def says_nothing(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    model.score(draw.tokens(length))


@pytest.mark.parametrize(("test", "verdict"), [(lies, "false"), (says_nothing, "no claim")])
def test_a_test_that_shows_nothing_is_recognised(measuring: Measuring, test, verdict: str) -> None:
    (row,) = measuring.rows([test.decides])
    assert row.verdict == verdict
    assert not row.shown
    assert "CM-4" in row.line()
    assert verdict in row.line()


def test_a_requirement_without_a_fault_is_not_called_false(measuring: Measuring) -> None:
    (row,) = measuring.rows([lies.decides], [fault for fault in FAULTS if fault.requirement != "CM-4"])
    assert row.verdict == "no fault"


@pytest.mark.parametrize(("seen", "verdict"), [(0, "false"), (1, "generous"), (2, "generous"), (3, "true")])
def test_fewer_than_half_is_generous(seen: int, verdict: str) -> None:
    claimed = [Example({"length": number}, 0) for number in range(5)]
    row = Row(lies.decides, SCOPE, claimed, shown={"A": claimed[:seen]}, asked=1)
    assert row.verdict == verdict
    assert row.unshown == claimed[seen:]
