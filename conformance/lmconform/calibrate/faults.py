"""Measures the library of faults, and writes what the report and the docs know of it.

    lmconform faults --seeds 3 --report matrix
    python -m lmconform.calibrate.faults matrix

keeps of each fault what it is, through which doors it fails which requirements (its signature), and its trigger rate.
What is known of faults that were not judged this time stays, so a new one is measured alone:

    lmconform faults NAME --report new
    python -m lmconform.calibrate.faults new

A trigger rate is a fault's own, whatever the suite asks: one that is known is measured again with ``--rates`` alone.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lmconform.calibrate.triggers import measure
from lmconform.faults import FAULTS
from lmconform.matrix.campaign import read
from lmconform.matrix.judged import Judged
from lmconform.report.suspects import MEASURED, pattern


def signature(runs: Iterable[Judged]) -> dict[str, float]:
    """For each requirement and door that failed: in what share of the runs that decided it."""
    decided, failed = Counter[str](), Counter[str]()
    for judged in runs:
        found = pattern(judged.records)
        decided.update(found)
        failed.update(key for key, bad in found.items() if bad)
    return {key: round(failed[key] / decided[key], 2) for key in sorted(failed)}


def measured(runs: Mapping[str, list[Judged]], rates: Mapping[str, float | None]) -> dict[str, Any]:
    """What is kept of every fault of the library that was judged."""
    return {
        fault.name: {
            "requirement": fault.requirement,
            "site": fault.site,
            "summary": fault.summary,
            "seen_in": fault.seen_in,
            "rate": rates.get(fault.name),
            "fails": signature(runs[fault.name]),
        }
        for fault in FAULTS
        if fault.name in runs
    }


def main(directories: list[Path], again: bool) -> None:
    """Write the file; measure the trigger rates that are not known, or all of them ``again``."""
    runs: dict[str, list[Judged]] = {}
    for entrant, judged, _ in read(directories):
        if judged.ended == "done":
            runs.setdefault(entrant.name, []).append(judged)
    names = {fault.name for fault in FAULTS}
    kept = json.loads(MEASURED.read_text(encoding="utf-8"))["faults"] if MEASURED.exists() else {}
    rates = {} if again else {name: given["rate"] for name, given in kept.items()}
    for name, share in measure([name for name in runs if name not in rates], jobs=2):
        rates[name] = share
        print(f"{name}: {'broke down' if share is None else f'{share:.1%} of random examples'}", flush=True)
    found = {name: given for name, given in kept.items() if name in names} | measured(runs, rates)
    lines = [f"  {json.dumps(name)}: {json.dumps(given)}" for name, given in found.items()]
    MEASURED.write_text('{"faults": {\n' + ",\n".join(lines) + "\n}}\n", encoding="utf-8")
    print(f"{len(lines)} faults are in {MEASURED}")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(prog="python -m lmconform.calibrate.faults", description="Write measured.json.")
    arguments.add_argument("reports", nargs="+", type=Path, help="reports of `lmconform faults`")
    arguments.add_argument("--rates", action="store_true", help="measure again all trigger rates, known ones too")
    given = arguments.parse_args()
    main(given.reports, given.rates)
