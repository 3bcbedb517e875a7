"""The benchmarks' options, the engines of a run, and what becomes of its results.

pytest benchmarks --engine reference --option attention=sdpa --size 8M
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report, tables
from benchmarks.compare import Comparison, compare
from benchmarks.lab import Impossible, Lab
from benchmarks.results import FOLDER, Record, Results, Unreadable, latest, read
from benchmarks.shapes import SIZES, Size, UnknownSize, size_of
from benchmarks.trials import Trial
from lmconform.transport.client import EngineFault, EngineSpec, StartError

COMPARED = "compared"
"""Folder, in that of the results, of runs that were held against another: they do not become the next to beat."""
NEWEST = "the newest"
SIZES_KEY = pytest.StashKey[list[Size]]()
OLD = pytest.StashKey[Results | None]()
FOUND = pytest.StashKey[Results]()
COMPARISON = pytest.StashKey[Comparison]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Name the engine as `lmconform check` does; then what to time, how long, and what to hold it against."""
    add = parser.getgroup("lmconform", "benchmarks of a language-model inference engine").addoption
    add("--engine", default="", metavar="X", help="a name of `lmconform engines`, module:Class, or file.py:Class")
    add("--command", default="", metavar="CMD", help="instead: a program that speaks the protocol")
    add("--python", metavar="PATH", help="interpreter of the engine's own environment; without it, in this process")
    add("--option", action="append", default=[], metavar="KEY=VALUE", help="passed to the adapter; may be repeated")
    add(
        "--baseline",
        action="append",
        metavar="X[,KEY=VALUE]",
        help="engine to take turns with; may be repeated; none for none (default transformers)",
    )
    add(
        "--size",
        action="append",
        metavar="S",
        help=f"model: {', '.join(SIZES)}, or a llama's config.json; may be repeated (default 8M)",
    )
    add(
        "--seconds", type=float, default=60.0, metavar="N", help="for one benchmark, which sets its rounds (default 60)"
    )
    add(
        "--suite-profile",
        action="append",
        metavar="P",
        help="profile of `lmconform check` to time; may be repeated; none for none (default quick)",
    )
    add("--results", default=FOLDER, metavar="DIR", help=f"folder of results and report (default {FOLDER})")
    add(
        "--compare",
        nargs="?",
        const=NEWEST,
        metavar="FILE",
        help="fail on what regressed since FILE, or since the newest results in the folder",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Read sizes and stored results before anything is timed. Raises UsageError for what no run can use."""
    if getattr(config.option, "numprocesses", None):
        raise pytest.UsageError("Benchmarks run one after another: leave out -n.")
    try:
        config.stash[SIZES_KEY] = [size_of(name) for name in config.option.size or ["8M"]]
        config.stash[OLD] = _stored(config)
    except (UnknownSize, Unreadable) as error:
        raise pytest.UsageError(str(error)) from error


def _stored(config: pytest.Config) -> Results | None:
    """The results to hold this run against."""
    if config.option.compare is None:
        return None
    if config.option.compare != NEWEST:
        return read(Path(config.option.compare))
    folder = Path(config.option.results)
    path = latest(folder, counts_only=config.option.benchmark_disable)
    if path is None:
        raise pytest.UsageError(
            f"--compare finds no results in {folder.resolve()}. Run once without it, or name a file: --compare FILE."
        )
    return read(path)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each size, and each context or batch of it."""
    sizes = metafunc.config.stash[SIZES_KEY]
    for name, values in (("context", "contexts"), ("batch", "batches")):
        if name in metafunc.fixturenames:
            pairs = [(size, value) for size in sizes for value in getattr(size, values)]
            metafunc.parametrize(("size", name), pairs, ids=[f"{size.name}-{value}" for size, value in pairs])
            return
    if "size" in metafunc.fixturenames:
        metafunc.parametrize("size", sizes, ids=[size.name for size in sizes])
    if "profile" in metafunc.fixturenames:
        profiles = metafunc.config.option.suite_profile or ["quick"]
        metafunc.parametrize("profile", [one for one in profiles if one != "none"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All benchmarks of a size together: models of another size are closed. Warnings of libraries fail none."""
    sizes = items[0].config.stash[SIZES_KEY] if items else []
    items[:] = [item for item in items if "NOTSET" not in item.name]  # no profile of the suite is to be timed
    places = {size.name: place for place, size in enumerate(sizes)}

    def place(item: pytest.Item) -> int:
        size = getattr(item, "callspec", None) and item.callspec.params.get("size")  # type: ignore[attr-defined]
        return places[size.name] if size else len(places)

    items.sort(key=place)
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("default"))


class Bench:
    """Runs one benchmark and keeps its record."""

    def __init__(self, lab: Lab, benchmark: Any, keep: Callable[[Record], None], seconds: float) -> None:
        self.lab, self.keep = lab, keep
        self._benchmark, self._seconds = benchmark, seconds

    def run(self, name: str, make: Callable[[Lab], Trial]) -> None:
        """Time the trial that ``make`` returns, or with --benchmark-disable only keep what it counted.

        What the engine cannot do is left out, with the reason.
        """
        try:
            trial = make(self.lab)
            if self._benchmark.disabled:
                if not trial.counted:
                    pytest.skip("nothing of it is counted, and --benchmark-disable times nothing")
                self._benchmark.pedantic(trial.subject)  # once, untimed
                self.keep(trial.bare())
                return
            self.lab.calibrate()
            turns = trial.turns()
            rounds = turns.rounds(self._seconds)
            self._benchmark.pedantic(turns.subject, setup=turns.before, teardown=turns.after, rounds=rounds)
        except (Impossible, EngineFault) as reason:
            self.lab.results.left_out[name] = str(reason)
            pytest.skip(str(reason))
        record = trial.record(turns.times)
        self._benchmark.extra_info.update(figures=record.figures, ratios={k: str(v) for k, v in record.ratios.items()})
        self.keep(record)


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The engines of this run."""
    option = request.config.option
    baselines = [one for one in option.baseline or ["transformers"] if one != "none"]
    target = option.engine or ("" if option.command else "reference")
    try:
        spec = EngineSpec.named(
            target,
            option.command,
            python=option.python,
            options=option.option,
            in_process=not (option.command or option.python),
        )
        made = Lab(spec, baselines)
    except (StartError, ValueError) as error:
        pytest.exit(f"The benchmarks cannot start: {error}", returncode=pytest.ExitCode.USAGE_ERROR)
    request.config.stash[FOUND] = made.results
    yield made
    made.close()


@pytest.fixture
def keep(request: pytest.FixtureRequest, lab: Lab) -> Callable[[Record], None]:
    """Keeps a record at once, so that an interrupted run loses nothing."""

    def keep(record: Record) -> None:
        lab.results.records.append(record)
        lab.results.write(_file(request.config, lab.results))

    return keep


@pytest.fixture
def bench(request: pytest.FixtureRequest, lab: Lab, keep: Callable[[Record], None], benchmark: Any) -> Bench:
    """What a benchmark is written with."""
    return Bench(lab, benchmark, keep, request.config.option.seconds)


def _file(config: pytest.Config, found: Results) -> Path:
    """Where this run is kept."""
    folder = Path(config.option.results)
    folder = folder / COMPARED if config.stash[OLD] is not None else folder
    return folder / found.file_name()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hold the run against the stored one; a regression fails it, and so does a run that measured nothing."""
    stash = session.config.stash
    found, old = stash.get(FOUND, None), stash.get(OLD, None)
    if found is None:
        return
    if old is not None:
        stash[COMPARISON] = compare(old, found)
        if session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = stash[COMPARISON].exit_code
    if not found.records and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the tables, the comparison, and where the files are."""
    found = config.stash.get(FOUND, None)
    if found is None:
        return
    terminalreporter.section("benchmarks")
    for line in tables.lines(found):
        terminalreporter.write_line(line)
    if not found.records:
        terminalreporter.write_line("Nothing was measured.")
        return
    comparison = config.stash.get(COMPARISON, None)
    if comparison is not None:
        terminalreporter.section("compared with the stored run")
        for line in comparison.lines():
            terminalreporter.write_line(line)
    path = _file(config, found)
    terminalreporter.write_line(f"Wrote {path}")
    terminalreporter.write_line(report.write(found, path.with_suffix(""), comparison))
