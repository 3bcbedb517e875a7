"""The kernel that the faults of operators are made from is right."""

from faults_common import PROFILE

from lmconform.judging.verdict import Verdict
from lmconform.suite.bench import Bench
from lmconform.suite.modules import decisions
from lmconform.suite.plan import Plan
from lmconform.transport.client import Connection, EngineSpec


def test_the_tiled_kernel_passes_every_test_of_attention() -> None:
    connection = Connection.start(EngineSpec("lmconform.faults.operators:Tiled", in_process=True))
    bench = Bench(connection, Plan(connection, PROFILE, seed=0), deadline=float("inf"))
    cases = [
        (spec, case) for spec in decisions() if spec.door == "operators" for case in bench.plan.cases(spec.on, True)
    ]
    records = [bench.judge(spec, case) for spec, case in cases]
    bench.close()
    assert {record.verdict for record in records} == {Verdict.PASS}, [one.reason for one in records if one.reason]
    assert all(record.bites for record in records)
