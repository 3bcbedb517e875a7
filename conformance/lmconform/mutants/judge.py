"""Says of one mutant whether it is live, and whether the suite kills it."""

from __future__ import annotations

import hashlib
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lmconform.judging.verdict import Verdict
from lmconform.matrix.judged import Turn, judge
from lmconform.mutants.loaded import install
from lmconform.mutants.material import Made, write_all
from lmconform.mutants.mutate import Mutant
from lmconform.suite.dsl import Decides
from lmconform.suite.plan import on_one_checkpoint
from lmconform.suite.stock import Stock
from lmconform.transport.client import EngineFault, StartError

PROFILE = on_one_checkpoint(5, "mutants")
ENGINE = "reference"
Place = tuple[str, str]
"""A test, and the case it was judged on, by their names."""


class Fate(StrEnum):
    """What became of a mutant."""

    KILLED = "killed"
    """It answers other than the reference, and a requirement fails."""
    SURVIVED = "survived"
    """It answers other than the reference, and no requirement fails."""
    EQUIVALENT = "equivalent"
    """It answers every call of the corpus as the reference does, bit for bit."""
    CRASH = "crash"
    """It breaks down before a requirement fails: an exception, NaN, a malformed answer, an end of its process."""
    TIME_OUT = "time-out"
    """It does not end."""
    REFUSED = "refused"
    """It refuses what the reference takes, and of what it does not refuse no requirement fails."""
    ADAPTER = "adapter"
    """The preflight takes it for an adapter that is off, so that no requirement is asked."""
    SUITE = "suite"
    """The suite itself broke down over it: a fault of the suite."""


@dataclass(frozen=True)
class Outcome:
    """What became of one mutant, and what showed it."""

    fate: Fate
    call: int | None = None
    """The first call of the corpus that it answers otherwise, or with an exception."""
    requirement: str = ""
    """The one that failed or met the breakdown."""
    reason: str = ""
    seconds: float = 0.0


class Unsound(RuntimeError):
    """The unchanged reference does not come through, so nothing can be said of mutants."""


class Grounds:
    """What all mutants are judged on: the plain reference's answers, and the suite's oracles.

    Made in the parent, which imports the unchanged reference; children are forked from it.
    """

    def __init__(self, seed: int, calls: int, wanted: Callable[[Decides], bool]) -> None:
        self._folder = TemporaryDirectory(prefix="lmconform-mutants-")
        self._made = write_all(Path(self._folder.name))
        self._stock = Stock()
        self._wanted = wanted
        self._seed = seed
        self._plain: dict[Place, dict[str, Any]] = {}
        self._answers = list(digests(self._made, calls))

    def prepare(self) -> None:
        """Compute the suite's oracles by judging the plain reference; raises Unsound unless it passes."""
        judged = judge(ENGINE, PROFILE, self._seed, stock=self._stock, wanted=self._wanted)
        for record in judged.records:
            if record["verdict"] in (Verdict.FAIL, Verdict.ERROR):
                raise Unsound(f"The reference itself: {record['requirement']} {record['verdict']}: {record['reason']}")

    def asked_again(self) -> dict[Place, dict[str, Any]]:
        """The plain reference's record of each test and case, all oracles being there; to be asked in a child."""
        judged = judge(ENGINE, PROFILE, self._seed, stock=self._stock, wanted=self._wanted)
        return {(record["test"], record["case"]): record for record in judged.records}

    def compare_with(self, plain: dict[Place, dict[str, Any]]) -> None:
        """Let mutants meet the tests in the order of what they cost in these records, and know their refusals."""
        self._plain = plain

    def outcome(self, mutant: Mutant) -> Outcome:
        """Judge a mutant in this process, which is of no other use afterwards."""
        started = time.monotonic()
        install(mutant)
        call = first_difference(self._made, self._answers)
        if call is None:
            return Outcome(Fate.EQUIVALENT, seconds=time.monotonic() - started)
        try:
            fate, requirement, reason = self._suite()
        except (StartError, EngineFault) as error:
            fate, requirement, reason = Fate.CRASH, "", str(error)
        except Exception:
            fate, requirement, reason = Fate.SUITE, "", traceback.format_exc()
        return Outcome(fate, call, requirement, reason, time.monotonic() - started)

    def close(self) -> None:
        """Remove the files."""
        self._folder.cleanup()
        self._stock.remove()

    def _suite(self) -> tuple[Fate, str, str]:
        ends = (Verdict.FAIL, Verdict.ERROR)
        judged = judge(
            ENGINE,
            PROFILE,
            self._seed,
            stock=self._stock,
            wanted=self._wanted,
            until=lambda record: record.verdict in ends,
            first=self._cost,
        )
        last = judged.records[-1]
        if last["verdict"] not in ends:
            return self._unharmed(judged.records)
        fate = Fate.KILLED if last["verdict"] == Verdict.FAIL else Fate.CRASH
        if fate is Fate.CRASH and last["reason"].startswith("adapter: "):
            fate = Fate.ADAPTER
        return fate, last["requirement"], f"{last['test']}, {last['case']}: {last['reason']}"

    def _unharmed(self, records: Sequence[dict[str, Any]]) -> tuple[Fate, str, str]:
        """Survived, unless it refused to be judged."""
        for record in records:
            plain = self._plain.get((record["test"], record["case"]), record)
            if record["verdict"] == Verdict.UNSUPPORTED != plain["verdict"] or record["declined"] > plain["declined"]:
                return Fate.REFUSED, record["requirement"], record["reason"]
        return Fate.SURVIVED, "", ""

    def _cost(self, turn: Turn) -> float:
        spec, case = turn
        plain = self._plain.get((spec.body.__name__, str(case)))
        return plain["seconds"] if plain else 0.0


def digests(made: Sequence[Made], calls: int) -> Iterator[bytes]:
    """The corpus's first answers, shortened, by the reference that this process holds."""
    from lmconform.mutants.corpus import Corpus

    for answer in Corpus(made).answers(calls):
        yield hashlib.blake2b(answer, digest_size=16).digest()


def first_difference(made: Sequence[Made], answers: Sequence[bytes]) -> int | None:
    """The first call that this process answers otherwise than with ``answers``, or with an exception; None if none."""
    number = 0
    try:
        for number, answer in enumerate(digests(made, len(answers)), 1):
            if answer != answers[number - 1]:
                return number - 1
    except Exception:  # whatever a mutant raises
        return number
    return None
