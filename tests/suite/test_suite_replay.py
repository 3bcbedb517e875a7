"""Whatever an example is drawn from survives the file of a counterexample, and a replay says what it decided."""

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lmconform.adapter import Refused
from lmconform.judging.verdict import Verdict
from lmconform.report.results import plain
from lmconform.suite.bench import Bench, Record
from lmconform.suite.examples import Example
from lmconform.suite.findings import Unfit
from lmconform.suite.modules import decisions
from lmconform.suite.plan import Case, Plan, on_one_checkpoint
from lmconform.suite.replay import _tuple
from lmconform.transport.client import Connection, EngineSpec

SMALL = on_one_checkpoint(3)


@pytest.mark.parametrize(("engine", "operators"), [("reference", False), ("torch-kernels", True)])
def test_every_structure_is_read_back_as_it_was(engine, operators) -> None:
    connection = Connection.start(EngineSpec(engine, in_process=True))
    bench = Bench(connection, Plan(connection, SMALL, seed=0), deadline=float("inf"))
    tried = 0
    for spec in decisions():
        if spec.structure and (spec.door == "operators") == operators:
            case = bench.plan.cases(spec.on, every_regime=False)[0]
            subject = bench._runner(spec, case)._subject(0)
            strategies = {name: make(subject) for name, make in spec.structure.items()}

            @settings(
                max_examples=2,
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(st.fixed_dictionaries(strategies))
            def round_trip(structure) -> None:
                record = Record("", "", "", "", "", counterexample={"structure": structure})
                stored = json.loads(json.dumps(plain(asdict(record))))["counterexample"]["structure"]
                assert {name: _tuple(value) for name, value in stored.items()} == structure

            round_trip()
            tried += 1
    bench.close()
    assert tried > 10


def test_failing_examples_of_a_test_are_tried_again_in_that_test_alone(tmp_path) -> None:
    target = "lmconform.faults.stop_conditions:GivesOneTokenTooMany"
    connection = Connection.start(EngineSpec(target, in_process=True))
    bench = Bench(connection, Plan(connection, SMALL, seed=0), deadline=float("inf"), database=tmp_path)
    records = [bench.judge(spec, Case("stop-tape")) for spec in decisions() if spec.requirement in ("STOP-6", "STOP-8")]
    bench.close()
    failed = {record.test for record in records if record.verdict == Verdict.FAIL}
    assert failed < {record.test for record in records}
    assert {folder.name for folder in tmp_path.iterdir() if any(folder.iterdir())} == failed


@pytest.mark.parametrize(
    ("error", "verdict", "reason"),
    [
        (Refused("not today"), Verdict.UNSUPPORTED, "the engine refused: not today"),
        (
            Unfit("legal errors are 3 beside a spread of 2"),
            Verdict.UNRESOLVED,
            "legal errors are 3 beside a spread of 2",
        ),
    ],
)
def test_a_replay_that_decides_nothing_is_no_pass(bench, error, verdict, reason) -> None:
    def body(subject, expect, draw, **structure):
        raise error

    spec = next(spec for spec in decisions() if spec.body.__name__ == "test_no_future_token_changes_a_score")
    record = bench.replay(replace(spec, body=body), Case("loud-0"), Example({}, 0))
    assert (record.verdict, record.reason) == (verdict, reason)
