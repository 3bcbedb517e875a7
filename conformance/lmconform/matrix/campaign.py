"""Many engines before the suite, side by side: what is judged, and what of it is kept on the disk at once."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from lmconform.judging.verdict import Verdict
from lmconform.matrix.forked import Ended, each
from lmconform.matrix.judged import Judged, judge, one_thread
from lmconform.spec import access
from lmconform.suite.dsl import Decides
from lmconform.suite.plan import Profile
from lmconform.suite.stock import Stock

SECONDS = 600.0
"""For one engine under one seed; beyond it is a time-out."""
WARM = ("lmconform.engines.reference:Reference", "lmconform.engines.torch_kernels:TorchKernels")
"""Right engines that are asked first: the oracles of what they meet serve all others."""
KEPT = ("requirement", "verdict", "test", "door", "case", "seconds", "bites", "examples")
"""What is kept of a record that did not fail."""
TOKENS = "lmconform.matrix.tokens:TokensAlone"
FILE = "faults.jsonl"


class Untrustworthy(RuntimeError):
    """An engine that is known to be right did not pass, so nothing can be said of others."""


@dataclass(frozen=True)
class Entrant:
    """An engine to judge."""

    name: str
    target: str
    requirement: str = ""
    """The one that it breaks first of all; empty for a right engine."""
    options: Mapping[str, str] = field(default_factory=dict)
    summary: str = ""
    """What is wrong with it, or done in another way."""
    seen_in: str = ""
    """A public bug of this kind."""
    regime: str | None = None
    """Of a fault: the regime outside of which it does nothing. It alone is entered."""
    door: str | None = None
    """The only access through which it can show; the tests of others are left out."""

    @property
    def mechanism(self) -> str:
        """Prefix of the requirement's page."""
        return self.requirement.partition("-")[0]


@dataclass
class Campaign:
    """Engines, seeds, and how each is judged."""

    entrants: Sequence[Entrant]
    profile: Profile
    seeds: Sequence[int]
    jobs: int
    report: Path
    by_primary: bool = False
    """Only the tests of the requirement that an engine breaks, until one fails."""
    every_regime: bool = False
    """Enter every regime of a right engine, which takes about three times as long, and not the default one alone."""
    tokens: frozenset[str] = frozenset()
    """Tests that need no log-probabilities; known once the first seed is under way."""

    def run(self, tell: Callable[[str], None]) -> Iterator[tuple[Entrant, Judged]]:
        """Judge all engines under all seeds, and keep each result as soon as it is there.

        Raises Untrustworthy if a right engine does not pass, and OSError if the report cannot be written.
        """
        one_thread()
        self.report.mkdir(parents=True, exist_ok=True)
        with (self.report / FILE).open("w") as lines:
            for seed in self.seeds:
                for entrant, found in self._judged(seed, tell):
                    lines.write(json.dumps(as_line(entrant, found, self.tokens)) + "\n")
                    lines.flush()
                    yield entrant, found
                gc.collect()  # the oracles of this seed, before those of the next: a large process is slow to fork

    def _judged(self, seed: int, tell: Callable[[str], None]) -> Iterator[tuple[Entrant, Judged]]:
        """All engines under one seed."""
        stock = Stock()
        try:
            self._warm(seed, stock, tell)
            for entrant, found in each(self.entrants, self._work(seed, stock), self.jobs, SECONDS):
                if isinstance(found, Ended):
                    found = Judged(entrant.target, seed, ended=found.how, detail=found.detail)
                yield entrant, found
        finally:
            gc.unfreeze()
            stock.remove()

    def _work(self, seed: int, stock: Stock) -> Callable[[Entrant], Judged]:
        def work(entrant: Entrant) -> Judged:
            def wanted(spec: Decides) -> bool:
                asked = not self.by_primary or spec.requirement == entrant.requirement
                return asked and entrant.door in (None, access(spec.door))

            return judge(
                entrant.target,
                self.profile,
                seed,
                options=entrant.options,
                stock=stock,
                wanted=wanted,
                regimes=None if self.every_regime and not entrant.requirement else {entrant.regime},
                once=self._access,
                until=lambda record: self.by_primary and record.verdict == Verdict.FAIL,
            )

        return work

    def _access(self, spec: Decides) -> Hashable:
        """What a fault is caught by: a requirement through an access. Once is enough."""
        return spec.requirement, access(spec.door), spec.body.__name__ in self.tokens

    def _warm(self, seed: int, stock: Stock, tell: Callable[[str], None]) -> None:
        tell(f"seed {seed}: computing oracles with engines that are right")
        wanted = {one.requirement for one in self.entrants} if self.by_primary else None
        formats = dict.fromkeys(one.options.get("dtype", "float32") for one in self.entrants)
        regimes = {None, *(one.regime for one in self.entrants)}
        for target, dtype in product(WARM, formats):
            found = judge(
                target,
                self.profile,
                seed,
                options={"dtype": dtype},
                stock=stock,
                wanted=lambda spec: not wanted or spec.requirement in wanted,
                regimes=regimes,
            )
            if bad := [one for one in found.records if one["verdict"] in (Verdict.FAIL, Verdict.ERROR)]:
                raise Untrustworthy(
                    f"{target} in {dtype}, which is right, does not pass under seed {seed}: {bad[0]['requirement']} "
                    f"{bad[0]['verdict']} in {bad[0]['test']}, {bad[0]['case']}: {bad[0]['reason']}"
                )
        if not self.tokens and not self.by_primary:  # which prints no table by access
            self.tokens = _without_logprobs(self.profile, seed, stock)
        gc.collect()
        gc.freeze()  # children look through less, and copy fewer pages


def _without_logprobs(profile: Profile, seed: int, stock: Stock) -> frozenset[str]:
    """Names of the tests that are judged also where log-probabilities are not offered."""
    options = {"engine": "reference"}
    found = judge(TOKENS, profile, seed, options=options, stock=stock, wanted=lambda spec: spec.door == "generate")
    return frozenset(record["test"] for record in found.records if record["verdict"] != Verdict.UNSUPPORTED)


def as_line(entrant: Entrant, found: Judged, tokens: frozenset[str]) -> dict[str, Any]:
    """What the report keeps of one engine under one seed."""
    line = asdict(found) | {"name": entrant.name, "requirement": entrant.requirement, "summary": entrant.summary}
    line["records"] = [_short(record) | {"tokens": record["test"] in tokens} for record in found.records]
    return line


def _short(record: Mapping[str, Any]) -> dict[str, Any]:
    bad = record["verdict"] in (Verdict.FAIL, Verdict.ERROR)
    return {key: record[key] for key in ((*KEPT, "reason") if bad else KEPT)}


Run = tuple[Entrant, Judged, frozenset[str]]
"""An engine, what the suite said of it, and the tests that need no log-probabilities."""


def read(directories: Sequence[Path]) -> list[Run]:
    """What earlier campaigns kept. Raises ValueError where a directory holds none."""
    found = []
    for directory in directories:
        try:
            lines = (directory / FILE).read_text().splitlines()
        except OSError as error:
            raise ValueError(f"{directory} holds no {FILE} of an earlier run ({error.strerror}).") from None
        for line in map(json.loads, lines):
            entrant = Entrant(line.pop("name"), line["target"], line.pop("requirement"), {}, line.pop("summary"))
            judged = Judged(**line)
            tokens = frozenset(record["test"] for record in judged.records if record["tokens"])
            found.append((entrant, judged, tokens))
    return found
