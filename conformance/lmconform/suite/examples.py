"""Runs the examples of one test on one checkpoint, and looks twice before it calls a failure.

Hypothesis draws structures and shrinks them; each example is judged once and remembered, so that an engine that
answers differently every time cannot make a run flaky.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase

from lmconform.adapter import NotOffered, Refused
from lmconform.judging.budgets import CERTAIN
from lmconform.suite.dsl import Decides, Draw, Expect, Subject
from lmconform.suite.findings import Exceeded, Tally, Unfit
from lmconform.suite.structures import Telling

SHRINKS = 25
"""Examples tried after the first failure to make it smaller; engines are slow."""
REDRAWS = 3
"""A suspicion is a failure only if as many fresh draws of weights and tokens exceed too."""
SEEDS = 2**16

Structure = dict[str, Any]
Words = Callable[[Any, Tally, int], tuple[Any, Any]]
"""From the subject, the tally and a seed: ``expect`` and ``draw`` of one example."""


def model_words(subject: Subject, tally: Tally, token_seed: int) -> tuple[Expect, Draw]:
    """What a test of a model is called with, beside the model."""
    return Expect(subject, tally), Draw(token_seed, subject.vocab_size)


@dataclass(frozen=True)
class Example:
    """What makes one example again."""

    structure: Structure
    seed: int


class Runner:
    """Examples of one test on one subject. What exceeds is looked at twice, and only then made smaller."""

    def __init__(
        self,
        spec: Decides,
        subject: Callable[[int], Any],
        words: Words = model_words,
    ) -> None:
        """``subject`` gives what is judged for 0, and fresh draws of its weights for other numbers. It is asked for
        each example: a model that was loaded may have made room for others.
        """
        self.tally = Tally()
        self._words = words
        self._spec = spec
        self._subject = subject
        self._remembered: dict[str, Exceeded | None] = {}
        self._first: tuple[Example, Exceeded] | None = None
        """The failure that was found; its fresh draws exceed too."""
        self._failed: tuple[Example, Exceeded] | None = None
        """The smallest example so far that exceeds."""
        self._shrinks = 0

    def search(
        self,
        count: int,
        run_seed: int,
        database: Path | None = None,
        shrink: bool = True,
        *,
        telling_alone: bool = False,
    ) -> tuple[Example, Exceeded] | None:
        """Try ``count`` examples; return the smallest failing one, or None.

        ``database`` keeps failing examples for the next run; without it the seed alone says what is tried. Without
        ``shrink`` the first failing example is returned as it was found: whether there is one does not depend on it.
        With ``telling_alone`` no example is drawn where some are telling: one fewer than ``count`` of these are tried.
        """
        count = self._spec.tries or count
        if self._spec.tries and not self._spec.structure:
            return self._in_turn(count, run_seed)
        first = self._telling(run_seed)[: count - 1]
        found = None
        for one in first:
            exceeded = self._looked_at(one)
            if exceeded is not None:
                found = one, exceeded
                break
        if (found is not None and not shrink) or (first and telling_alone):
            return found
        return self._drawn(count - len(first), run_seed, database, shrink) or found

    def _telling(self, run_seed: int) -> list[Example]:
        """The examples that every run tries, if all structures name some: draws might pass them by."""
        structures = self._spec.structure
        if not structures or not all(isinstance(one, Telling) for one in structures.values()):
            return []
        values = {name: one.values(self._subject(0)) for name, one in structures.items() if isinstance(one, Telling)}
        return [
            Example({name: some[number % len(some)] for name, some in values.items()}, run_seed % SEEDS)
            for number in range(max(map(len, values.values())))
        ]

    def _drawn(self, count: int, run_seed: int, database: Path | None, shrink: bool) -> tuple[Example, Exceeded] | None:
        """Examples that hypothesis draws, and makes smaller."""
        strategies = {name: make(self._subject(0)) for name, make in self._spec.structure.items()}

        @given(structure=st.fixed_dictionaries(strategies), token_seed=st.integers(0, SEEDS - 1))
        def example(structure: Structure, token_seed: int) -> None:
            self._judge(Example(structure, token_seed))

        chosen = settings(
            max_examples=count,
            deadline=None,
            database=DirectoryBasedExampleDatabase(database) if database else None,
            phases=(Phase.explicit, Phase.reuse, Phase.generate) + (Phase.shrink,) * shrink,
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            print_blob=False,
            verbosity=Verbosity.quiet,
        )
        try:
            chosen(seed(run_seed)(example))()
        except Exceeded:
            return self._smallest()
        return None

    def _in_turn(self, count: int, run_seed: int) -> tuple[Example, Exceeded] | None:
        """``count`` examples outside hypothesis, which would repeat and shrink them: draws are judged as a whole."""
        for number in range(count):
            example = Example({}, (run_seed + number) % SEEDS)
            exceeded = self._looked_at(example)
            if exceeded is not None:
                return example, exceeded
        return None

    def replay(self, example: Example) -> Exceeded | None:
        """Judge one example, with no second look."""
        return self._outcome(0, example, self.tally)

    def _judge(self, example: Example) -> None:
        """Raise the example's Exceeded, from this one line, whenever it is asked for."""
        key = repr(example)
        if key not in self._remembered:
            if self._failed is not None:
                self._shrinks += 1
                if self._shrinks > SHRINKS:
                    return
            smaller = self._failed is not None
            self._remembered[key] = self.replay(example) if smaller else self._looked_at(example)
        found = self._remembered[key]
        if found is not None:
            self._failed = (example, found)
            self._first = self._first or self._failed
            raise found

    def _looked_at(self, example: Example) -> Exceeded | None:
        """The outcome of an example after a second look: a suspicion that is not confirmed is only counted."""
        exceeded = self._outcome(0, example, self.tally)
        if exceeded is None or self._confirmed(example, exceeded):
            return exceeded
        self.tally.suspicions += 1
        return None

    def _outcome(self, number: int, example: Example, tally: Tally) -> Exceeded | None:
        """What exceeds on subject ``number``; None also where nothing is decided, or where the engine declines.

        Both are tallied.
        """
        tally.examples += 1
        try:
            subject = self._subject(number)
            expect, draw = self._words(subject, tally, example.seed)
            self._spec.body(subject, expect, draw, **example.structure)
        except Exceeded as exceeded:
            tally.bites += expect.bit
            return exceeded.with_traceback(None)
        except Unfit as unfit:
            tally.unresolved.append(str(unfit))
        except (NotOffered, Refused) as declined:
            tally.declined.append(declined.with_traceback(None))
        else:
            tally.bites += expect.bit
        return None

    def _confirmed(self, example: Example, exceeded: Exceeded) -> bool:
        """Keep the structure, draw weights and tokens anew: a failure only if all of them exceed."""
        if exceeded.finding.excess >= CERTAIN:
            return True
        for number in range(1, REDRAWS + 1):
            again = Example(example.structure, (example.seed + number * 7919) % SEEDS)
            if self._outcome(number, again, Tally()) is None:
                return False
        return True

    def _smallest(self) -> tuple[Example, Exceeded] | None:
        """The smallest failing example, or the first, if fresh draws do not confirm the smallest."""
        assert self._failed is not None
        if self._failed == self._first or self._confirmed(*self._failed):
            return self._failed
        return self._first
