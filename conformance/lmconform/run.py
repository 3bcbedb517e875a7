"""One run: what the user asked for, the connection to the engine, the plan and the bench."""

from __future__ import annotations

import secrets
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from threadpoolctl import threadpool_limits

from lmconform.judging.verdict import Verdict
from lmconform.report.known import Known
from lmconform.report.results import plain
from lmconform.suite.bench import Bench, Record
from lmconform.suite.choose import doors, matching
from lmconform.suite.dsl import Decides
from lmconform.suite.plan import PROFILES, Case, Plan, given_material
from lmconform.transport.client import Connection, EngineSpec

SEED = "lmconform_seed"
"""Key under which workers are told the seed."""


class Run:
    """The settings, the connection and the bench of one run. Raises ValueError for settings that no run can use."""

    def __init__(self, config: pytest.Config) -> None:
        option = config.option
        _check(option)
        self.started = time.monotonic()
        self.only = {one.id for one in matching(option.only.split(","))} if option.only else None
        self.doors = doors(option.access.split(",")) if option.access else None
        self.profile = PROFILES[option.profile]
        self.seed = _seed(config)
        self.report = Path(option.report) if option.report else None
        self.known = Known.read(Path(option.known)).with_reasons() if option.known else None
        """What fails with a reason; strict."""
        self.spec = EngineSpec.named(
            option.engine or "",
            option.command or "",
            python=option.python,
            options=option.option,
            in_process=option.in_process,
        )
        material = given_material(Path(option.checkpoint)) if option.checkpoint else None
        self.connection = Connection.start(self.spec, time_limit=option.time_limit)
        if self.known and self.known.engine != self.connection.description.name:
            self.connection.close()
            raise self.known.foreign(self.connection.description.name)
        self.plan = Plan(self.connection, self.profile, self.seed, material)
        # These ask the engine, which may break down: better now than while tests are collected.
        _ = self.plan.shapes, self.plan.operators
        if material is None:  # the oracle's products are small here, and threads of two workers fight over the cores
            threadpool_limits(1, user_api="blas")
        seconds = self.profile.seconds if option.minutes is None else 60 * option.minutes
        database, unshrunk = _database(config, self.spec), self.known.entries if self.known else ()
        self.bench = Bench(self.connection, self.plan, self.started + seconds, database, unshrunk=unshrunk)

    def wants(self, spec: Decides) -> bool:
        """Whether --only and --access keep this test."""
        return (self.only is None or spec.requirement in self.only) and (self.doors is None or spec.door in self.doors)

    def judge(self, spec: Decides, case: Case) -> Record:
        """Run one test on one case. What fails as listed is known; a crash stays an error."""
        record = self.bench.judge(spec, case)
        if record.verdict == Verdict.FAIL and self.known and spec.requirement in self.known.entries:
            record.verdict = Verdict.KNOWN
        return record

    def engine(self) -> dict[str, Any]:
        """What the report says of the engine."""
        return plain(asdict(self.connection.description)) | self.spec.record()

    def costs(self) -> dict[str, Any]:
        """Checkpoints, loads and calls so far, the latter also apart: by checkpoint, and by what was called."""
        counts = self.connection.counts
        return {
            "checkpoints": self.bench.checkpoints,
            "loads": counts.loads,
            "loads_of": dict(counts.loads_of),
            "calls": counts.calls.total(),
            "calls_of": dict(counts.calls),
            "engine_seconds": sum(counts.seconds.values()),
            "restarts": counts.restarts,
            "bytes_received": counts.bytes_received,
        }


def _check(option: Any) -> None:
    """Raise ValueError for numbers that no run can use and for options that exclude each other."""
    for name, value in (("--time-limit", option.time_limit), ("--minutes", option.minutes)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} is {value:g}; a number above 0 was expected.")
    if option.seed is not None and option.seed < 0:
        raise ValueError(f"--seed is {option.seed}; a whole number of 0 or more was expected.")
    if option.in_process and getattr(option, "numprocesses", None):
        raise ValueError("--in-process is for a debugger, which follows one process: leave out -n (--jobs) or it.")


def _seed(config: pytest.Config) -> int:
    """One seed for all workers: given, drawn by the controller, or 0 in the quick profile."""
    if hasattr(config, "workerinput"):
        return int(config.workerinput[SEED])
    if config.option.seed is not None:
        return int(config.option.seed)
    config.option.seed = 0 if config.option.profile == "quick" else secrets.randbelow(10**6)
    return int(config.option.seed)


def _database(config: pytest.Config, spec: EngineSpec) -> Path | None:
    """Failing examples of earlier runs, one directory an engine, beside the report; quick repeats itself exactly."""
    if not config.option.report or config.option.profile == "quick":
        return None
    name = "".join(char if char.isalnum() else "-" for char in spec.label)
    return Path(config.option.report) / "examples" / name
