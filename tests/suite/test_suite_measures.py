"""Readings of an instrument: what is within bounds, what is not, and what bites."""

from dataclasses import replace

import numpy as np
import pytest

from lmconform.checkpoints.dial_scope import DialScope
from lmconform.checkpoints.heads import scaled
from lmconform.suite.expect import Exceeded, Expect, Tally, Unfit
from lmconform.suite.instruments import DIAL
from lmconform.suite.plan import Case

TOKENS = (0, 2, 1, 2, 0, 1)


@pytest.fixture
def model(bench):
    return bench.subject(Case(DIAL))


@pytest.fixture
def dial(model) -> DialScope:
    return model.instrument(DialScope)


@pytest.fixture
def scores(model, dial):
    return model.score(TOKENS, dial.columns)


def changed(scores, row: int, column: int, value: float):
    values = np.array(scores.values)
    values[row, column] = value
    return replace(scores, values=values)


def flatter(checkpoint):
    return scaled(checkpoint, {"q": 0.9})


def test_right_readings_are_within_bounds_and_bite(model, dial, scores) -> None:
    tally = Tally()
    expect = Expect(model, tally)
    expect.measures(scores, dial.shares, "share", fault=flatter)
    assert expect.bit
    assert 0 < tally.worst < 1


@pytest.mark.parametrize("value", [0.01, float("nan")])
def test_a_wrong_reading_is_named_by_its_place(model, dial, scores, value) -> None:
    which = (1 * dial.heads + 5) * dial.content + 2  # layer 1, head 5, token 2
    with pytest.raises(Exceeded, match="position 3 of 6, layer 1, head 5, reading 2"):
        Expect(model, Tally()).measures(changed(scores, 3, 2 + which, value), dial.weights, "weight")


def test_two_results_are_compared_with_each_other(model, dial, scores) -> None:
    expect = Expect(model, Tally())
    expect.measures(scores, dial.shares, "share", like=scores)
    assert expect.bit
    with pytest.raises(Exceeded, match="share: measured"):
        expect.measures(scores[4:5], dial.shares, "share", like=scores[3:4])


def test_a_fault_within_the_bounds_does_not_bite(model, dial, scores) -> None:
    tally = Tally()
    expect = Expect(model, tally)
    expect.measures(scores, dial.shares, "share", fault=lambda checkpoint: scaled(checkpoint, {"v": 2.0}))
    assert not expect.bit
    assert "hide the fault" in tally.unresolved[0]


@pytest.mark.parametrize(("factor", "bites"), [(0.5, True), (1.0, False)])
def test_shows_asks_what_a_fault_would_move(bench, factor, bites) -> None:
    model = bench.subject(Case("loud-0"))
    expect = Expect(model, Tally())
    expect.shows(model.score((1, 2, 3)), lambda checkpoint: scaled(checkpoint, {"v": factor}))
    assert expect.bit is bites


def test_what_decides_nothing_says_why(model) -> None:
    with pytest.raises(Unfit, match="too coarse"):
        Expect(model, Tally()).undecided("too coarse")


def test_a_refusal_has_a_reason(bench) -> None:
    model = bench.subject(Case("loud-0"))
    assert "multiple" in model.refusal("uneven-heads", lambda other: other.score((1,)))
    assert model.refusal("repeat-kv", lambda other: other.score((1,))) is None
