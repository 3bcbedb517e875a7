"""Judging one requirement of one engine, in its default regime."""

from lmconform.suite.bench import Bench, Record
from lmconform.suite.modules import decisions
from lmconform.suite.plan import Case, Plan, Profile
from lmconform.transport.client import Connection, EngineSpec

PROFILE = Profile("quick", 5, 2, 1, False, 600, "five examples on one random checkpoint")


def judge(target: str, requirement: str) -> list[Record]:
    """All tests of one requirement, in the engine's default regime."""
    connection = Connection.start(EngineSpec(target, in_process=True))
    bench = Bench(connection, Plan(connection, PROFILE, seed=0), deadline=float("inf"))
    try:
        return [
            bench.judge(spec, Case(case.checkpoint))
            for spec in decisions()
            if spec.requirement == requirement
            for case in bench.plan.cases(spec.on, every_regime=False)
        ]
    finally:
        bench.close()
