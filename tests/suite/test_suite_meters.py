"""The word ``weighs``: names the number that is off, leaves out what cannot be told, allows what others cause."""

import numpy as np
import pytest

from lmconform.suite.dsl import Scores
from lmconform.suite.expect import Expect
from lmconform.suite.findings import Exceeded, Tally
from lmconform.suite.instruments import BALANCE
from lmconform.suite.meters import measured
from lmconform.suite.plan import Case
from lmconform.suite.subject import joined
from lmconform.suite.weighing import one_pass

LOADS = ((0, 0), (3, 3))


@pytest.fixture
def weighed(bench) -> tuple[Expect, Scores]:
    subject = bench.subject(Case(BALANCE))
    return Expect(subject, Tally()), one_pass(subject, LOADS)


def shifted(scores: Scores, column: int, by: float) -> Scores:
    values = scores.values.copy()
    values[:, column] += by
    return joined([Scores(values, scores.places, scores.columns, scores.logprobs)])


def test_a_right_engine_passes_and_bites(weighed) -> None:
    expect, scores = weighed
    expect.weighs(scores, "mean", "a channel that is 0")
    assert expect.bit


def test_the_number_that_is_off_is_named(weighed) -> None:
    expect, scores = weighed
    skew = 3  # after ZERO, UNIT and EMPTY: only the last norm reads it by itself
    with pytest.raises(Exceeded, match=r"a weight: measured .*, wanted 1.75, at weight of norm, prompts that .* id 3"):
        expect.weighs(shifted(scores, skew, 0.5), "weight", "a weight")


def test_what_other_faults_cause_is_allowed(weighed) -> None:
    expect, scores = weighed
    expect.weighs(shifted(scores, 3, 0.001), "weight", "a weight")


def test_scores_that_are_not_there_are_a_failure(weighed) -> None:
    expect, scores = weighed
    flat = Scores(np.zeros_like(scores.values), scores.places, scores.columns, scores.logprobs)
    with pytest.raises(Exceeded, match="measured nan"):
        expect.weighs(flat, "eps", "eps")


def test_a_number_that_the_format_cannot_tell_decides_nothing(bench, monkeypatch) -> None:
    subject = bench.subject(Case(BALANCE))
    monkeypatch.setattr(type(subject.material.instrument), "telling", lambda self, quantity: 1e-12)
    tally = Tally()
    expect = Expect(subject, tally)
    expect.weighs(one_pass(subject, LOADS), "eps", "eps")
    assert not expect.bit
    assert len(tally.unresolved) == 5
    assert all(not number.decided for number in measured(subject, one_pass(subject, LOADS), "eps"))
