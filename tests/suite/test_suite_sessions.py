"""Sessions under test: what they hold, the sequences that they are taken through, and what these would show."""

from contextlib import ExitStack

import numpy as np
import pytest

from lmconform.adapter import Refused
from lmconform.suite import test_kv_sessions
from lmconform.suite.dsl import Draw, Expect
from lmconform.suite.findings import Tally
from lmconform.suite.plan import Case
from lmconform.suite.sessions import CLOSE, EXTEND, FORK, PREFIX, TRUNCATE, OnePass, Play, hides, hold


@pytest.fixture
def model(bench):
    return bench.subject(Case("loud-0"))


def test_a_session_knows_its_tokens(model) -> None:
    with model.open() as session:
        first = session.extend((1, 2, 3))
        with session.fork() as twin:
            twin.extend((4,))
            session.truncate(1)
            session.feed((5, 6))
            assert (session.tokens, twin.tokens) == ((1, 5, 6), (1, 2, 3, 4))
        assert first.places == tuple(((1, 2, 3), position) for position in range(3))
        assert session.cache_bytes() > 0
        with pytest.raises(Refused):
            session.truncate(4)
    session.close()
    with pytest.raises(RuntimeError, match="closed"):
        session.extend((1,))


def test_a_model_with_other_room(model) -> None:
    sizes = []
    for tokens in (32, 64):
        with model.with_room(tokens).open() as session:
            sizes.append(session.cache_bytes())
    assert sizes[0] < sizes[1]


def test_all_36_pairs_are_tried_once() -> None:
    groups = ("PAIRS", "FORKED", "CUT", "FORKED_AND_CUT")
    tried = [pair for name in groups for pair in getattr(test_kv_sessions, name)]
    assert len(tried) == len(set(tried)) == 36


def test_branches_have_tokens_of_their_own(model) -> None:
    with ExitStack() as stack:
        play = Play(model, Draw(0, model.vocab_size), stack)
        for operation in [
            (EXTEND, 0, 5),
            (FORK, 0, 0),
            (EXTEND, 0, 4),
            (EXTEND, 1, 4),
            (TRUNCATE, 0, 5),
            (EXTEND, 0, 4),
        ]:
            play.perform(operation)
        ends = [scores.places[0][0] for scores in play.heard[1:]]
        assert {len(end) for end in ends} == {9}
        assert len({end[5:] for end in ends}) == 3
        assert len({end[:5] for end in ends}) == 1


def test_a_play_goes_on_after_everything_is_closed(model) -> None:
    with ExitStack() as stack:
        play = Play(model, Draw(0, model.vocab_size), stack)
        play.run([(CLOSE, 0, 0), (EXTEND, 0, 5)])
        assert len(play.live) == 1
    assert [len(scores) for scores in play.heard] == [PREFIX, 5, 3, 2]


def test_one_pass_asks_once_and_works_without_score(model, monkeypatch) -> None:
    one_pass = OnePass(model)
    whole = one_pass((1, 2, 3, 4))
    assert np.array_equal(one_pass((1, 2)).values, whole.values[:2])
    monkeypatch.setattr(model._remote, "offers", ("open",))
    assert np.allclose(OnePass(model)((1, 2, 3, 4)).values, whole.values, atol=1e-4)


def test_hidden_keys_are_hidden_from_later_queries_alone() -> None:
    assert hides(1, 3)(2, 5).astype(int).tolist() == [[1, 0, 0, 1, 0], [1, 0, 0, 1, 1]]
    assert hides(1, 3)(4, 4).astype(int).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 1]]


def test_what_holds_bites(model) -> None:
    tally = Tally()
    expect = Expect(model, tally)
    hold(model, expect, Draw(0, model.vocab_size), [((FORK, 0, 0), (TRUNCATE, 1, 9))])
    assert expect.bit
    assert 0 < tally.worst < 1
