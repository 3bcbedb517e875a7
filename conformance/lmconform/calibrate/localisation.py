"""How often the report names the right mechanism for a fault that the library has never seen.

    lmconform faults --report matrix
    python -m lmconform.calibrate.localisation matrix

Each judged fault is diagnosed by a library from which its whole family is left out: all faults of the same place in the
code (``Fault.site``). Shares are averaged over mechanisms, so that one with many faults counts no more than another.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from lmconform.calibrate.faults import signature
from lmconform.faults import FAULTS
from lmconform.matrix.campaign import read
from lmconform.matrix.judged import Judged
from lmconform.report.suspects import Diagnosis, Known, diagnose, pattern


@dataclass(frozen=True)
class Told:
    """What was said of one fault under one seed."""

    fault: str
    requirement: str
    diagnosis: Diagnosis

    @property
    def mechanism(self) -> str:
        return self.requirement.partition("-")[0]

    @property
    def first(self) -> bool:
        """Whether the requirement to read first is the one that it breaks."""
        return self.diagnosis.ranked[:1] == (self.requirement,)

    @property
    def right(self) -> bool:
        """Whether the requirement to read first is of the mechanism that it breaks."""
        return bool(self.diagnosis.ranked) and self.diagnosis.ranked[0].partition("-")[0] == self.mechanism

    @property
    def named(self) -> bool:
        return self.diagnosis.mechanism == self.mechanism

    @property
    def abstained(self) -> bool:
        return self.diagnosis.mechanism is None


def told(runs: dict[str, list[Judged]], without_family: bool) -> list[Told]:
    """Diagnose every run, by all faults, or by those of other families."""
    facts = {fault.name: fault for fault in FAULTS}
    library = [
        Known(name, facts[name].requirement, facts[name].site, facts[name].summary, "", signature(own))
        for name, own in runs.items()
    ]
    found = []
    for name, own in runs.items():
        fault = facts[name]
        known = [one for one in library if not without_family or one.site != fault.site]
        found += [Told(name, fault.requirement, diagnose(pattern(one.records), known)) for one in own]
    return found


def table(rows: Sequence[Told]) -> str:
    """A line a mechanism, and their average."""
    by_page: defaultdict[str, list[Told]] = defaultdict(list)
    for row in rows:
        by_page[row.mechanism].append(row)
    lines = ["mechanism   faults  primary first  mechanism first  named  abstained"]
    shares = []
    for page, own in by_page.items():
        share = [mean(getattr(one, what) for one in own) for what in ("first", "right", "named", "abstained")]
        shares.append(share)
        lines.append(f"{page:<12}{len(own):>6}" + "".join(f"{one:>13.0%}" for one in share))
    average = [mean(column) for column in zip(*shares, strict=True)]
    lines.append(f"{'average':<12}{len(rows):>6}" + "".join(f"{one:>13.0%}" for one in average))
    return "\n".join(lines)


def main(directories: list[Path]) -> None:
    """Print both tables, and whose mechanism was called by another name."""
    runs: dict[str, list[Judged]] = {}
    for entrant, judged, _ in read(directories):
        if judged.caught_after is not None:
            runs.setdefault(entrant.name, []).append(judged)
    for words, without in (
        ("in the library (its signature may come from these very runs)", False),
        ("family left out", True),
    ):
        rows = told(runs, without)
        print(f"{words}\n{table(rows)}\n")
        for row in rows:
            if not row.first if not without else not row.right:
                ranked = ", ".join(row.diagnosis.ranked[:4])
                print(f"  {row.fault} ({row.requirement}): {ranked}; {row.diagnosis.mechanism or 'abstained'}")
        print()


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
