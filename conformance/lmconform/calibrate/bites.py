"""Whether examples that claim to bite do: ``python -m lmconform.calibrate.bites [--only IDS]``.

An example bites if it could have shown a fault. The reference is asked which of its examples say so; then each of
these, the same structure and the same seed, is put to engines with a planted fault of that requirement. The claims of
a test are *false* if no fault shows in any of them, and *generous* if in fewer than half of them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from lmconform.adapter import NotOffered, Operator, Refused
from lmconform.engines.torch_kernels import TorchKernels
from lmconform.faults import FAULTS, Fault
from lmconform.judging.verdict import Verdict
from lmconform.suite.bench import Bench
from lmconform.suite.choose import matching
from lmconform.suite.dsl import Decides
from lmconform.suite.examples import Example, Runner
from lmconform.suite.findings import Exceeded, Tally
from lmconform.suite.kernel_expect import kernel_words
from lmconform.suite.modules import decisions
from lmconform.suite.operators import Kernel
from lmconform.suite.plan import Case, Plan, on_one_checkpoint
from lmconform.suite.stock import Stock
from lmconform.transport.client import Connection, EngineSpec

PROFILE = on_one_checkpoint(5)
MODELS, KERNELS = "reference", "torch-kernels"
"""Engines that are right, the second for the door ``operators``; planted faults are made from them."""


class Judge(Bench):
    """A bench for one engine, which says which of its examples claim to bite."""

    def __init__(self, target: str, stock: Stock) -> None:
        connection = Connection.start(EngineSpec(target, in_process=True))
        super().__init__(connection, Plan(connection, PROFILE, seed=0), deadline=math.inf, stock=stock)

    def afresh(self) -> None:
        """Close what is loaded: some faults are of an engine's past, and the next example shall have none."""
        while self._subjects:
            self._subjects.popitem()[1].close()

    def claims(self, spec: Decides, case: Case) -> tuple[list[Example], list[Example]]:
        """The examples of one test: those that claim to bite, and the others. Raises Exceeded if one fails."""
        if spec.door == "operators":
            kernel = Kernel(case.checkpoint, self.plan.operators[case.checkpoint], self._yardstick)
            runner = Noting(spec, lambda number: kernel, kernel_words)
        else:
            runner = Noting(spec, lambda number: self.subject(case))
        found = runner.search(self.plan.examples(case), self.plan.seed)
        if found is not None:
            raise found[1]
        return runner.claimed, runner.idle


class Noting(Runner):
    """Notes which examples claim to bite, and which do not."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.claimed: list[Example] = []
        self.idle: list[Example] = []

    def _outcome(self, subject: Any, example: Example, tally: Tally) -> Exceeded | None:
        before = tally.bites
        found = super()._outcome(subject, example, tally)
        (self.claimed if tally.bites > before else self.idle).append(example)
        return found


@dataclass
class Row:
    """What the claims of one test on one checkpoint, or on a kernel, are worth."""

    spec: Decides
    case: str
    claimed: list[Example] = field(default_factory=list)
    idle: list[Example] = field(default_factory=list)
    shown: dict[str, list[Example]] = field(default_factory=dict)
    """By fault: the claimed examples that it fails, and none before it did."""
    asked: int = 0
    """Planted faults at this door."""
    reason: str = ""
    """Why there are no claims."""

    @property
    def unshown(self) -> list[Example]:
        """The claimed examples in which no fault shows."""
        seen = [one for found in self.shown.values() for one in found]
        return [one for one in self.claimed if one not in seen]

    @property
    def verdict(self) -> str:
        """``true``, ``generous``, ``false``; ``no claim`` and ``no fault`` where there is nothing to compare."""
        if not self.claimed:
            return "no claim"
        if not self.asked:
            return "no fault"
        seen = len(self.claimed) - len(self.unshown)
        return "false" if not seen else "generous" if 2 * seen < len(self.claimed) else "true"

    def line(self) -> str:
        """One line of the table."""
        seen = len(self.claimed) - len(self.unshown)
        faults = ", ".join(f"{name} {len(found)}" for name, found in self.shown.items()) or self.reason
        counts = f"{len(self.claimed) + len(self.idle):4} {len(self.claimed):4} {seen:4}"
        where = f"{self.spec.requirement:8} {self.spec.body.__name__:64} {self.spec.door:11} {self.case:20}"
        return f"{where} {counts}  {self.verdict:9} {faults}"


class Measuring:
    """Asks the right engines for their claims, and faulty ones for the same examples."""

    def __init__(self) -> None:
        self._stock = Stock()
        self._right: dict[str, Judge] = {}

    def close(self) -> None:
        """End the right engines."""
        for judge in self._right.values():
            judge.close()
        self._stock.remove()

    def rows(self, specs: Sequence[Decides], faults: Sequence[Fault] = FAULTS) -> list[Row]:
        """The tests of one requirement, each on its checkpoints, against those ``faults`` that break it."""
        rows = [row for spec in specs for row in self._claims(spec)]
        for fault in faults:
            mine = [row for row in rows if row.claimed and _fits(fault, row.spec)]
            if fault.requirement not in {spec.requirement for spec in specs} or not mine:
                continue
            with closing(Judge(fault.target, self._stock)) as judge:
                for row in mine:
                    row.asked += 1
                    if case := _case(judge, fault, row):
                        found = [one for one in row.unshown if _fails(judge, row.spec, case, one)]
                        row.shown |= {fault.name: found} if found else {}
        return rows

    def _judge(self, spec: Decides) -> Judge:
        target = KERNELS if spec.door == "operators" else MODELS
        if target not in self._right:
            self._right[target] = Judge(target, self._stock)
        return self._right[target]

    def _claims(self, spec: Decides) -> Iterator[Row]:
        judge = self._judge(spec)
        cases = judge.plan.cases(spec.on, every_regime=False)
        for case in cases[-1:] if spec.door == "operators" else cases:  # the last kernel of a kind takes every shape
            row = Row(spec, case.checkpoint)
            try:
                row.claimed, row.idle = judge.claims(spec, case)
            except (NotOffered, Refused) as error:
                row.reason = f"not offered: {error}"
            yield row


def _fits(fault: Fault, spec: Decides) -> bool:
    """Whether the fault is one of a kernel just as the test is."""
    return issubclass(fault.engine, TorchKernels) == (spec.door == "operators")


def _case(judge: Judge, fault: Fault, row: Row) -> Case | None:
    """The row's checkpoint, in the regime where the fault is; or the engine's kernel of that kind, if it has one."""
    if row.spec.door != "operators":
        return Case(row.case, fault.regime)
    offered: dict[str, Operator] = dict(judge.plan.operators)
    return next((Case(name) for name, one in offered.items() if one.kind in row.spec.on), None)


def _fails(judge: Judge, spec: Decides, case: Case, example: Example) -> bool:
    judge.afresh()
    return judge.replay(spec, case, example).verdict == Verdict.FAIL


def main() -> None:
    """Print the table, and what claims without a fault look like."""
    parser = argparse.ArgumentParser(prog="python -m lmconform.calibrate.bites", description=__doc__)
    parser.add_argument("--only", metavar="IDS", help="requirements or pages, with commas between them")
    parser.add_argument("--examples", action="store_true", help="also list claimed examples in which no fault shows")
    chosen = parser.parse_args()
    wanted = {one.id for one in matching(chosen.only.split(","))} if chosen.only else None
    by_requirement: dict[str, list[Decides]] = {}
    for spec in decisions():
        if wanted is None or spec.requirement in wanted:
            by_requirement.setdefault(spec.requirement, []).append(spec)
    found: list[Row] = []
    with closing(Measuring()) as measuring:
        for specs in by_requirement.values():
            for row in measuring.rows(specs):
                print(row.line(), flush=True)
                for one in row.unshown if chosen.examples else ():
                    print(f"{'':9}{one.structure} seed {one.seed}")
                found.append(row)
    for name in ("true", "generous", "false", "no fault", "no claim"):
        rows = [row for row in found if row.verdict == name]
        print(f"{name:9} {len(rows):4} rows, {sum(len(row.claimed) for row in rows):5} claims")


if __name__ == "__main__":
    main()
