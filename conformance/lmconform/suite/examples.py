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
    """Examples of one test on one subject."""

    def __init__(
        self, spec: Decides, subject: Any, redrawn: Callable[[int], Any] | None, words: Words = model_words
    ) -> None:
        self.tally = Tally()
        self._words = words
        self._spec = spec
        self._subject = subject
        self._redrawn = redrawn
        self._remembered: dict[str, Exceeded | NotOffered | Refused | None] = {}
        self._failed: tuple[Example, Exceeded] | None = None
        self._shrinks = 0

    def search(self, count: int, run_seed: int, database: Path | None = None) -> tuple[Example, Exceeded] | None:
        """Try ``count`` examples; return the smallest failing one, or None.

        ``database`` keeps failing examples for the next run; without it the seed alone says what is tried.
        """
        count = self._spec.tries or count
        if self._spec.tries and not self._spec.structure:
            return self._in_turn(count, run_seed)
        strategies = {name: make(self._subject) for name, make in self._spec.structure.items()}

        @given(structure=st.fixed_dictionaries(strategies), token_seed=st.integers(0, SEEDS - 1))
        def example(structure: Structure, token_seed: int) -> None:
            self._judge(Example(structure, token_seed))

        chosen = settings(
            max_examples=count,
            deadline=None,
            database=DirectoryBasedExampleDatabase(database) if database else None,
            phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            print_blob=False,
            verbosity=Verbosity.quiet,
        )
        try:
            chosen(seed(run_seed)(example))()
        except Exceeded:
            return self._confirmed()
        return None

    def _in_turn(self, count: int, run_seed: int) -> tuple[Example, Exceeded] | None:
        """``count`` examples outside hypothesis, which would repeat and shrink them: draws are judged as a whole."""
        for number in range(count):
            example = Example({}, (run_seed + number) % SEEDS)
            exceeded = self._outcome(self._subject, example, self.tally)
            if exceeded is not None:
                self._failed = (example, exceeded)
                return self._confirmed()
        return None

    def replay(self, example: Example) -> Exceeded | None:
        """Judge one example, with no second look."""
        return self._outcome(self._subject, example, self.tally)

    def _judge(self, example: Example) -> None:
        """Raise the example's Exceeded, from this one line, whenever it is asked for."""
        key = repr(example)
        if key not in self._remembered:
            if self._failed is not None:
                self._shrinks += 1
                if self._shrinks > SHRINKS:
                    return
            self._remembered[key] = self._answered(example)
        found = self._remembered[key]
        if isinstance(found, Exceeded):
            self._failed = (example, found)
        if found is not None:
            raise found

    def _answered(self, example: Example) -> Exceeded | NotOffered | Refused | None:
        """The outcome of an example; what the engine declines while a failure is made smaller is no outcome."""
        try:
            return self._outcome(self._subject, example, self.tally)
        except (NotOffered, Refused) as declined:
            return declined.with_traceback(None) if self._failed is None else None

    def _outcome(self, subject: Any, example: Example, tally: Tally) -> Exceeded | None:
        tally.examples += 1
        expect, draw = self._words(subject, tally, example.seed)
        try:
            self._spec.body(subject, expect, draw, **example.structure)
        except Exceeded as exceeded:
            return exceeded.with_traceback(None)
        except Unfit as unfit:
            tally.unresolved.append(str(unfit))
            expect.bit = False
        finally:
            tally.bites += expect.bit
        return None

    def _confirmed(self) -> tuple[Example, Exceeded] | None:
        """Keep the structure, draw weights and tokens anew: a failure only if all of them exceed."""
        assert self._failed is not None
        example, exceeded = self._failed
        if exceeded.finding.excess >= CERTAIN:
            return self._failed
        for number in range(1, REDRAWS + 1):
            subject = self._redrawn(number) if self._redrawn else self._subject
            again = Example(example.structure, (example.seed + number * 7919) % SEEDS)
            if self._outcome(subject, again, Tally()) is None:
                self.tally.suspicions += 1
                return None
        return self._failed
