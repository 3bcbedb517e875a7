"""Both engines on the checkpoints of the other families: within budget in every format, however they are asked."""

from collections.abc import Iterator
from typing import Any

import pytest

from lmconform.adapter import Engine
from lmconform.suite.bench import Bench
from lmconform.suite.dsl import Draw, Expect
from lmconform.suite.findings import Tally
from lmconform.suite.plan import BRIEF, FAMILIES, OTHERS, PROFILES, TERSE, WINDOWED, Case, Plan
from lmconform.transport.client import Connection, EngineSpec

LENGTH = 33
"""Beyond every window."""


@pytest.fixture(scope="module", params=["float32", "bfloat16", "float16"])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["reference", "transformers"])
def bench(request: pytest.FixtureRequest, dtype: str) -> Iterator[Bench]:
    connection = Connection.start(EngineSpec(request.param, options={"dtype": dtype}, in_process=True))
    made = Bench(connection, Plan(connection, PROFILES["quick"], seed=5), deadline=float("inf"))
    yield made
    made.close()


@pytest.mark.parametrize("checkpoint", OTHERS)
def test_scores_are_the_oracles_through_every_door(bench: Bench, checkpoint: str) -> None:
    for regime in (None, *bench.plan.regimes):
        model, tally = bench.subject(Case(checkpoint, regime)), Tally()
        expect, draw = Expect(model, tally), Draw(1, model.vocab_size)
        tokens, other = draw.tokens(LENGTH), draw.tokens(3, stream=1)
        expect.agrees(model.score(tokens), "one pass")
        for row in model.score_batch([tokens, other]):
            expect.agrees(row, "a row of a batch")
        expect.agrees(model.prefill_in_chunks(tokens, [1, 11, 5, 16]), "chunks")
        for steps in model.continue_greedily([tokens, other], 3):
            expect.agrees(steps, "new tokens")
        assert tally.worst < 0.5


def test_every_checkpoint_of_the_families_is_covered(bench: Bench) -> None:
    cases = bench.plan.cases([FAMILIES, WINDOWED, TERSE, BRIEF], every_regime=False)
    assert [case.checkpoint for case in cases] == list(OTHERS)


@pytest.mark.parametrize(("family", "taken"), [("llama", True), ("phi3", False), ("gpt2", False), (None, False)])
def test_an_adapter_that_says_nothing_is_given_llama_alone(family: Any, taken: bool) -> None:
    reason = Engine().accepts({"model_type": family})
    assert (reason is None) == taken
    assert taken or repr(family) in str(reason)
