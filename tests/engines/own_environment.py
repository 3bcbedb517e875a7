"""Engines that run in environments of their own: where their interpreters are, and judging what they host."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lmconform.spec import requirements
from lmconform.suite.bench import Bench, Record
from lmconform.suite.modules import decisions
from lmconform.suite.plan import Plan, on_one_checkpoint
from lmconform.transport.client import Connection, EngineSpec


def interpreter(variable: str, requirements_file: str) -> Path:
    """The interpreter that an environment variable names; skips the test where it names none."""
    if variable not in os.environ:
        pytest.skip(
            f"{variable} names no interpreter whose environment has what requirements/{requirements_file} lists"
        )
    return Path(os.environ[variable])


@contextmanager
def connected(target: str, python: Path, **options: str) -> Iterator[Connection]:
    """The engine ``target``, hosted by ``python``."""
    connection = Connection.start(EngineSpec(target, python=python, options=options))
    try:
        yield connection
    finally:
        connection.close()


def judge(connection: Connection, *wanted: str, doors: tuple[str, ...] = ()) -> list[Record]:
    """All tests of some requirements in the default regime, through all doors or some; failures stay as found."""
    bench = Bench(connection, Plan(connection, on_one_checkpoint(5), 0), float("inf"), unshrunk=requirements())
    try:
        return [
            bench.judge(spec, case)
            for spec in decisions()
            if spec.requirement in wanted and (not doors or spec.door in doors)
            for case in bench.plan.cases(spec.on, every_regime=False)
        ]
    finally:
        bench.close()
