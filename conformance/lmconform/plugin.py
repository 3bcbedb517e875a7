"""The pytest plugin: collects the suite for one engine, judges it, and sums up.

    pytest -p lmconform.plugin --pyargs lmconform.suite --engine reference

``lmconform check`` runs the same through ``pytest.main``. With xdist every worker holds an engine of its own.
"""

from __future__ import annotations

import re
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lmconform.judging.verdict import Verdict
from lmconform.report import results as report
from lmconform.report import text
from lmconform.report.results import append as keep
from lmconform.suite.bench import Bench, Record
from lmconform.suite.choose import DOORS, doors, matching
from lmconform.suite.dsl import Decides
from lmconform.suite.plan import PROFILES, Case, Plan, given_material
from lmconform.transport.client import Connection, EngineFault, EngineSpec, StartError

RUN = pytest.StashKey["Run"]()
SEED, COSTS = "lmconform_seed", "lmconform_costs"
REQUIREMENT_OF = re.compile(r"\[([A-Z]+-\d+)-")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lmconform", "conformance of a language-model inference engine")
    add = group.addoption
    add("--engine", metavar="ENGINE", help="a name of `lmconform engines`, module:Class, or path/to/file.py:Class")
    add("--python", metavar="PATH", help="interpreter of the engine's own environment (needs NumPy and the engine)")
    add("--option", action="append", default=[], metavar="KEY=VALUE", help="passed to the adapter's constructor")
    add("--in-process", action="store_true", help="host the adapter in this process, for a debugger")
    add("--profile", choices=sorted(PROFILES), default="quick", help="how much to do (default: quick)")
    add("--only", default="", metavar="IDS", help="requirements or pages by prefix, such as CM or CM-4,ROPE")
    add("--access", default="", metavar="DOORS", help=f"only through these doors: {','.join(DOORS)}")
    add("--seed", type=int, default=None, help="seed of checkpoints and examples (quick: 0; else drawn and printed)")
    add("--checkpoint", metavar="DIR", help="judge the laws on these weights instead of the suite's checkpoints")
    add("--report", metavar="DIR", help="write report.json, records.jsonl and counterexamples there")
    add("--time-limit", type=float, default=60.0, metavar="SECONDS", help="for one call of the engine (default: 60)")
    add("--minutes", type=float, default=None, help="for the whole run; what it does not reach is not-run")


class Run:
    """One run: its settings, its connection, and its results."""

    def __init__(self, config: pytest.Config) -> None:
        option = config.option
        _check(option)
        self.started = time.monotonic()
        self.only = {one.id for one in matching(option.only.split(","))} if option.only else None
        self.doors = doors(option.access.split(",")) if option.access else None
        self.profile = PROFILES[option.profile]
        self.seed = _seed(config)
        self.report = Path(option.report) if option.report else None
        self.spec = EngineSpec(
            option.engine,
            python=option.python,
            options=_options(option.option),
            in_process=option.in_process,
        )
        material = given_material(Path(option.checkpoint)) if option.checkpoint else None
        self.connection = Connection.start(self.spec, time_limit=option.time_limit)
        self.plan = Plan(self.connection, self.profile, self.seed, material)
        _ = self.plan.shapes  # asks the engine, which may break down: better now than while tests are collected
        seconds = self.profile.seconds if option.minutes is None else 60 * option.minutes
        self.bench = Bench(self.connection, self.plan, self.started + seconds, _database(config, self.spec))

    def wants(self, spec: Decides) -> bool:
        """Whether --only and --access keep this test."""
        return (self.only is None or spec.requirement in self.only) and (self.doors is None or spec.door in self.doors)

    def engine(self) -> dict[str, Any]:
        """What the report says of the engine."""
        return report.plain(asdict(self.connection.description)) | {
            "target": self.spec.target,
            "python": str(self.spec.python) if self.spec.python else None,
            "options": dict(self.spec.options),
        }

    def costs(self) -> dict[str, Any]:
        """Checkpoints, loads and calls so far."""
        counts = self.connection.counts
        return {
            "checkpoints": self.bench.checkpoints,
            "loads": counts.loads,
            "calls": counts.calls.total(),
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


def _options(pairs: list[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise pytest.UsageError(f"--option takes KEY=VALUE; got {pair!r}.")
        found[key] = value
    return found


def _database(config: pytest.Config, spec: EngineSpec) -> Path | None:
    """Failing examples of earlier runs, one directory an engine, beside the report; quick repeats itself exactly."""
    if not config.option.report or config.option.profile == "quick":
        return None
    name = "".join(char if char.isalnum() else "-" for char in spec.target)
    return Path(config.option.report) / "examples" / name


def pytest_configure(config: pytest.Config) -> None:
    if config.option.help:
        return
    if config.option.engine is None:
        raise pytest.UsageError(
            "The conformance suite needs --engine ENGINE: a name of `lmconform engines`, module:Class, or "
            "path/to/file.py:Class."
        )
    main = not hasattr(config, "workerinput")
    try:
        if config.option.report and main:
            report.prepare(Path(config.option.report))
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
        report.empty(run.report)
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
    kept = [item for item in items if _case(item) is not None and run.wants(_spec(item))]
    dropped = [item for item in items if item not in set(kept)]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
    order = {case: number for number, case in enumerate(dict.fromkeys(_case(item) for item in kept))}
    items[:] = sorted(kept, key=lambda item: order[_case(item)])


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
        record = request.config.stash[RUN].bench.judge(spec, case)
        node: Any = request.node
        node.lmconform = report.plain(asdict(record))
        node.user_properties += [("requirement", record.requirement), ("verdict", str(record.verdict))]
        _conclude(record)

    return judge


def _conclude(record: Record) -> None:
    if record.verdict in (Verdict.FAIL, Verdict.ERROR):
        pytest.fail(f"{record.requirement} {record.verdict}: {record.reason}", pytrace=False)
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
        vars(item)["lmconform"] = report.plain(asdict(broken))
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


class Summary:
    """Where the results come together: the only process, or the controller of workers.

    Under pytest's own terminal reporter it adds a header and a summary; without it (``lmconform check``) it prints all.
    """

    def __init__(self, config: pytest.Config, run: Run) -> None:
        self._config = config
        self._run = run
        self._costs: list[dict[str, Any]] = []
        self._progress: text.Progress | None = None
        self._alone = not config.pluginmanager.has_plugin("terminal")
        self.results = report.Results(run.engine(), {"profile": run.profile.name, "seed": run.seed}, planned={})
        if self._alone:
            text.heading(Console(highlight=False), self.results)

    def pytest_report_header(self) -> list[str]:
        return _rendered(lambda console: text.heading(console, self.results)).splitlines()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if session.items:
            self._plan([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        if not self.results.planned:
            self._plan(ids)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        record = getattr(report, "lmconform", None)
        if record is None:
            self._tell(report)
            return
        if self._run.report is not None:
            keep(self._run.report, record)
        self.results.records.append(record)
        if self._progress:
            self._progress.step(record)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._tell(report)

    def pytest_keyboard_interrupt(self) -> None:
        self.results.run["note"] = "The run was interrupted; what it had judged until then is kept."

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """All workers use one seed."""
        node.workerinput[SEED] = self._run.seed

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self._costs += [node.workeroutput[COSTS]] if COSTS in getattr(node, "workeroutput", {}) else []

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if session.config.option.collectonly:
            return
        if self._progress:
            self._progress.stop()
        if not self.results.planned:
            self.results.run.setdefault("note", _nothing_fits(session.config.option))
        self.results.run["seconds"] = time.monotonic() - self._run.started
        self.results.run["costs"] = report.merge_counts([self._run.costs(), *self._costs])
        if self._run.report is not None:
            report.write(self._run.report, self.results)
        session.exitstatus = self.results.exit_code()
        if self._alone:
            text.summary(Console(highlight=False), self.results)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if "seconds" in self.results.run:
            terminalreporter.section("conformance")
            terminalreporter.write(_rendered(lambda console: text.summary(console, self.results)))

    def _tell(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        """Print what broke down outside a test's own record; otherwise only pytest's terminal would."""
        if report.failed and self._alone:
            print(report.longreprtext, file=sys.stderr)

    def _plan(self, ids: list[str]) -> None:
        """The requirement is the first part of a test's parameter: test_name[CM-1-loud-0]."""
        found = (REQUIREMENT_OF.search(name) for name in ids)
        self.results.planned = dict(Counter(match[1] for match in found if match))
        if self._alone:
            self._progress = text.Progress(Console(highlight=False), len(ids))


def _nothing_fits(option: Any) -> str:
    given = {"--only": option.only, "--access": option.access, "--checkpoint": option.checkpoint, "-k": option.keyword}
    asked = ", ".join(f"{name} {value}" for name, value in given.items() if value)
    return (
        f"No test fits what was asked for: {asked or 'nothing in particular'}. `lmconform explain` shows through which "
        "doors a requirement is decided; on a checkpoint of your own (--checkpoint) only laws are."
    )


def _rendered(draw: Callable[[Console], None]) -> str:
    """What ``draw`` prints, as text without colours."""
    buffer = StringIO()
    draw(Console(file=buffer, highlight=False, width=120))
    return buffer.getvalue()
