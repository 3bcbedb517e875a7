"""What a run of the benchmarks found, as a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.paired import Ratio

SCHEMA = 1
COUNTS = "-counts"
"""Ends the name of a file of a run that timed nothing."""
FOLDER = "lmconform-bench"
"""Where runs are kept, unless --results names another folder."""


class Unreadable(ValueError):
    """A file holds no results of this version; the message names it and the way out."""


@dataclass
class Record:
    """One benchmark. All ratios are better when greater, and all counts when less."""

    name: str
    kind: str
    """``decode``, ``prefill``, ``batch``, ``cache``, ``gqa`` or ``suite``."""
    settings: dict[str, Any]
    """What was asked. Records of two runs are comparable where it is equal."""
    ratios: dict[str, Ratio] = field(default_factory=dict)
    counted: dict[str, float] = field(default_factory=dict)
    """What does not depend on the clock: operations, bytes, waits."""
    figures: dict[str, Any] = field(default_factory=dict)
    """What is shown and never judged, seconds and rates above all."""
    roofline: dict[str, Any] | None = None
    """``floor`` and ``measured`` in seconds, their ``ratio``, and what the floor is ``bound`` by."""
    times: dict[str, list[float]] = field(default_factory=dict)
    """Seconds by party, one a round: all that ratios and figures were made of."""
    notes: list[str] = field(default_factory=list)


@dataclass
class Results:
    """A run: the machine, the engine, what they were held against, and the records."""

    machine: dict[str, Any]
    calibration: dict[str, Any]
    """The stream and the product at the start of the run; empty where nothing was timed."""
    engine: dict[str, Any]
    baselines: list[dict[str, Any]]
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    records: list[Record] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """Benchmarks that could not be run, and why."""

    def record(self, name: str) -> Record | None:
        """The record of this name, or None."""
        return next((one for one in self.records if one.name == name), None)

    def write(self, path: Path) -> Path:
        """Write the file at once as a whole, so that a reader or an interruption never meets half of it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        content = {"schema": SCHEMA, **asdict(self)}
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        part.replace(path)
        return path

    def file_name(self) -> str:
        """A name that sorts by time: ``20270131-142501-1a2b3c4.json``, with ``-counts`` where nothing was timed."""
        stamp = self.created[:19].replace("-", "").replace(":", "").replace("T", "-")
        counts = "" if any(record.times for record in self.records) else COUNTS
        return f"{stamp}-{str(self.machine.get('commit') or 'no-commit')[:7]}{counts}.json"


def read(path: Path) -> Results:
    """Read a file that ``Results.write`` wrote. Raises Unreadable."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("schema") != SCHEMA:
            raise KeyError("schema")
        records = [_record(one) for one in content.pop("records")]
        return Results(**content, records=records)
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror}. Give a file that `nox -s bench` wrote.") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Unreadable(
            f"{path} holds no results of this version of the benchmarks ({type(error).__name__}: {error}). Run them "
            "again without --compare, and give the file that they write."
        ) from error


def _record(content: Mapping[str, Any]) -> Record:
    ratios = {name: Ratio(**one) for name, one in content["ratios"].items()}
    return Record(**{**content, "ratios": ratios})


def latest(folder: Path, counts_only: bool = False) -> Path | None:
    """The newest file of results in ``folder``, or None; those of runs that timed nothing only with ``counts_only``."""
    names = [path for path in folder.glob("*.json") if counts_only or not path.stem.endswith(COUNTS)]
    return max(names, key=lambda path: path.name, default=None)
