"""Where the results of a run come together: what pytest tells, printed and written."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from lmconform.controls import Controls
from lmconform.report import results, text
from lmconform.run import SEED, Run

COSTS = "lmconform_costs"
"""Key under which workers tell what their engines cost."""
REQUIREMENT_OF = re.compile(r"\[([A-Z]+-\d+)-")


class Summary:
    """Where the results come together: the only process, or the controller of workers.

    Under pytest's own terminal reporter it adds a header and a summary; without it (``lmconform check``) it prints all.
    """

    def __init__(self, config: pytest.Config, run: Run) -> None:
        self._config = config
        self._run = run
        self._costs: list[dict[str, Any]] = []
        self._progress: text.Progress | None = None
        self._controls: Controls | None = None
        self._alone = not config.pluginmanager.has_plugin("terminal")
        asked = {"profile": run.profile.name, "seed": run.seed}
        self.results = results.Results(run.engine(), asked, planned={}, known=run.known)
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
            results.append(self._run.report, record)
        self.results.records.append(record)
        if self._progress:
            self._progress.step(record)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._tell(report)

    def pytest_keyboard_interrupt(self) -> None:
        self.results.run["note"] = "The run was interrupted; what it had judged until then is kept."
        if self._controls:
            self._controls.end()

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
        if self._controls:
            self.results.run["controls"] = [asdict(control) for control in self._controls.results()]
        self.results.run["seconds"] = time.monotonic() - self._run.started
        self.results.run["costs"] = results.merge_counts([self._run.costs(), *self._costs])
        if self._run.report is not None:
            results.write(self._run.report, self.results)
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
        if self._config.option.controls and not self._config.option.collectonly:
            self._controls = Controls(sorted({name.partition("-")[0] for name in self.results.planned}))
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
