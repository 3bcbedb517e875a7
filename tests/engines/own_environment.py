"""Engines that run in environments of their own: where their interpreters are, and what all are asked alike."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from lmconform.adapter import Precision
from lmconform.checkpoints.layout import Checkpoint
from lmconform.judging.budgets import Yardstick
from lmconform.judging.verdict import Verdict
from lmconform.spec import requirements
from lmconform.suite.bench import Bench, Record
from lmconform.suite.modules import decisions
from lmconform.suite.plan import Plan, on_one_checkpoint
from lmconform.transport.client import Connection, EngineSpec, RemoteModel

PROMPT, OTHER = tuple(range(3, 20)), (5, 8, 13, 21, 34)
NEAR = {"rtol": 0, "atol": 5e-5}
"""Scores of a loud checkpoint have a standard deviation near 2; two orders of float32 operations differ by some 1e-6 of
that."""
MECHANISMS = ("GQA-1", "GQA-2", "ROPE-2", "PNR-5")
"""What faults of a conversion break: KV heads swapped, another eps, the base dropped."""
THROUGH_EPS = {"GQA-1", "GQA-2"}
"""Another eps moves the dial as well: it reads a stream that is not much larger than its eps."""


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


def failing(connection: Connection, *wanted: str) -> set[str]:
    """Which of the requirements fail through one-pass scores; each must be judged, and no test may go wrong."""
    records = judge(connection, *wanted, doors=("score",))
    assert {one.requirement for one in records if one.bites} == set(wanted)
    assert {one.verdict for one in records} <= {Verdict.PASS, Verdict.FAIL}
    return {one.requirement for one in records if one.verdict == Verdict.FAIL}


def oracle(checkpoint: Checkpoint, tokens: tuple[int, ...]) -> np.ndarray:
    """Scores [T, V]."""
    return Yardstick(checkpoint, Precision()).oracle(tokens)


def greedy(model: RemoteModel, prompt: tuple[int, ...], steps: int) -> tuple[int, ...]:
    """Greedy decoding from one-pass scores, without a cache and without ``generate``."""
    tokens = list(prompt)
    for _ in range(steps):
        tokens.append(int(model.score(tokens)[-1].argmax()))
    return tuple(tokens[len(prompt) :])
