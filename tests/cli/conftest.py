import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_common import CHECK, ENGINES, Ended, start

from lmconform.suite import test_causal_mask
from lmconform.suite.bench import Bench, Record
from lmconform.suite.plan import PROFILES, Plan
from lmconform.transport.client import Connection, EngineSpec


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., Ended]:
    """Run ``python ...`` in the test's folder."""

    def run(*arguments: object) -> Ended:
        process = start([str(one) for one in arguments], tmp_path)
        out, err = process.communicate(timeout=100)
        return Ended(process.returncode, out, err, tmp_path / "report")

    return run


@pytest.fixture
def check(command: Callable[..., Ended], tmp_path: Path) -> Callable[..., Ended]:
    """Run ``lmconform check``; a ``fault`` is one of cli_engines.py. The report goes to the folder ``report``."""

    def run(*arguments: object, fault: str = "none", engine: str = f"{ENGINES}:Faulty") -> Ended:
        options = ["--option", f"fault={fault}"] if engine.endswith(":Faulty") else []
        return command(*CHECK, engine, *options, "--report", "report", *arguments)

    return run


@pytest.fixture
def judged() -> Iterator[Callable[..., list[Record]]]:
    """Judge tests of the suite in this process, on the engine with a fault; all tests if none is named."""
    benches: list[Bench] = []

    def judge(fault: str, *names: str) -> list[Record]:
        connection = Connection.start(EngineSpec(f"{ENGINES}:Faulty", options={"fault": fault}, in_process=True))
        plan = Plan(connection, PROFILES["quick"], 0)
        benches.append(Bench(connection, plan, float("inf")))
        tests = [value.decides for value in vars(test_causal_mask).values() if hasattr(value, "decides")]
        return [
            benches[-1].judge(spec, case)
            for spec in tests
            if not names or spec.body.__name__ in names
            for case in plan.cases(spec.on, spec.every_regime)
        ]

    yield judge
    for bench in benches:
        bench.close()
    sys.modules.pop("lmconform_adapter_cli_engines", None)
