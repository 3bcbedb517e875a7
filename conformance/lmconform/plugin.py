"""The pytest plugin: collects the suite for one engine, judges it, and sums up.

    pytest -p lmconform.plugin --pyargs lmconform.suite --engine reference

``lmconform check`` runs the same through ``pytest.main``. With xdist every worker holds an engine of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lmconform.judging.verdict import Verdict
from lmconform.report.results import empty, plain, prepare
from lmconform.report.summary import COSTS, Summary
from lmconform.run import Run
from lmconform.suite.bench import Record
from lmconform.suite.choose import DOORS
from lmconform.suite.dsl import Decides
from lmconform.suite.plan import PROFILES, Case
from lmconform.transport.client import EngineFault, StartError

RUN = pytest.StashKey[Run]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lmconform", "conformance of a language-model inference engine")
    add = group.addoption
    add("--engine", metavar="ENGINE", help="a name of `lmconform engines`, module:Class, or path/to/file.py:Class")
    add("--command", metavar="CMD", help="instead: a program that speaks the protocol on its stdin and stdout")
    add("--python", metavar="PATH", help="interpreter of the engine's own environment (needs NumPy and the engine)")
    add(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="passed to the adapter's constructor, or to CMD",
    )
    add("--in-process", action="store_true", help="host the adapter in this process, for a debugger")
    add("--profile", choices=sorted(PROFILES), default="quick", help="how much to do (default: quick)")
    add("--only", default="", metavar="IDS", help="requirements or pages by prefix, such as CM or CM-4,ROPE")
    add("--access", default="", metavar="DOORS", help=f"only through these doors: {','.join(DOORS)}")
    add("--seed", type=int, default=None, help="seed of checkpoints and examples (quick: 0; else drawn and printed)")
    add("--checkpoint", metavar="DIR", help="judge the laws on these weights instead of the suite's checkpoints")
    add("--known", metavar="FILE", help="known failures, as `lmconform known` lists them; strict: a pass fails the run")
    add("--report", metavar="DIR", help="write report.json, records.jsonl and counterexamples there")
    add("--time-limit", type=float, default=60.0, metavar="SECONDS", help="for one call of the engine (default: 60)")
    add(
        "--no-controls",
        action="store_false",
        dest="controls",
        help="do not show on planted faults that the suite fails",
    )
    add("--minutes", type=float, default=None, help="for the whole run; what it does not reach is not-run")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.help:
        return
    if config.option.engine is None and config.option.command is None:
        raise pytest.UsageError(
            "The conformance suite needs --engine ENGINE: a name of `lmconform engines`, module:Class, or "
            "path/to/file.py:Class. Or --command CMD: a program that speaks the protocol on its stdin and stdout."
        )
    main = not hasattr(config, "workerinput")
    try:
        if config.option.report and main:
            prepare(Path(config.option.report))
    except OSError as error:
        raise pytest.UsageError(
            f"The report directory {config.option.report} cannot be written ({error.strerror}: {error.filename}). "
            "Name another with --report."
        ) from None
    try:
        run = Run(config)
    except (StartError, EngineFault) as error:
        raise pytest.UsageError("\n".join(filter(None, (str(error), error.detail)))) from None
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    except KeyboardInterrupt:
        raise pytest.UsageError("Interrupted while the engine was starting. Nothing was judged.") from None
    if run.report is not None and main:
        empty(run.report)
    config.stash[RUN] = run
    config.add_cleanup(run.bench.close)
    if main:
        config.pluginmanager.register(Summary(config, run), "lmconform-summary")
    else:
        config.pluginmanager.register(Worker(config, run), "lmconform-worker")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    spec: Decides | None = getattr(metafunc.function, "decides", None)
    if spec is None:
        return
    run = metafunc.config.stash[RUN]
    metafunc.parametrize(
        "case", run.plan.cases(spec.on, spec.every_regime), ids=lambda case: f"{spec.requirement}-{case}"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    run = config.stash.get(RUN, None)
    if run is None:
        return
    kept = {item: case for item in items if (case := _case(item)) is not None and run.wants(_spec(item))}
    dropped = [item for item in items if item not in kept]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
    turns = run.plan.turns(kept.values())
    items[:] = sorted(kept, key=lambda item: turns[kept[item]])


def _spec(item: pytest.Item) -> Any:
    return getattr(getattr(item, "function", None), "decides", None)


def _case(item: pytest.Item) -> Case | None:
    """The item's case; None for a foreign test, and where the plan has no case for the test."""
    callspec = getattr(item, "callspec", None)
    case = callspec.params.get("case") if callspec is not None else None
    return case if isinstance(case, Case) else None


@pytest.fixture
def judged(request: pytest.FixtureRequest) -> Callable[[Decides, Case], None]:
    """Judges a test, keeps its record, and ends it as pytest should see it."""

    def judge(spec: Decides, case: Case) -> None:
        record = request.config.stash[RUN].judge(spec, case)
        node: Any = request.node
        node.lmconform = plain(asdict(record))
        node.user_properties += [("requirement", record.requirement), ("verdict", str(record.verdict))]
        _conclude(record)

    return judge


def _conclude(record: Record) -> None:
    if record.verdict in (Verdict.FAIL, Verdict.ERROR):
        pytest.fail(f"{record.requirement} {record.verdict}: {record.reason}", pytrace=False)
    if record.verdict == Verdict.KNOWN:
        pytest.xfail(f"{record.requirement} {record.verdict}: {record.reason}")
    if record.verdict != Verdict.PASS:
        pytest.skip(f"{record.requirement} {record.verdict}: {record.reason}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Hand the record on with the report, which travels from worker to controller."""
    made = yield
    spec, case = _spec(item), _case(item)
    if made.when == "call" and made.failed and spec and case and not hasattr(item, "lmconform"):
        broken = Record(spec.requirement, Verdict.ERROR, spec.body.__name__, spec.door, str(case))
        broken.reason = "the suite itself broke down in this test; please report it with the traceback."
        broken.detail = made.longreprtext
        vars(item)["lmconform"] = plain(asdict(broken))
    if hasattr(item, "lmconform") and made.when == "call":
        made.lmconform = item.lmconform
    return made


class Worker:
    """On an xdist worker: tells the controller what this worker's engine cost."""

    def __init__(self, config: pytest.Config, run: Run) -> None:
        self._config: Any = config
        self._run = run

    def pytest_sessionfinish(self) -> None:
        self._config.workeroutput[COSTS] = self._run.costs()
