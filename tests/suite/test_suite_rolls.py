"""What becomes of engines whose draws repeat: seeds of their own where those help, and no verdict where they do not."""

import dataclasses

import pytest

from lmconform.engines.reference import ReferenceModel
from lmconform.judging.verdict import Verdict
from lmconform.suite import rolls
from lmconform.suite.bench import Bench, Record
from lmconform.suite.modules import decisions
from lmconform.suite.plan import Case

TESTS = {spec.body.__name__: spec for spec in decisions()}


def judge(bench: Bench, test: str) -> Record:
    return bench.judge(TESTS[test], Case("dice"))


@pytest.fixture(autouse=True)
def forgotten():
    """What was found out of a loaded model is kept with it, and the engine changes here while it is loaded."""
    yield
    for kept in (rolls._varies, rolls._check_scores):
        kept.cache_clear()


@pytest.fixture
def seeds(monkeypatch):
    """Make the reference use the seed that a function gives for the one that was asked for."""
    right = ReferenceModel._rows

    def use(chosen) -> None:
        monkeypatch.setattr(
            ReferenceModel, "_rows", lambda self, one: right(self, dataclasses.replace(one, seed=chosen(one.seed)))
        )

    return use


def test_a_fixed_default_seed_is_varied(bench, seeds) -> None:
    seeds(lambda seed: 7 if seed is None else seed)
    record = judge(bench, "test_a_call_knows_nothing_of_the_call_before")
    assert (record.verdict, record.questions) == (Verdict.PASS, 1)


def test_draws_that_no_seed_changes_are_not_judged(bench, seeds) -> None:
    seeds(lambda seed: 7)
    record = judge(bench, "test_a_call_knows_nothing_of_the_call_before")
    assert (record.verdict, record.questions) == (Verdict.UNSUPPORTED, 0)


def test_an_engine_whose_scores_are_wrong_is_not_blamed_for_its_draws(bench, monkeypatch) -> None:
    bench.subject(Case("dice"))  # with sound scores in the preflight
    right = ReferenceModel._score
    monkeypatch.setattr(ReferenceModel, "_score", lambda *given: [1.5 * one for one in right(*given)])
    record = judge(bench, "test_top_k_keeps_k")
    assert record.verdict == Verdict.UNRESOLVED
    assert "scores of the dice are wrong" in record.reason
