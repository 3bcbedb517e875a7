"""Judging some requirements of one engine, in one regime. All engines of a process share the oracles."""

import atexit
from collections.abc import Mapping

from lmconform.spec import requirements
from lmconform.suite.bench import Bench, Record
from lmconform.suite.modules import decisions
from lmconform.suite.plan import Plan, on_one_checkpoint
from lmconform.suite.stock import Stock
from lmconform.transport.client import Connection, EngineSpec

PROFILE = on_one_checkpoint(5)
STOCK = Stock()
atexit.register(STOCK.remove)


def judge(
    target: str,
    *wanted: str,
    regime: str | None = None,
    seed: int = 0,
    options: Mapping[str, str] | None = None,
    small: bool = False,
) -> list[Record]:
    """All tests of some requirements in the engine's default regime, or those that a run enters in another one.

    Failures are made ``small`` only if that is asked for.
    """
    connection = Connection.start(EngineSpec(target, in_process=True, options=options or {}))
    unshrunk = () if small else requirements()
    bench = Bench(connection, Plan(connection, PROFILE, seed), float("inf"), stock=STOCK, unshrunk=unshrunk)
    try:
        return [
            bench.judge(spec, case)
            for spec in decisions()
            if spec.requirement in wanted
            for case in bench.plan.cases(spec.on, every_regime=spec.every_regime)
            if case.regime == regime
        ]
    finally:
        bench.close()
