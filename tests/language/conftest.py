from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from language_common import COMPILER, SANITIZED, compiled

from lmconform.transport.client import Connection, EngineSpec


@pytest.fixture(scope="session")
def c_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C engine, without a warning."""
    if COMPILER is None:
        pytest.skip("there is no C compiler cc")
    program = compiled(tmp_path_factory.mktemp("c"))
    assert program is not None
    return program


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C engine that ends at its first error of memory or of arithmetic."""
    if COMPILER is None:
        pytest.skip("there is no C compiler cc")
    program = compiled(tmp_path_factory.mktemp("sanitized"), *SANITIZED)
    if program is None:
        pytest.skip("the compiler has no sanitizers")
    return program


@pytest.fixture
def start() -> Iterator[Callable[..., Connection]]:
    """Start a program; it is ended after the test."""
    connections: list[Connection] = []

    def starting(*command: object, time_limit: float = 20.0, **options: str) -> Connection:
        spec = EngineSpec(command=[str(word) for word in command], options=options)
        connections.append(Connection.start(spec, time_limit, 20.0))
        return connections[-1]

    yield starting
    for connection in connections:
        connection.close()
