"""What a gauge says: when readings agree, when an example bites, and what stands on the card."""

from dataclasses import replace

import numpy as np
import pytest

from lmconform.checkpoints import rope_edits
from lmconform.checkpoints.turn_scope import TurnScope
from lmconform.suite.dsl import Gauge
from lmconform.suite.expect import Exceeded, Expect, Tally
from lmconform.suite.instruments import TURN_SCOPE
from lmconform.suite.plan import Case


@pytest.fixture
def example(bench):
    """(model, expect, last row of a prompt) on a turn scope."""
    model = bench.subject(Case(TURN_SCOPE))
    scope = model.instrument(TurnScope)
    return model, Expect(model, Tally()), model.score(scope.at_the_end(33), scope.columns)[-1:]


def disturbed(scores, factor: float):
    """The scores with the first read-out multiplied by ``factor``."""
    values = scores.values.copy()
    values[:, 2] *= factor
    return replace(scores, values=values)


def exchanged(values: np.ndarray, scope: TurnScope) -> np.ndarray:
    """The scores with the read-outs of each head in the opposite order of tokens."""
    heads = values[:, 2:].reshape(len(values), -1, scope.content)[..., ::-1]  # [n, L·H_q, content]
    return np.concatenate([values[:, :2], heads.reshape(len(values), -1)], axis=1)


def test_a_right_reading_agrees_and_bites(example) -> None:
    model, expect, last = example
    Gauge(expect, model.instrument(TurnScope).turn).agrees(last, "turn", fault=rope_edits.of_base_10_000)
    assert expect.bit
    assert 0 < expect.tally.worst < 1


def test_a_fault_that_changes_nothing_does_not_bite(example) -> None:
    model, expect, last = example
    Gauge(expect, model.instrument(TurnScope).turn).agrees(last, "turn", fault=rope_edits.newer_spelling)
    assert not expect.bit
    assert "newer_spelling would move this reading by 0 budgets" in expect.tally.unresolved[0]


@pytest.mark.parametrize("factor", [1.01, -1.0, np.nan])
def test_a_wrong_reading_is_told_with_its_place(example, factor) -> None:
    model, expect, last = example
    scope = model.instrument(TurnScope)
    with pytest.raises(Exceeded) as caught:
        Gauge(expect, scope.turn).agrees(disturbed(last, factor), "turn", fault=rope_edits.still)
    finding = caught.value.finding
    assert finding.where.startswith("position 32 of 33, layer 0 of the reading, row ")
    assert finding.excess > 1
    with pytest.raises(Exceeded):
        Gauge(expect, scope.share).close(got=disturbed(last, factor), wanted=last, what="share", fault=rope_edits.still)


def test_signs_are_judged_only_where_they_stand_out(example) -> None:
    model, expect, last = example
    lead = model.instrument(TurnScope).lead
    Gauge(expect, lead).signs(last, "lead")
    assert expect.bit
    with pytest.raises(Exceeded, match="lead: measured"):
        Gauge(expect, lead).signs(replace(last, values=exchanged(last.values, model.instrument(TurnScope))), "lead")
    undecided = Expect(model, Tally())
    Gauge(undecided, lambda scores: 0 * lead(scores)).signs(last, "nothing")
    assert not undecided.bit
    assert undecided.tally.unresolved
