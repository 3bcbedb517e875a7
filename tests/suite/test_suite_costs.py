"""What the quick profile costs an engine, counted: a load may take a minute."""

from dataclasses import replace
from unittest.mock import MagicMock

import pytest

from lmconform.suite import bench as benches
from lmconform.suite import examples
from lmconform.suite.bench import LOADED, Bench
from lmconform.suite.modules import decisions
from lmconform.suite.plan import PROFILES, Case, Plan
from lmconform.transport.client import Connection, EngineSpec

CHECKPOINTS, REGIMES, LOADS = 45, 3, 84
"""Most distinct checkpoints, and most loads for an engine of so many regimes. Before a bound is raised: can another
checkpoint serve, or another edit of the same? Does the law need three random ones? Does a regime matter to it? DEC-7
loads one checkpoint a field of config.json, of which one is counted here."""


EDITS = ("tied", "copied-head", "empty-layer", "larger-stream", "small-context", "large-values")


def test_a_bounded_number_of_models_is_kept_loaded(bench) -> None:
    model = bench.subject(Case("loud-0"))
    for _ in range(2):
        for edit in EDITS[: LOADED - 1]:
            model.edited(edit)
    assert {count for name, count in bench.connection.counts.loads_of.items() if "~" in name} == {1}
    model.edited(EDITS[LOADED - 1])  # the base was not asked for longest
    assert bench.connection.counts.loads_of["loud-0"] == 1
    bench.subject(Case("loud-0"))
    assert bench.connection.counts.loads_of["loud-0"] == 2


def test_models_of_many_weights_are_not_kept_beside_each_other(bench, monkeypatch) -> None:
    monkeypatch.setattr(benches, "WEIGHTS", 100)
    model = bench.subject(Case("loud-0"))
    tied = model.edited("tied")
    with pytest.raises(RuntimeError, match="closed"):
        model.score((1, 2))
    assert len(tied.score((1, 2))) == 2


def unjudged(*_: object) -> MagicMock:
    """An ``expect`` that judges nothing, so that neither draws nor oracle cost time."""
    expect = MagicMock(bit=True)
    for word in (expect.refuses, expect.in_vocabulary):
        word.side_effect = lambda ask, *_: ask()
    expect.on.return_value = expect
    return expect


@pytest.mark.slow
def test_the_quick_profile_makes_few_checkpoints_and_loads_each_once_in_a_regime(monkeypatch) -> None:
    """One example a test; those that draw an edit ask for one of it here, and may ask for others in a run."""
    monkeypatch.setattr(examples, "Expect", unjudged)
    connection = Connection.start(EngineSpec("reference", options={"threads": "1"}, in_process=True))
    plan = Plan(connection, replace(PROFILES["quick"], examples=1, regime_examples=1), seed=0)
    bench = Bench(connection, plan, deadline=float("inf"))
    pairs = [(spec, case) for spec in decisions() for case in plan.cases(spec.on, spec.every_regime)]
    turns = plan.turns(case for _, case in pairs)
    for spec, case in sorted(pairs, key=lambda pair: turns[pair[1]]):
        bench.judge(replace(spec, tries=1), case)
    loads, rooms = connection.counts.loads_of, 2  # KV-14 loads one checkpoint with other rooms
    bench.close()
    assert len(plan.regimes) == REGIMES
    assert len(loads) <= CHECKPOINTS
    assert loads.total() <= LOADS
    assert max(loads.values()) <= 1 + REGIMES + rooms
    again = {name for name, count in loads.items() if "~" in name and count > 1}
    assert again <= {"loud-0~attention-dropout"}  # fused forms have a dropout of their own
