"""Both ways: every requirement has a test at each of its doors, and every test names a requirement as it stands."""

from collections import defaultdict

import pytest

from lmconform.faults import FAULTS
from lmconform.spec import access, requirements
from lmconform.suite.choose import DOORS
from lmconform.suite.modules import decisions


def test_every_requirement_has_a_test_at_each_door_that_decides_it() -> None:
    tested = defaultdict(set)
    for spec in decisions():
        tested[spec.requirement].add(access(spec.door))
    assert {name: set(one.access) for name, one in requirements().items()} == dict(tested)


def test_every_test_was_written_for_the_sentence_that_stands_on_the_page() -> None:
    known = requirements()
    for spec in decisions():
        assert spec.digest == known[spec.requirement].digest, (
            f"{spec.body.__name__} was written for another wording of {spec.requirement}. Read the test again, then "
            f"change its digest to {known[spec.requirement].digest}."
        )


def test_every_door_is_known() -> None:
    assert {spec.door for spec in decisions()} <= set(DOORS)


def test_every_must_has_a_planted_fault() -> None:
    musts = {name for name, one in requirements().items() if one.keyword.startswith("MUST")}
    assert musts <= {fault.requirement for fault in FAULTS} <= set(requirements())


def test_names_of_tests_are_unique() -> None:
    names = [spec.body.__name__ for spec in decisions()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_fault_is_described(fault) -> None:
    assert fault.summary.endswith(".")
    project, _, number = fault.seen_in.partition("#")
    assert project
    assert number.isdigit()
