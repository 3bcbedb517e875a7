"""Words that need no instrument: what a fault would move, what decides nothing, what is refused."""

import pytest

from lmconform.checkpoints.heads import scaled
from lmconform.suite.expect import Expect
from lmconform.suite.findings import Edits, Tally, Unfit, unchanged
from lmconform.suite.plan import Case


@pytest.mark.parametrize(("factor", "bites"), [(0.5, True), (1.0, False)])
def test_shows_asks_what_a_fault_would_move(bench, factor, bites) -> None:
    model = bench.subject(Case("loud-0"))
    expect = Expect(model, Tally())
    expect.shows(model.score((1, 2, 3)), lambda checkpoint: scaled(checkpoint, {"v": factor}))
    assert expect.bit is bites


@pytest.mark.parametrize(
    ("fault", "bites"),
    [(None, True), (unchanged, False), (Edits(lambda checkpoint: scaled(checkpoint, {"v": -2.0})), True)],
)
def test_equal_tokens_bite_where_a_fault_would_choose_others(bench, fault, bites) -> None:
    model, prompt = bench.subject(Case("loud-0")), (1, 2, 3)
    (chosen,) = model.new_tokens([prompt], 3)
    expect = Expect(model, Tally())
    expect.tokens(prompt=prompt, got=chosen, wanted=chosen, what="greedy token", fault=fault)
    assert expect.bit is bites


def test_what_decides_nothing_says_why(bench) -> None:
    with pytest.raises(Unfit, match="too coarse"):
        Expect(bench.subject(Case("loud-0")), Tally()).undecided("too coarse")


def test_a_refusal_has_a_reason(bench) -> None:
    model = bench.subject(Case("loud-0"))
    assert "multiple" in model.refusal("uneven-heads", lambda other: other.score((1,)))
    assert model.refusal("repeat-kv", lambda other: other.score((1,))) is None


def test_rows_that_share_no_id_decide_nothing(bench) -> None:
    model = bench.subject(Case("loud-0"))
    scores = model.score((1, 2, 3))
    with pytest.raises(Unfit, match="share 0 ids"):
        Expect(model, Tally()).close(got=scores.only([0, 1]), wanted=scores.only([2, 3]), what="scores")
    with pytest.raises(Unfit, match="share 1 ids"):
        Expect(model, Tally()).agrees(scores.only([7]), what="scores")
