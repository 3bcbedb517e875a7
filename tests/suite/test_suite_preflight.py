"""What the preflight lets pass, and what it blames on the adapter."""

import numpy as np
import pytest

from lmconform.suite.bench import Bench
from lmconform.suite.plan import Case, Plan, on_one_checkpoint
from lmconform.suite.preflight import AdapterOff, in_context, preflight
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
