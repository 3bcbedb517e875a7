"""Which planted fault fails like this engine, and in which order its failures should be read.

The library's faults were judged by the whole suite; what each of them fails, through which door, is kept in
``faults/measured.json``. A pattern of failures is compared with all of them. One fault often fails much of what rests
on the mechanism that it breaks, so the requirement to read first is the one that faults with this pattern break, and
what such faults fail as well follows from it.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import hypot, sqrt
from pathlib import Path
from typing import Any

from lmconform.judging.verdict import Verdict
from lmconform.spec import access, requirements

MEASURED = Path(__file__).parents[1] / "faults" / "measured.json"
SHARPNESS = 12
"""A fault counts with its likeness to this power: one that is 0.8 alike counts 15 times less than one that is equal."""
SAME = 0.95
"""From this likeness on, the engine may have the very fault. Else a comparison with the oracle comes last, since any
fault fails it, wherever it is."""
SURE = 0.5
"""Share of the evidence that a mechanism, or a fault, must have to be named."""
ALIKE = 0.25
"""Likeness, from 0 to 1, that the nearest fault must have; below it the library knows nothing of this kind."""
EXPECTED = 0.3
"""Chance with which the faults that fail so fail a requirement too, from which on it follows from what they break."""
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
        return _page(self.requirement)

    def chance(self, requirement: str) -> float:
        """In what share of the seeds it failed ``requirement``, through the door through which it did so most often."""
        return max((share for key, share in self.fails.items() if key.partition(" ")[0] == requirement), default=0.0)


@dataclass(frozen=True)
class Diagnosis:
    """What a pattern of failures says."""

    ranked: tuple[str, ...]
    """The failing requirements, the one to read first in front."""
    follows: frozenset[str] = frozenset()
    """Those that faults of this kind fail as well. What fails beside them may be a second fault."""
    mechanism: str | None = None
    """Page of the mechanism that is most likely broken; None where the evidence is divided, or nothing is like it."""
    suspect: Known | None = None
    """The fault of the library that fails most like it, if one stands out within the mechanism."""
    share: float = 0.0
    """Of the evidence, that of the mechanism, from 0 to 1."""

    @property
    def own(self) -> tuple[str, ...]:
        """The failing requirements that do not follow from the first."""
        return tuple(one for one in self.ranked if one not in self.follows)

    def as_json(self) -> dict[str, Any]:
        """What report.json says."""
        suspect = self.suspect.name if self.suspect else None
        return {
            "ranked": self.ranked,
            "follows": sorted(self.follows, key=self.ranked.index),
            "mechanism": self.mechanism,
            "suspect": suspect,
            "share": round(self.share, 3),
        }


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
    likeness = _likeness(found, library() if known is None else known)
    weights = {fault: alike**SHARPNESS for fault, alike in likeness.items()}
    total = sum(weights.values())
    of_mechanism, of_requirement = defaultdict[str, float](float), defaultdict[str, float](float)
    for fault, weight in weights.items():
        of_mechanism[fault.mechanism] += weight / total
        of_requirement[fault.requirement] += weight / total
    nearest = max(likeness.values(), default=0.0)

    def place(one: str) -> tuple[float, ...]:
        last = nearest < SAME and requirements()[one].kind == "differential"
        return last, -of_mechanism[_page(one)], -of_requirement[one], *_plainly(one)

    ranked = tuple(sorted(failing, key=place))
    if nearest < ALIKE:
        return Diagnosis(ranked)
    mechanism, share = max(of_mechanism.items(), key=lambda one: one[1])
    follows = frozenset(one for one in ranked[1:] if _chance(one, weights) >= EXPECTED)
    if share < SURE:
        return Diagnosis(ranked, follows, share=share)
    suspect = max((fault for fault in weights if fault.mechanism == mechanism), key=lambda fault: weights[fault])
    stands_out = weights[suspect] >= SURE * share * total
    return Diagnosis(ranked, follows, mechanism, suspect if stands_out else None, share)


def _likeness(found: Mapping[str, bool], known: Sequence[Known]) -> dict[Known, float]:
    """The cosine between what failed and what each fault fails, of those that have something in common.

    A failure counts the more, the fewer faults of the library cause it. What was not decided is left out.
    """
    often = Counter(key for fault in known for key, share in fault.fails.items() if share > 0)
    rarity = {key: 1 / sqrt(often[key] + 1) for key in found}
    failed = {key: rarity[key] for key, bad in found.items() if bad}
    alike = {}
    for fault in known:
        fails = {key: share * rarity[key] for key, share in fault.fails.items() if key in found}
        if common := sum(fails[key] * failed[key] for key in fails.keys() & failed.keys()):
            alike[fault] = common / (_length(fails) * _length(failed))
    return alike


def _length(vector: Mapping[str, float]) -> float:
    return hypot(*vector.values())


def _chance(requirement: str, weights: Mapping[Known, float]) -> float:
    """How often faults that fail so, each by its weight, fail ``requirement`` through any door."""
    total = sum(weights.values())
    return sum(weight * fault.chance(requirement) for fault, weight in weights.items()) / total


def _page(name: str) -> str:
    return name.partition("-")[0]


def _plainly(name: str) -> tuple[int, int]:
    requirement = requirements()[name]
    return KINDS.index(requirement.kind), requirement.number
