"""Negative controls: a few planted faults, judged beside the engine, show that the suite can fail on this machine.

One fault a mechanism, each through a cheap door. They run in a process of their own, since the process that collects
tests knows nothing of torch: ``python -m lmconform.controls CM ROPE`` prints one JSON object a control.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from lmconform.judging.verdict import Verdict
from lmconform.suite.plan import on_one_checkpoint

PROFILE = on_one_checkpoint(2, "controls")
CONTROLS = {
    "causal_mask:LeaksOneAhead": ("CM-1", "score"),
    "scaled_dot_product:AddsASink": ("SDP-2", "score"),
    "kv_cache:StandsOneTooLate": ("KV-2", "session"),
    "grouped_query_attention:TakesValuesInTurn": ("GQA-2", "score"),
    "rope:TakesBase10000": ("ROPE-2", "score"),
    "norms:EpsOfTheDefault": ("PNR-5", "score"),
    "sampling_filters:KeepsOneMoreThanK": ("CAT-7", "generate"),
    "stop_conditions:LooksAtTheFirstStopIdOnly": ("STOP-1", "generate"),
}
"""Fault: the requirement that catches it, and the door through which it is asked."""
SECONDS = 120.0
"""After so long what is not done counts as not caught."""


@dataclass(frozen=True)
class Control:
    """A planted fault, and whether the suite saw it."""

    fault: str
    requirement: str
    caught: bool
    says: str
    """The failure, or why there was none."""


class Controls:
    """The controls of some pages, running."""

    def __init__(self, pages: Iterable[str]) -> None:
        command = [sys.executable, "-m", __name__, *pages]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def results(self) -> list[Control]:
        """Wait for all; what broke down was not caught."""
        try:
            told, complaint = self._process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            self.end()
            told, complaint = self._process.communicate()
            complaint = complaint or f"not done within {SECONDS:g} s"
        found = [Control(**json.loads(line)) for line in told.splitlines()]
        if self._process.returncode:
            reason = (complaint.strip().splitlines() or [f"exit code {self._process.returncode}"])[-1]
            found.append(Control("the controls themselves", "", False, reason))
        return found

    def end(self) -> None:
        """Stop them; done ones are not touched."""
        self._process.kill()


def run(pages: Sequence[str]) -> Iterable[Control]:
    """Judge the controls of these pages, one after the other."""
    for fault, (requirement, door) in CONTROLS.items():
        if requirement.partition("-")[0] in pages:
            caught, says = look(f"lmconform.faults.{fault}", requirement, door)
            yield Control(fault.replace(":", "."), requirement, caught, says)


def look(target: str, requirement: str, door: str) -> tuple[bool, str]:
    """Whether the tests of ``requirement`` through ``door`` catch this engine, and what they say."""
    from lmconform.matrix.judged import judge, one_thread

    one_thread()
    found = judge(
        target,
        PROFILE,
        seed=0,
        wanted=lambda spec: (spec.requirement, spec.door) == (requirement, door),
        until=lambda record: record.verdict == Verdict.FAIL,
    )
    failed = [record for record in found.records if record["verdict"] == Verdict.FAIL]
    return bool(failed), failed[0]["reason"] if failed else "no test failed"


if __name__ == "__main__":
    for control in run(sys.argv[1:]):
        print(json.dumps(asdict(control)), flush=True)
