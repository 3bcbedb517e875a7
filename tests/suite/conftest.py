"""A bench over the reference, in this process."""

from collections.abc import Iterator

import pytest

from lmconform.suite.bench import Bench
from lmconform.suite.plan import Plan, on_one_checkpoint
from lmconform.transport.client import Connection, EngineSpec

SMALL = on_one_checkpoint(3)


@pytest.fixture
def bench() -> Iterator[Bench]:
    connection = Connection.start(EngineSpec("reference", in_process=True))
    made = Bench(connection, Plan(connection, SMALL, seed=0), deadline=float("inf"))
    yield made
    made.close()
