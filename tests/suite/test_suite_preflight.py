"""What the preflight lets pass, and what it blames on the adapter."""

import numpy as np
import pytest

from lmconform.suite.bench import Bench
from lmconform.suite.plan import Case, Plan, on_one_checkpoint
from lmconform.suite.preflight import FAR, PROMPT, AdapterOff, _error, in_context, preflight
from lmconform.transport.client import Connection, EngineSpec

ONE = on_one_checkpoint(1)


def test_an_engine_without_a_residual_stream_is_no_fault_of_its_adapter() -> None:
    connection = Connection.start(
        EngineSpec("lmconform.faults.pre_norm_residual:DropsTheResidualOfTheMLP", in_process=True)
    )
    bench = Bench(connection, Plan(connection, ONE, seed=0), deadline=float("inf"))
    subject = bench.subject(Case("stop-tape"))
    assert preflight(subject, subject.doors) == []
    bench.close()


def test_an_adapter_that_returns_nothing_is(bench, monkeypatch) -> None:
    subject = bench.subject(Case("loud-0"))
    monkeypatch.setattr(
        type(subject._remote), "score", lambda self, tokens, columns=None: np.zeros((len(tokens), self.vocab_size))
    )
    with pytest.raises(AdapterOff, match="lowest score"):
        in_context(subject, subject.doors)


def test_a_wrong_first_position_is_no_token_in_front() -> None:
    """With seed 1 one prompt, of all that have a token in front, comes a little nearer to its scores than its own."""
    connection = Connection.start(EngineSpec("lmconform.faults.rope_regional:TurnsPosition0As1", in_process=True))
    bench = Bench(connection, Plan(connection, ONE, seed=1), deadline=float("inf"))
    subject = bench.subject(Case("loud-0"))
    prompt = tuple(token % subject.vocab_size for token in PROMPT)
    (steps,) = subject.continue_greedily([prompt], 1)
    alone, *others = (_error(subject, steps, front) for front in ((), *((token,) for token in range(61))))
    assert alone / 2 < min(others) < FAR < alone
    in_context(subject, subject.doors)
    bench.close()


@pytest.mark.parametrize("token", [0, 23])
def test_a_token_in_front_is_named(bench, monkeypatch, token) -> None:
    subject = bench.subject(Case("loud-0"))
    score = type(subject._remote).score

    def adding(self, tokens, columns=None):
        return score(self, (token, *tokens), columns=columns)[1:]

    monkeypatch.setattr(type(subject._remote), "score", adding)
    with pytest.raises(AdapterOff, match=f"score returned .* of the tokens with id {token} in front"):
        in_context(subject, subject.doors)
