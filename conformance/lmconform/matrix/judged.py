"""One engine before the whole suite, in this process, with the oracles of a stock."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from lmconform.judging.verdict import Verdict
from lmconform.report.results import plain
from lmconform.spec import requirements
from lmconform.suite.bench import Bench, Record
from lmconform.suite.dsl import Decides
from lmconform.suite.modules import decisions
from lmconform.suite.plan import Case, Plan, Profile
from lmconform.suite.stock import Stock
from lmconform.transport.client import Connection, EngineSpec

Turn = tuple[Decides, Case]
LONGEST = 86_400.0
"""Seconds: whoever started the engine's process sees to time-outs."""


@dataclass
class Judged:
    """What the suite said of one engine under one seed."""

    target: str
    seed: int
    records: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    caught_after: float | None = None
    """Seconds until the first failure; None if there was none."""
    ended: str = "done"
    """"done", or how its process ended: "crash" or "time-out"."""
    detail: str = ""


def one_thread() -> None:
    """Hold the libraries to one thread, so that a fork is sound and children do not fight over cores."""
    torch.set_num_threads(1)
    threadpool_limits(1)


def judge(
    target: str,
    profile: Profile,
    seed: int,
    *,
    options: Mapping[str, str] | None = None,
    stock: Stock | None = None,
    wanted: Callable[[Decides], bool] = lambda spec: True,
    until: Callable[[Record], bool] = lambda record: False,
    first: Callable[[Turn], float] = lambda turn: 0.0,
    regimes: Container[str | None] | None = None,
    once: Callable[[Decides], Hashable] = lambda spec: object(),
) -> Judged:
    """Judge ``target`` by the tests that are ``wanted``, ending after a record that is the last.

    Those for which ``first`` gives the least come first; of equals, in the suite's order. Only these ``regimes`` are
    entered, None being the default one; without the argument, all. Of tests for which ``once`` gives the same none is
    asked any more after one has failed. Failures are not made smaller. Raises StartError or an EngineFault if the
    engine cannot be asked at all.
    """
    started = time.monotonic()
    found = Judged(target, seed)
    connection = Connection.start(EngineSpec(target, options=options or {}, in_process=True))
    bench = Bench(connection, Plan(connection, profile, seed), LONGEST + started, stock=stock, unshrunk=requirements())
    failed = set[Hashable]()
    try:
        for spec, case in sorted(turns(bench.plan, wanted), key=first):
            if (regimes is not None and case.regime not in regimes) or once(spec) in failed:
                continue
            record = bench.judge(spec, case)
            found.records.append(plain(asdict(record)))
            if record.verdict == Verdict.FAIL:
                failed.add(once(spec))
                if found.caught_after is None:
                    found.caught_after = time.monotonic() - started
            if until(record):
                break
    finally:
        bench.close()
    found.seconds = time.monotonic() - started
    return found


def turns(plan: Plan, wanted: Callable[[Decides], bool]) -> Iterable[Turn]:
    """All tests and cases, one checkpoint after the other."""
    pairs = [(spec, case) for spec in decisions() if wanted(spec) for case in plan.cases(spec.on, spec.every_regime)]
    order = plan.turns(case for _, case in pairs)
    return sorted(pairs, key=lambda pair: order[pair[1]])
