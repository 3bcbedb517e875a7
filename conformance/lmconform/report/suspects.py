"""Which planted fault fails like this engine, and in which order its failures should be read.

The library's faults were judged by the whole suite; what each of them fails, through which door, is kept in
``faults/measured.json``. A pattern of failures is compared with all of them. One fault often fails much of what rests
on the mechanism that it breaks, so the requirement to read first is the one that faults with this pattern break.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import exp, log
from pathlib import Path
from typing import Any

from lmconform.judging.verdict import Verdict
from lmconform.spec import access, requirements

MEASURED = Path(__file__).parents[1] / "faults" / "measured.json"
RARE, OFTEN = 0.02, 0.9
"""Chance that a test fails which the fault did not fail when it was measured, and one that it always failed."""
SOFTER = 4.0
"""Failures of one fault come together, so their evidence is no product: its logarithm is divided by this."""
SURE = 0.5
"""Share of the evidence that a mechanism, or a fault, must have to be named."""
KINDS = ("law", "measurement", "differential")
"""Where the library knows nothing: a law says most, a comparison with the oracle least."""


@dataclass(frozen=True, eq=False)
class Known:
    """A fault of the library, and what it fails."""

    name: str
    requirement: str
    site: str
    summary: str
    seen_in: str
    fails: Mapping[str, float]
    """For ``ROPE-2 score`` and the like: in what share of the seeds it failed."""
    rate: float | None = None
    """Share of random examples on which it changes anything beyond the budget; None for a kernel."""

    @property
    def mechanism(self) -> str:
        return self.requirement.partition("-")[0]


@dataclass(frozen=True)
class Diagnosis:
    """What a pattern of failures says."""

    ranked: tuple[str, ...]
    """The failing requirements, the one to read first in front."""
    mechanism: str | None
    """Page of the mechanism that is most likely broken; None where the evidence is divided, or nothing is like it."""
    suspect: Known | None
    """The fault of the library that fails most like it, if one stands out within the mechanism."""
    share: float
    """Of the evidence, that of the mechanism, from 0 to 1."""

    def as_json(self) -> dict[str, Any]:
        """What report.json says."""
        suspect = self.suspect.name if self.suspect else None
        return {"ranked": self.ranked, "mechanism": self.mechanism, "suspect": suspect, "share": round(self.share, 3)}


@lru_cache(maxsize=1)
def library() -> tuple[Known, ...]:
    """The measured faults; none where the file is not there yet."""
    if not MEASURED.exists():
        return ()
    content = json.loads(MEASURED.read_text(encoding="utf-8"))
    return tuple(Known(name, **given) for name, given in content["faults"].items())


def pattern(records: Iterable[Mapping[str, Any]]) -> dict[str, bool]:
    """For each requirement and door that was decided, whether it failed."""
    found: dict[str, bool] = {}
    for record in records:
        if record["verdict"] in (Verdict.PASS, Verdict.FAIL):
            key = f"{record['requirement']} {access(record['door'])}"
            found[key] = found.get(key, False) or record["verdict"] == Verdict.FAIL
    return found


def diagnose(found: Mapping[str, bool], known: Sequence[Known] | None = None) -> Diagnosis:
    """Compare a pattern with those of the ``known`` faults, by default of the whole library."""
    failing = {key.partition(" ")[0] for key, failed in found.items() if failed}
    weights = _weights(found, library() if known is None else known)
    total = sum(weights.values())
    of_mechanism: defaultdict[str, float] = defaultdict(float)
    of_requirement: defaultdict[str, float] = defaultdict(float)
    for fault, weight in weights.items():
        of_mechanism[fault.mechanism] += weight / total
        of_requirement[fault.requirement] += weight / total
    ranked = tuple(sorted(failing, key=lambda one: (-of_requirement[one], *_plainly(one))))
    mechanism = max(of_mechanism, key=lambda one: of_mechanism[one], default=None)
    if mechanism is None or of_mechanism[mechanism] < SURE:
        return Diagnosis(ranked, None, None, of_mechanism[mechanism] if mechanism else 0.0)
    suspect = max((fault for fault in weights if fault.mechanism == mechanism), key=lambda fault: weights[fault])
    stands_out = weights[suspect] >= SURE * of_mechanism[mechanism] * total
    return Diagnosis(ranked, mechanism, suspect if stands_out else None, of_mechanism[mechanism])


def _weights(found: Mapping[str, bool], known: Sequence[Known]) -> dict[Known, float]:
    """How well each fault explains the pattern."""
    if not any(found.values()):
        return {}
    scores = {fault: _score(found, fault) / SOFTER for fault in known}
    best = max(scores.values(), default=0.0)
    return {fault: exp(score - best) for fault, score in scores.items()}


def _score(found: Mapping[str, bool], fault: Known) -> float:
    """Logarithm of the pattern's probability under the fault."""
    total = 0.0
    for key, failed in found.items():
        chance = RARE + (OFTEN - RARE) * fault.fails.get(key, 0.0)
        total += log(chance if failed else 1 - chance)
    return total


def _plainly(name: str) -> tuple[int, int]:
    requirement = requirements()[name]
    return KINDS.index(requirement.kind), requirement.number
