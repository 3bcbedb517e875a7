import sys
from pathlib import Path

import pytest
import transport_fakes

from lmconform.transport.client import Connection, EngineSpec

FAKES = Path(transport_fakes.__file__)


@pytest.fixture
def start():
    """Start an adapter of transport_fakes.py, in a process of its own unless told otherwise; closed after the test."""
    connections = []

    def starting(name, *, time_limit=20.0, load_limit=20.0, python=None, in_process=False, **options):
        spec = EngineSpec(f"{FAKES}:{name}", python=python, options=options, in_process=in_process)
        connections.append(Connection.start(spec, time_limit, load_limit))
        return connections[-1]

    yield starting
    for connection in connections:
        connection.close()
    sys.modules.pop("lmconform_adapter_transport_fakes", None)


@pytest.fixture(params=["process", "in-process"])
def start_both(request, start):
    """``start`` through both doors."""
    return lambda name, **given: start(name, in_process=request.param == "in-process", **given)
