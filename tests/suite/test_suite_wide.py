"""An engine that takes no narrow heads is measured by the same instruments, at a head dimension of its own."""

from pathlib import Path

import pytest

from lmconform.judging.verdict import Verdict
from lmconform.spec import requirements
from lmconform.suite.bench import Bench
from lmconform.suite.modules import decisions
from lmconform.suite.plan import Plan, on_one_checkpoint
from lmconform.transport.client import Connection, EngineSpec

ENGINES = Path(__file__).with_name("wide_engines.py")
MEASURED = {"GQA-1", "ROPE-2", "ROPE-10"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "caught"),
    [("Wide", set()), ("WideReadsKVHeadsInTurn", {"GQA-1"}), ("WideTakesBase10000", {"ROPE-2", "ROPE-10"})],
)
def test_a_wide_engine_is_measured(engine: str, caught: set[str]) -> None:
    connection = Connection.start(EngineSpec(f"{ENGINES}:{engine}", in_process=True))
    bench = Bench(connection, Plan(connection, on_one_checkpoint(5), 0), float("inf"), unshrunk=requirements())
    try:
        records = [
            bench.judge(spec, case)
            for spec in decisions()
            if spec.requirement in MEASURED and spec.door == "score"
            for case in bench.plan.cases(spec.on, every_regime=False)
        ]
    finally:
        bench.close()
    assert {one.requirement for one in records if one.verdict == Verdict.FAIL} == caught
    assert {one.requirement for one in records if one.bites} == MEASURED
    assert not [(one.case, one.reason) for one in records if one.verdict not in (Verdict.PASS, Verdict.FAIL)]
