"""Adapters to transformers that break one mechanism fail at its requirement; transformers itself passes."""

from pathlib import Path

import pytest
from broken_transformers import BROKEN
from faults_common import judge

from lmconform.judging.verdict import Verdict

HERE = Path(__file__).with_name("broken_transformers.py")


@pytest.mark.parametrize(("engine", "requirement"), BROKEN.items(), ids=lambda one: getattr(one, "__name__", one))
def test_a_broken_adapter_fails_at_its_requirement(engine, requirement) -> None:
    records = judge(f"{HERE}:{engine.__name__}", requirement)
    assert Verdict.FAIL in {record.verdict for record in records}, [(one.test, one.reason) for one in records]


@pytest.mark.parametrize("requirement", sorted(set(BROKEN.values())))
def test_transformers_passes_the_same_tests(requirement) -> None:
    assert {record.verdict for record in judge("transformers", requirement)} == {Verdict.PASS}
