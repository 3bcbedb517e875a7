"""One engine before the suite: what it shares with the engine before it, and when it ends."""

import pytest

from lmconform.judging import budgets
from lmconform.judging.verdict import Verdict
from lmconform.matrix.campaign import _without_logprobs
from lmconform.matrix.judged import judge
from lmconform.matrix.tokens import TokensAlone
from lmconform.suite.plan import on_one_checkpoint
from lmconform.suite.stock import Stock

SMALL = on_one_checkpoint(2)
LEAK = "lmconform.faults.causal_mask:LeaksOneAhead"


@pytest.fixture
def stock():
    made = Stock()
    yield made
    made.remove()


def only(*names):
    return lambda spec: spec.requirement in names


def test_a_second_engine_takes_the_oracles_of_the_first(monkeypatch, stock):
    computed = []
    right = budgets.Yardstick._compute
    monkeypatch.setattr(
        budgets.Yardstick, "_compute", lambda self, tokens: computed.append(tokens) or right(self, tokens)
    )
    first = judge("reference", SMALL, 3, stock=stock, wanted=only("CM-1"))
    needed = len(computed)
    again = judge("reference", SMALL, 3, stock=stock, wanted=only("CM-1"))
    assert needed > 0
    assert len(computed) == needed
    assert [one["verdict"] for one in first.records] == [one["verdict"] for one in again.records]
    judge("reference", SMALL, 4, stock=stock, wanted=only("CM-1"))
    assert len(computed) > needed, "another seed is another checkpoint"
    judge("reference", SMALL, 3, stock=stock, wanted=only("CM-1"), options={"dtype": "bfloat16"})


def test_engines_of_another_precision_have_budgets_of_their_own(stock):
    for dtype in ("float32", "bfloat16"):
        found = judge("reference", SMALL, 3, stock=stock, wanted=only("CM-1"), options={"dtype": dtype})
        assert Verdict.FAIL not in {one["verdict"] for one in found.records}
    assert len(stock._shelves) == 2


def test_the_first_failure_is_timed_and_may_end_the_run():
    whole = judge(LEAK, SMALL, 0, wanted=only("CM-1", "CM-2"))
    cut = judge(LEAK, SMALL, 0, wanted=only("CM-1", "CM-2"), until=lambda record: record.verdict == Verdict.FAIL)
    assert 0 < cut.caught_after <= cut.seconds
    assert len(cut.records) < len(whole.records)
    assert [one["verdict"] for one in cut.records][-1] == "fail"
    assert judge("reference", SMALL, 0, wanted=only("CM-9")).caught_after is None


def test_failures_are_kept_as_they_are_found():
    """No example of the failing test is tried after the first that failed, but for fresh draws."""
    found = judge(LEAK, SMALL, 0, wanted=lambda spec: spec.requirement == "CM-1" and spec.door == "score")
    failing = [one for one in found.records if one["verdict"] == "fail"]
    assert failing
    assert all(one["examples"] <= SMALL.examples for one in failing)


def test_tokens_alone_has_no_log_probabilities():
    found = judge(
        "lmconform.matrix.tokens:TokensAlone",
        SMALL,
        0,
        options={"engine": "reference", "dtype": "float32"},
        wanted=only("CAT-1", "CAT-7", "CM-1"),
    )
    verdicts = {(one["requirement"], one["verdict"]) for one in found.records}
    assert ("CAT-7", "pass") in verdicts
    assert ("CAT-1", "unsupported") in verdicts
    assert {verdict for name, verdict in verdicts if name == "CM-1"} <= {"unsupported", "pass"}
    assert TokensAlone("reference").choices.ties == "first"


def test_which_tests_need_no_log_probabilities_is_found_by_asking(monkeypatch, stock):
    monkeypatch.setattr(
        "lmconform.matrix.campaign.judge",
        lambda *args, wanted, **more: judge(*args, wanted=only("STOP-1", "CAT-1"), **more),
    )
    found = _without_logprobs(SMALL, 0, stock)
    assert found, "those of STOP-1"
    assert all("log" not in one for one in found), "and none of CAT-1"
