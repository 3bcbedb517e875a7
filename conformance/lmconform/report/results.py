"""From the records of single tests to one verdict for each requirement, and to report.json."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lmconform import __version__
from lmconform.judging.verdict import Verdict, exit_code, merge
from lmconform.report.known import Entry, Known
from lmconform.report.suspects import Diagnosis, diagnose, pattern
from lmconform.spec import Requirement, requirements

RECORDS, REPORT, COUNTEREXAMPLES = "records.jsonl", "report.json", "counterexamples"


@dataclass
class Outcome:
    """A requirement and what its tests came to."""

    requirement: Requirement
    records: Sequence[Mapping[str, Any]]
    known: Entry | None = None
    """What the list of known failures says of it."""

    @property
    def bites(self) -> int:
        return sum(record["bites"] for record in self.records)

    @property
    def examples(self) -> int:
        return sum(record["examples"] for record in self.records)

    @property
    def declined(self) -> list[Mapping[str, Any]]:
        """Tests of which the engine did not answer some examples, and none of the others failed."""
        quiet = (Verdict.PASS, Verdict.UNSUPPORTED)
        return [record for record in self.records if record["verdict"] in quiet and record.get("declined")]

    @property
    def worst(self) -> float:
        return max((record["worst"] for record in self.records), default=0.0)

    @property
    def verdict(self) -> Verdict:
        """That of its tests together; a pass of what is listed as known is unexpected.

        Where the engine declined examples, too few that could have shown a fault are no lack of the suite's.
        """
        found = merge((record["door"], Verdict(record["verdict"]), record["bites"]) for record in self.records)
        if found is Verdict.VACUOUS and self.declined:
            return Verdict.UNSUPPORTED
        return Verdict.UNEXPECTED if found is Verdict.PASS and self.known else found

    @property
    def silent(self) -> list[str]:
        """Doors through which it held, and no example could have shown a fault."""
        bitten = {record["door"] for record in self.records if record["bites"]}
        return sorted({record["door"] for record in self.records if record["verdict"] == Verdict.PASS} - bitten)

    @property
    def advice(self) -> bool:
        """Whether it fails what the standard only advises, with SHOULD: no condition of conforming."""
        return self.verdict is Verdict.FAIL and not self.requirement.keyword.startswith("MUST")

    def first(self, verdict: Verdict) -> Mapping[str, Any] | None:
        """The most telling record of this verdict: one that names a quantity, then the one with the largest excess."""
        found = [record for record in self.records if record["verdict"] == verdict]
        return max(found, key=_telling, default=None)


@dataclass
class Results:
    """All that a run found out."""

    engine: dict[str, Any]
    run: dict[str, Any]
    planned: dict[str, int]
    """Tests planned for each requirement; what has no record was not run."""
    records: list[dict[str, Any]] = field(default_factory=list)
    known: Known | None = None

    def outcomes(self) -> list[Outcome]:
        """One for each requirement of the run, in the order of the pages."""
        standard, entries = requirements(), self.known.entries if self.known else {}
        found = []
        for name in sorted(self.planned, key=list(standard).index):
            own = [record for record in self.records if record["requirement"] == name]
            missing = self.planned[name] - len(own)
            own += [_missing(name)] * (missing > 0)
            found.append(Outcome(standard[name], own, entries.get(name)))
        return found

    @property
    def missed(self) -> list[dict[str, Any]]:
        """Negative controls that were not caught: then nothing that passed means anything."""
        return [control for control in self.run.get("controls", ()) if not control["caught"]]

    def exit_code(self) -> int:
        outcomes = self.outcomes()
        code = exit_code(outcome.verdict for outcome in [one for one in outcomes if not one.advice] or outcomes)
        return code or int(bool(self.missed))

    def diagnosis(self) -> Diagnosis:
        """Which requirement to read first, and which planted fault fails like this engine."""
        return diagnose(pattern(record for outcome in self.outcomes() for record in outcome.records))

    def doors(self) -> dict[str, dict[str, int]]:
        """For each door: how many tests were judged, and how many of these passed."""
        table: dict[str, dict[str, int]] = {}
        for record in self.records:
            row = table.setdefault(record["door"], {"passed": 0, "judged": 0, "unsupported": 0})
            row["passed"] += record["verdict"] == Verdict.PASS
            row["judged"] += record["verdict"] != Verdict.UNSUPPORTED
            row["unsupported"] += record["verdict"] == Verdict.UNSUPPORTED
        return table

    def as_json(self) -> dict[str, Any]:
        """The content of report.json."""
        return {
            "lmconform": __version__,
            "engine": self.engine,
            "run": self.run,
            "conforms": self.exit_code() == 0,
            "exit_code": self.exit_code(),
            "doors": self.doors(),
            "diagnosis": self.diagnosis().as_json(),
            "requirements": [
                {
                    **asdict(outcome.requirement),
                    "path": outcome.requirement.path.name,
                    "verdict": outcome.verdict,
                    "known": asdict(outcome.known) if outcome.known else None,
                    "bites": outcome.bites,
                    "examples": outcome.examples,
                    "worst": outcome.worst,
                    "tests": outcome.records,
                }
                for outcome in self.outcomes()
            ],
        }


def prepare(directory: Path) -> None:
    """Make the report directory, and leave what is in it. Raises OSError if it cannot be written."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / RECORDS).open("a"):
        pass


def empty(directory: Path) -> None:
    """Remove what an earlier run left in the report directory."""
    (directory / RECORDS).write_text("")
    (directory / REPORT).unlink(missing_ok=True)
    for old in (directory / COUNTEREXAMPLES).glob("*.json"):
        old.unlink()


def append(directory: Path, record: dict[str, Any]) -> None:
    """Keep one record at once, so that an interrupted run loses nothing; a failure's counterexample too."""
    if record["counterexample"]:
        folder = directory / COUNTEREXAMPLES
        folder.mkdir(exist_ok=True)
        name = f"{record['requirement']}-{record['test']}-{record['case']}.json"
        path = folder / name.replace("/", "_").replace(" ", "_")  # the engine names its regimes and operators
        path.write_text(json_text(record["counterexample"]))
        record["counterexample_path"] = str(path)
    with (directory / RECORDS).open("a") as lines:
        lines.write(json.dumps(_legal(record), allow_nan=False) + "\n")


def write(directory: Path, results: Results) -> None:
    """Write report.json."""
    (directory / REPORT).write_text(json_text(results.as_json()))


def plain(value: Any) -> Any:
    """The value as it comes back from JSON: what travels between workers."""
    return json.loads(json.dumps(value, default=str))


def json_text(content: Any) -> str:
    """The text of a file."""
    return json.dumps(_legal(content), indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n"


def _legal(value: Any) -> Any:
    """JSON has no NaN and no infinity; they are written as strings, as on the wire."""
    if isinstance(value, Mapping):
        return {key: _legal(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_legal(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _missing(name: str) -> dict[str, Any]:
    return {
        "requirement": name,
        "verdict": Verdict.NOT_RUN,
        "reason": "the run ended before all of its tests",
        "bites": 0,
        "examples": 0,
        "worst": 0.0,
        "door": "",
        "test": "",
        "case": "",
    }


def _telling(record: Mapping[str, Any]) -> tuple[bool, float]:
    finding = record.get("finding") or {}
    return bool(finding.get("named")), float(finding.get("excess", 0.0))


def merge_counts(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Add up what the workers' connections cost."""
    total: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            if isinstance(value, list):
                total[name] = sorted({*total.get(name, []), *value})
            elif isinstance(value, Mapping):
                mine = total.setdefault(name, {})
                for key, number in value.items():
                    mine[key] = mine.get(key, 0) + number
            else:
                total[name] = total.get(name, 0) + value
    return total
