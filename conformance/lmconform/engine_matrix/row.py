"""One engine's row: what a run of ``lmconform check`` reported of it, or why there was none."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lmconform.engine_matrix.entries import Entry
from lmconform.judging.verdict import Verdict
from lmconform.report.known import Entry as KnownFailure
from lmconform.report.results import REPORT, Outcome, json_text
from lmconform.report.text import reason
from lmconform.spec import requirements

ROW, LOG = "row.json", "check.log"
JUDGED, NOT_INSTALLED, NOT_JUDGED = "judged", "does not install", "could not be judged"
LAST_WORDS = 3
"""Lines of a run that came to nothing, which the row keeps."""


@dataclass
class Row:
    """What the table says of one entry. Plain values, since it is kept as JSON."""

    name: str
    engine: str
    options: dict[str, str]
    status: str
    """``JUDGED``, ``NOT_INSTALLED`` or ``NOT_JUDGED``."""
    reason: str = ""
    """Why it was not judged."""
    title: str = ""
    """What the engine calls itself."""
    version: str = ""
    precision: dict[str, str] = field(default_factory=dict)
    regimes: list[str] = field(default_factory=list)
    conforms: bool = False
    profile: str = ""
    seed: int = 0
    seconds: float = 0.0
    """The whole run."""
    engine_seconds: float = 0.0
    """In the engine's calls, summed over workers."""
    mechanisms: dict[str, dict[str, int]] = field(default_factory=dict)
    """By page: how many requirements got which verdict."""
    requirements: dict[str, tuple[str, str]] = field(default_factory=dict)
    """By ID: the verdict, and the reason where it is no pass."""

    @classmethod
    def without(cls, entry: Entry, status: str, why: str) -> Row:
        """The row of an engine that could not be judged."""
        return cls(entry.name, entry.engine, dict(entry.options), status, " ".join(why.split()))

    def counts(self) -> Counter[str]:
        """How many requirements got which verdict."""
        return Counter(verdict for verdict, _ in self.requirements.values())

    def keep(self, folder: Path) -> None:
        """Write it into the entry's folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ROW).write_text(json_text(asdict(self)), encoding="utf-8")


def kept(report: Path) -> dict[str, Row]:
    """The rows of this and of earlier runs, by name. Raises OSError, and ValueError for a file that is no row."""
    found = {}
    for path in sorted(report.glob(f"*/{ROW}")):
        try:
            row = Row(**json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is no row of this version of lmconform ({error}). Remove it.") from error
        found[row.name] = row
    return found


def judge(entry: Entry, python: Path | None, folder: Path, arguments: Sequence[str]) -> Row:
    """Run ``lmconform check`` in a process of its own, its words in the folder, and return the row."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REPORT).unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "lmconform",
        "check",
        *entry.arguments(python),
        "--report",
        str(folder),
        *arguments,
    ]
    with (folder / LOG).open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            process.wait()
        except BaseException:
            process.terminate()  # it sums up what it has judged, and ends its engine
            process.wait()
            raise
    if not (folder / REPORT).exists():
        words = (folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return Row.without(entry, NOT_JUDGED, " ".join(words[-LAST_WORDS:]) or f"exit code {process.returncode}")
    return _of(entry, json.loads((folder / REPORT).read_text(encoding="utf-8")))


def _of(entry: Entry, report: dict[str, Any]) -> Row:
    """The row of a report.json."""
    engine, run = report["engine"], report["run"]
    row = Row(entry.name, entry.engine, dict(entry.options), JUDGED)
    row.title, row.version = engine["name"], engine["version"]
    row.precision, row.regimes = engine["precision"], list(engine["regimes"])
    row.conforms, row.profile, row.seed = report["conforms"], run["profile"], run["seed"]
    row.seconds, row.engine_seconds = run["seconds"], run["costs"]["engine_seconds"]
    if report["exit_code"] == 2:
        row.status, row.reason = NOT_JUDGED, "no requirement could be decided"
    for one in report["requirements"]:
        known = KnownFailure(**one["known"]) if one["known"] else None
        outcome = Outcome(requirements()[one["id"]], one["tests"], known)
        verdict = outcome.verdict
        page = row.mechanisms.setdefault(outcome.requirement.page, {})
        page[verdict] = page.get(verdict, 0) + 1
        row.requirements[one["id"]] = verdict, _why(outcome, verdict)
    return row


def _why(outcome: Outcome, verdict: Verdict) -> str:
    if verdict is Verdict.PASS:
        return ""
    if verdict in (Verdict.KNOWN, Verdict.UNEXPECTED):
        return str(outcome.known)
    return " ".join(reason(outcome, verdict).split())
