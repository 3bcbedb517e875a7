"""What the suite says of the model that two ranks share, and of one that is cut in a wrong way."""

from pathlib import Path

import numpy as np
import pytest
from own_environment import judge

from lmconform.adapter import Needs
from lmconform.engines.reference import Reference
from lmconform.engines.reference_tp import ReferenceTP
from lmconform.judging.verdict import Verdict, merge
from lmconform.transport.client import Connection, EngineSpec

FAULTS = {
    "AddsTheBiasOnEachRank": "DEC-7",
    "GivesKVHeadsToOtherRanks": "GQA-1",
    "LosesAPartOfTheSum": "DEC-2",
}


def verdicts(target: str, *requirements: str) -> dict[str, Verdict]:
    """What the suite says through ``score``, in this process, whose modules the other rank can import."""
    connection = Connection.start(EngineSpec(target, in_process=True))
    found = judge(connection, *requirements, doors=("score",))
    return {
        name: merge([(one.door, one.verdict, one.bites) for one in found if one.requirement == name])
        for name in requirements
    }


def test_two_ranks_conform() -> None:
    requirements = set(FAULTS.values())
    assert verdicts("reference-tp", *requirements) == dict.fromkeys(requirements, Verdict.PASS)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_cut_is_named(fault: str) -> None:
    assert verdicts(f"tensor_parallel_faults:{fault}", FAULTS[fault]) == {FAULTS[fault]: Verdict.FAIL}


def test_one_rank_needs_no_other(llama: Path) -> None:
    engine = ReferenceTP(ranks="1")
    try:
        got = engine.load(llama, Needs()).score([3, 1, 4, 1, 5])
    finally:
        engine.close()
    np.testing.assert_allclose(got, Reference().load(llama, Needs()).score([3, 1, 4, 1, 5]), rtol=0, atol=5e-5)
