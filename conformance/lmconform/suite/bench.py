"""The bench: one engine under test, its loaded checkpoints, and the records of what was judged."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hypothesis.configuration import set_hypothesis_home_dir

from lmconform.adapter import Needs, NotOffered, Refused
from lmconform.checkpoints.gguf import gguf_package
from lmconform.judging.verdict import Verdict
from lmconform.spec import requirements
from lmconform.suite.choose import DOORS
from lmconform.suite.dsl import Decides
from lmconform.suite.examples import Example, Runner
from lmconform.suite.findings import Exceeded, Tally
from lmconform.suite.instruments import STOP_TAPE, Material
from lmconform.suite.kernel_expect import kernel_words
from lmconform.suite.operators import Kernel
from lmconform.suite.plan import MAX_ROWS, Case, Plan
from lmconform.suite.preflight import AdapterOff, in_context, preflight
from lmconform.suite.stock import Stock
from lmconform.suite.subject import MOST_LOGPROBS, Subject
from lmconform.transport.client import Connection, EngineFault

LOADED = 6
"""Models kept loaded at a time. A test may ask a checkpoint and four edits of it in turn, and with room for fewer it
would load each of them again for every example. Each further one costs an engine that sets memory aside for a load."""
WEIGHTS = 500_000_000
"""Weights that models may hold together to be kept loaded; a user's checkpoint may have more, and fit a device once."""
TRIES = 2
"""How often an engine may break down in the preflight before it is asked nothing more: each time costs a start."""


@dataclass
class Record:
    """What one test on one checkpoint came to. Plain values, since it travels between workers."""

    requirement: str
    verdict: str
    test: str
    door: str
    case: str
    reason: str = ""
    detail: str = ""
    examples: int = 0
    bites: int = 0
    worst: float = 0.0
    suspicions: int = 0
    declined: int = 0
    """Examples that the engine did not answer; ``reason`` says why, unless there is a graver one."""
    questions: int = 0
    draws: int = 0
    seconds: float = 0.0
    finding: dict[str, Any] = field(default_factory=dict)
    counterexample: dict[str, Any] = field(default_factory=dict)


class Bench:
    """Judges tests against one engine. Raises MissingPackage if its checkpoints cannot be written here.

    Failures of the requirements in ``unshrunk`` are not made smaller: their verdicts are the same, for fewer calls.
    Engines that are judged one after the other under one plan may share a ``stock``, which outlives the bench.
    """

    def __init__(
        self,
        connection: Connection,
        plan: Plan,
        deadline: float,
        database: Path | None = None,
        stock: Stock | None = None,
        unshrunk: Container[str] = (),
    ) -> None:
        if connection.description.format == "gguf":
            gguf_package()
        self.connection = connection
        self.plan = plan
        self._deadline = deadline
        self._database = database
        self._unshrunk = unshrunk
        self._lent = stock is not None
        self._stock = stock or Stock()
        self._shelf = self._stock.shelf(plan, connection.description.format)
        self._yardstick = self._stock.operators(plan)
        set_hypothesis_home_dir(self._shelf.folder / "hypothesis")  # nothing in the user's folder
        self._subjects: OrderedDict[Case, Subject] = OrderedDict()
        self._fault: AdapterOff | EngineFault | NotOffered | Refused | None = None
        self._refused: dict[Case, Refused] = {}
        """Checkpoints that the engine refused to load: it is taken at its word."""
        self._ready: set[str | None] = set()
        self._breakdowns = 0

    @property
    def checkpoints(self) -> list[str]:
        """Names of the distinct checkpoints made so far."""
        return self._shelf.names

    def judge(self, spec: Decides, case: Case) -> Record:
        """Run one test on one case; never raises what the engine did."""
        record = Record(spec.requirement, Verdict.NOT_RUN, spec.body.__name__, spec.door, str(case))
        started = time.monotonic()
        if started > self._deadline:
            record.reason = "the profile's time ran out before this test"
            return record
        tally = Tally()
        with _recorded(record):
            self._judge(spec, case, record, tally)
        record.examples, record.bites = record.examples or tally.examples, record.bites or tally.bites
        record.seconds = time.monotonic() - started
        return record

    def replay(self, spec: Decides, case: Case, example: Example) -> Record:
        """Judge one recorded example again; never raises what the engine did."""
        record = Record(spec.requirement, Verdict.PASS, spec.body.__name__, spec.door, str(case))
        with _recorded(record):
            runner = self._runner(spec, case)
            exceeded = runner.replay(example)
            if exceeded is not None:
                self._fail(record, spec, case, example, exceeded)
            else:
                _settle(record, runner.tally)
        return record

    def subject(self, case: Case) -> Subject:
        """The case's checkpoint, loaded in its regime; loads it if need be, after the preflight of that regime."""
        self._preflight(case.regime)
        return self._subject(case)

    def close(self) -> None:
        """End the engine and remove the checkpoints."""
        self.connection.close()
        if not self._lent:
            self._stock.remove()

    def _judge(self, spec: Decides, case: Case, record: Record, tally: Tally) -> None:
        runner = self._runner(spec, case)
        runner.tally = tally
        shrink = spec.requirement not in self._unshrunk
        alone = self.plan.telling_alone(case)
        # A directory a test: to hypothesis all of them are the same function.
        database = self._database and self._database / spec.body.__name__
        found = runner.search(self.plan.examples(case), self.plan.seed, database, shrink, telling_alone=alone)
        record.worst, record.suspicions = tally.worst, tally.suspicions
        record.questions, record.draws = tally.questions, tally.draws
        if tally.declined:
            record.declined, record.reason = len(tally.declined), _sentence(tally.declined[0], record.door)
        if found is not None:
            self._fail(record, spec, case, *found)
        else:
            _settle(record, tally)

    def _runner(self, spec: Decides, case: Case) -> Runner:
        if spec.door == "operators":
            if case.checkpoint not in self.plan.operators:
                raise NotOffered(f"an operator {case.checkpoint}")
            kernel = Kernel(case.checkpoint, self.plan.operators[case.checkpoint], self._yardstick)
            return Runner(spec, lambda number: kernel, kernel_words)
        subject = self.subject(case)
        if DOORS[spec.door] not in subject.doors:
            raise NotOffered(spec.door)
        return Runner(spec, self._redrawer(case, subject.material))

    def _fail(self, record: Record, spec: Decides, case: Case, example: Example, exceeded: Exceeded) -> None:
        record.verdict, record.reason = Verdict.FAIL, str(exceeded)
        record.finding = asdict(exceeded.finding) | {"excess": exceeded.finding.excess}
        record.counterexample = {
            "requirement": spec.requirement,
            "text": requirements()[spec.requirement].text,
            "engine": self.connection.spec.record(),
            "test": spec.body.__name__,
            "checkpoint": case.checkpoint,
            "recipe": self._recipe(case),
            "regime": case.regime,
            "profile": self.plan.profile.name,
            "plan_seed": self.plan.seed,
            "structure": example.structure,
            "seed": example.seed,
        }

    def _recipe(self, case: Case) -> dict[str, Any]:
        """How the checkpoint was made; an operator's inputs follow from the structure and the seed alone."""
        made = self._shelf.made(case.checkpoint)
        return {"kind": "operator", "name": case.checkpoint} if made is None else dict(made.material.checkpoint.recipe)

    def _redrawer(self, case: Case, material: Material) -> Callable[[int], Subject]:
        """Gives the case's checkpoint, or fresh draws of it if there are any."""

        def drawn(number: int) -> Subject:
            fresh = number and material.redrawable
            return self.subject(Case(f"{case.checkpoint}#{number}", case.regime) if fresh else case)

        return drawn

    def _preflight(self, regime: str | None) -> None:
        """Check the adapter once for each regime; remember what was wrong with it."""
        if self._fault is not None:
            raise self._fault
        if regime in self._ready or self.plan.given is not None:
            return
        try:
            subject = self._subject(Case(STOP_TAPE, regime))
            preflight(subject, subject.doors)
            if regime is None:
                self._in_context()
        except (NotOffered, Refused) as error:
            if regime is None:
                self._fault = type(error)(f"{error} (asked with the checkpoint of the preflight)")
                raise self._fault from error
            raise
        except AdapterOff as error:
            self._fault = error if regime is None else None
            raise
        except EngineFault as fault:
            self._breakdowns += regime is None
            self._fault = fault if self._breakdowns == TRIES else None
            raise
        self._ready.add(regime)

    def _in_context(self) -> None:
        """The part of the preflight that needs a random checkpoint."""
        if self.plan.spread is not None:
            with suppress(NotOffered, Refused, EngineFault):  # the tests on this checkpoint will meet it, and say it
                subject = self._subject(Case(self.plan.spread))
                in_context(subject, subject.doors)

    def _subject(self, case: Case) -> Subject:
        subject = self._subjects.pop(case, None)
        if subject is None or subject.closed:
            subject = self._loaded(case)
        self._subjects[case] = subject
        if subject.reported_vocab_size != subject.vocab_size:
            raise AdapterOff(
                f"the loaded model reports a vocabulary of {subject.reported_vocab_size} ids; its config.json says "
                f"{subject.vocab_size}. Report the width of the checkpoint and cut padded columns off."
            )
        return subject

    def _loaded(self, case: Case) -> Subject:
        if case in self._refused:
            raise self._refused[case].with_traceback(None)
        material, yardstick, path = self._shelf.item(case.checkpoint, self.plan)
        self._make_room(_size(material))
        needs = Needs(
            max_tokens=case.max_tokens,
            max_rows=MAX_ROWS,
            top_n=min(material.checkpoint.vocab_size, MOST_LOGPROBS),
            regime=case.regime,
        )
        try:
            model = self.connection.load(path, needs)
        except Refused as refused:
            self._refused[case] = refused
            raise
        loaders = self._edited(case), self._with_room(case)
        return Subject(model, material, yardstick, case, *loaders, self.plan.profile.draws)

    def _make_room(self, size: int) -> None:
        """Close what was not asked for longest, until one more model of ``size`` weights may be loaded."""
        while self._subjects and (len(self._subjects) >= LOADED or self._held() + size > WEIGHTS):
            self._subjects.popitem(last=False)[1].close()

    def _held(self) -> int:
        """Weights of the models that are loaded."""
        return sum(_size(self._shelf.item(case.checkpoint, self.plan).material) for case in self._subjects)

    def _edited(self, case: Case) -> Callable[[str], Subject]:
        """Loads the case's checkpoint after an edit, in the same regime."""
        return lambda edit: self._subject(Case(f"{case.checkpoint}~{edit}", case.regime))

    def _with_room(self, case: Case) -> Callable[[int], Subject]:
        """Loads the case's checkpoint with room for other lengths, in the same regime."""
        return lambda tokens: self._subject(replace(case, max_tokens=tokens))


def _size(material: Material) -> int:
    """Weights of a checkpoint."""
    return sum(value.size for value in material.checkpoint.weights.values())


@contextmanager
def _recorded(record: Record) -> Iterator[None]:
    """Turn what the engine did into the record's verdict."""
    try:
        yield
    except (NotOffered, Refused) as error:
        record.verdict, record.reason = Verdict.UNSUPPORTED, _sentence(error, record.door)
    except AdapterOff as error:
        record.verdict, record.reason = Verdict.ERROR, f"adapter: {error}"
    except EngineFault as fault:
        record.verdict, record.reason, record.detail = Verdict.ERROR, str(fault), fault.detail


def _settle(record: Record, tally: Tally) -> None:
    """Say what examples without a failure amount to. Raises what the engine declined with, if nothing else was said."""
    if not tally.bites and tally.declined:
        raise tally.declined[0]
    if not tally.bites and tally.unresolved:
        record.verdict, record.reason = Verdict.UNRESOLVED, tally.unresolved[0]
    else:
        record.verdict = Verdict.PASS


def _sentence(error: NotOffered | Refused, door: str) -> str:
    if isinstance(error, NotOffered):
        return f"the engine does not offer {error or door}"
    return f"the engine refused: {error}"
