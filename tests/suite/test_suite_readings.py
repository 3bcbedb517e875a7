"""What is said of a reading: when it agrees, when an example bites, and what stands on the card."""

from dataclasses import replace

import numpy as np
import pytest

from lmconform.checkpoints import rope_edits
from lmconform.checkpoints.dial_scope import DialScope
from lmconform.checkpoints.heads import scaled
from lmconform.checkpoints.turn_scope import TurnScope
from lmconform.suite.expect import Expect
from lmconform.suite.findings import Edits, Exceeded, Tally
from lmconform.suite.instruments import DIAL, TURN_SCOPE
from lmconform.suite.plan import Case

TOKENS = (0, 2, 1, 2, 0, 1)


def changed(scores, row: int, column: int, value: float):
    values = np.array(scores.values)
    values[row, column] = value
    return replace(scores, values=values)


@pytest.fixture
def dialled(bench):
    """(dial, expect, scores of steps)."""
    model = bench.subject(Case(DIAL))
    dial = model.instrument(DialScope)
    return dial, Expect(model, Tally()), model.score(TOKENS, dial.columns)


def flatter(checkpoint):
    return scaled(checkpoint, {"q": 0.9})


def larger_values(checkpoint):
    return scaled(checkpoint, {"v": 2.0})


def test_right_shares_are_within_bounds_and_bite(dialled) -> None:
    dial, expect, scores = dialled
    expect.reading(dial.shares).agrees(scores, "share", fault=flatter)
    assert expect.bit
    assert 0 < expect.tally.worst < 1


@pytest.mark.parametrize("value", [0.01, float("nan")])
def test_a_wrong_weight_is_named_by_its_place(dialled, value) -> None:
    dial, expect, scores = dialled
    which = (1 * dial.heads + 5) * dial.content + 2  # layer 1, head 5, token 2
    with pytest.raises(Exceeded, match="position 3 of 6, layer 1, head 5, reading 2") as caught:
        expect.reading(dial.weights).agrees(changed(scores, 3, 2 + which, value), "weight")
    assert caught.value.finding.excess > 1


def test_a_reading_of_one_element_is_named_by_its_head(dialled) -> None:
    dial, expect, scores = dialled
    which = (1 * dial.heads + 5) * dial.content + 2
    with pytest.raises(Exceeded, match=r"position 3 of 6, layer 1, head 5$"):
        expect.reading(dial.gate).agrees(changed(scores, 3, 2 + which, 0.01), "weight")


def test_two_results_are_compared_with_each_other(dialled) -> None:
    dial, expect, scores = dialled
    expect.reading(dial.shares).close(got=scores, wanted=scores, what="share")
    assert expect.bit
    with pytest.raises(Exceeded, match="share: measured"):
        expect.reading(dial.shares).close(got=scores[4:5], wanted=scores[3:4], what="share")


def test_a_fault_of_both_sides_moves_what_is_between_them(dialled) -> None:
    dial, expect, scores = dialled
    expect.reading(dial.shares).close(got=scores, wanted=scores, what="share", fault=flatter)
    assert not expect.bit
    expect.reading(dial.shares).close(got=scores, wanted=scores, what="share", fault=Edits(flatter))
    assert expect.bit


def test_a_fault_within_the_bounds_does_not_bite(dialled) -> None:
    dial, expect, scores = dialled
    expect.reading(dial.shares).agrees(scores, "share", fault=larger_values)
    assert not expect.bit
    assert "larger_values would move this reading by" in expect.tally.unresolved[0]


def test_a_reading_near_0_does_not_bite(dialled) -> None:
    dial, expect, scores = dialled
    expect.reading(lambda values: 0 * dial.shares(values)).agrees(scores, "nothing")
    assert not expect.bit
    assert "of 0" in expect.tally.unresolved[0]


@pytest.mark.parametrize("value", [0.7, float("nan")])
def test_a_row_that_a_legal_way_cannot_read_is_neither_right_nor_wrong(dialled, value) -> None:
    dial, expect, scores = dialled
    exact = expect.subject.yardstick.oracle(TOKENS)[:, dial.columns]

    def fragile(values):
        """In the last row, a number for the oracle, ``value`` for the engine, and none for legal ways."""
        read = np.array(dial.shares(values))
        if not np.array_equal(values, exact):
            read[-1] = value if values is scores.values else np.nan
        return read

    expect.reading(fragile).agrees(scores, "share")
    assert expect.bit  # by the other rows
    assert expect.tally.worst < 1


def test_a_bound_of_0_allows_an_exact_reading_alone(dialled) -> None:
    dial, expect, scores = dialled

    def negative(values):
        return np.minimum(dial.weights(values), 0)

    expect.reading(negative).agrees(scores[:1], "negative weight")
    which = 2 + 1  # layer 0, head 0, token 1
    with pytest.raises(Exceeded, match="wanted 0, at position 0 of 6, layer 0, head 0, reading 1"):
        expect.reading(negative).agrees(changed(scores[:1], 0, which, -1.0), "negative weight")


@pytest.fixture
def turned(bench):
    """(scope, expect, last row of a prompt) on a turn scope."""
    model = bench.subject(Case(TURN_SCOPE))
    scope = model.instrument(TurnScope)
    return scope, Expect(model, Tally()), model.score(scope.at_the_end(33), scope.columns)[-1:]


def disturbed(scores, factor: float):
    """The scores with the first read-out multiplied by ``factor``."""
    values = scores.values.copy()
    values[:, 2] *= factor
    return replace(scores, values=values)


def exchanged(values: np.ndarray, scope: TurnScope) -> np.ndarray:
    """The scores with the read-outs of each head in the opposite order of tokens."""
    heads = values[:, 2:].reshape(len(values), -1, scope.content)[..., ::-1]  # [n, L·H_q, content]
    return np.concatenate([values[:, :2], heads.reshape(len(values), -1)], axis=1)


def test_a_right_turn_agrees_and_bites(turned) -> None:
    scope, expect, last = turned
    expect.reading(scope.turn).agrees(last, "turn", fault=rope_edits.of_base_10_000)
    assert expect.bit
    assert 0 < expect.tally.worst < 1


def test_a_fault_that_changes_nothing_does_not_bite(turned) -> None:
    scope, expect, last = turned
    expect.reading(scope.turn).agrees(last, "turn", fault=rope_edits.newer_spelling)
    assert not expect.bit
    assert "newer_spelling would move this reading by 0 budgets" in expect.tally.unresolved[0]


@pytest.mark.parametrize("factor", [1.01, -1.0, np.nan])
def test_a_wrong_turn_is_told_with_its_place(turned, factor) -> None:
    scope, expect, last = turned
    with pytest.raises(Exceeded) as caught:
        expect.reading(scope.turn, head="pair").agrees(disturbed(last, factor), "turn", fault=rope_edits.still)
    finding = caught.value.finding
    assert finding.where.startswith("position 32 of 33, layer 0, pair ")
    assert finding.excess > 1
    with pytest.raises(Exceeded):
        expect.reading(scope.share).close(
            got=disturbed(last, factor), wanted=last, what="share", fault=Edits(rope_edits.still)
        )


def test_each_side_brings_its_own_legal_errors(turned) -> None:
    """In a long prompt less weight lies on the content, so that its shares are less exact."""
    scope, expect, last = turned
    longer = expect.subject.score(scope.at_the_end(129), scope.columns)[-1:]
    shares = []
    for got, wanted in ((longer, last), (last, longer)):
        expect.reading(scope.share).close(got=got, wanted=wanted, what="share", fault=Edits(rope_edits.still))
        shares.append(expect.tally.worst)
    assert shares[0] == shares[1] < 0.5


def test_signs_are_judged_only_where_they_stand_out(turned) -> None:
    scope, expect, last = turned
    expect.reading(scope.lead).signs(last, "lead")
    assert expect.bit
    with pytest.raises(Exceeded, match="lead: measured"):
        expect.reading(scope.lead).signs(replace(last, values=exchanged(last.values, scope)), "lead")
    undecided = Expect(expect.subject, Tally())
    undecided.reading(lambda scores: 0 * scope.lead(scores)).signs(last, "nothing")
    assert not undecided.bit
    assert undecided.tally.unresolved
