"""Two planted faults a requirement are caught by the requirement that they break; the reference, by none.

All of them: ``nox -s faults``.
"""

from itertools import groupby

import pytest
from faults_common import judge

from lmconform.faults import FAULTS, Fault
from lmconform.judging.verdict import Verdict
from lmconform.spec import requirements

MOST = 2


def requirement_of(fault: Fault) -> str:
    return fault.requirement


GATE = [fault for _, own in groupby(sorted(FAULTS, key=requirement_of), requirement_of) for fault in list(own)[:MOST]]
"""Two a requirement."""


@pytest.mark.parametrize("fault", GATE, ids=lambda fault: fault.name)
def test_a_planted_fault_fails_at_its_requirement(fault) -> None:
    records = judge(fault.target, fault.requirement, regime=fault.regime)
    failed = [record for record in records if record.verdict == Verdict.FAIL]
    assert failed, [(record.test, record.verdict, record.reason) for record in records]
    assert all(record.finding["where"] and record.counterexample for record in failed)


@pytest.mark.parametrize("requirement", sorted({fault.requirement for fault in FAULTS}))
def test_the_reference_passes_the_same_tests(requirement) -> None:
    engine = "torch-kernels" if requirements()[requirement].access == ("operators",) else "reference"
    records = judge(engine, requirement)
    assert {record.verdict for record in records} == {Verdict.PASS}
    assert sum(record.bites for record in records) >= 5


@pytest.mark.parametrize(
    ("name", "requirement", "words"),
    [
        ("LeaksOneAhead", "CM-4", ("layer 0", "head", "exactly 0")),
        ("LeaksInTheLastHead", "CM-4", ("head 7",)),
        ("MasksTheFirstLayerOnly", "CM-4", ("layer 1",)),
        ("ExcludesItself", "CM-2", ("position 1 ", "looking at position 1")),
        ("AlignsChunksAtTheUpperLeft", "CM-5", ("head 0", "beside")),
        ("MasksWithMinus10", "CM-6", ("measured 1,", "exactly 0")),
    ],
)
def test_the_card_names_position_head_and_weight(name, requirement, words) -> None:
    records = judge(f"lmconform.faults.causal_mask:{name}", requirement, small=True)
    reasons = [record.reason for record in records if record.verdict == Verdict.FAIL]
    assert any(all(word in reason for word in words) for reason in reasons), reasons
