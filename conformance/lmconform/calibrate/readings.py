"""What is read from instruments, against what is read from the oracle's scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmconform.adapter import Array
from lmconform.calibrate.engines import WAYS, Engine, Way
from lmconform.calibrate.table import Table
from lmconform.checkpoints.dial_scope import HEADS, OFFSET, STEPS, SWITCHES, DialScope
from lmconform.judging.budgets import Reading
from lmconform.suite.instruments import (
    BALANCE,
    DIAL,
    HUGE_BALANCE,
    INSTRUMENTS,
    LADDER,
    LOUD_SCOPE,
    SCOPE,
    STRETCHED_TURN_SCOPE,
    TURN_SCOPE,
)
from lmconform.suite.meters import measured
from lmconform.suite.subject import Scores, Subject, Tokens, joined
from lmconform.transport.client import NotFinite

LENGTH = 33
PLACES = (0, 1, 8, 15, 16, 24, LENGTH - 1)
SCRIPTED = STEPS[:2]
"""Tokens of the dial of which the second follows the first in ``generate``."""
LAST = -1


@dataclass(frozen=True)
class Probe:
    """One reading of one instrument. ``prompt`` and ``reading`` take the instrument."""

    checkpoint: str
    name: str
    prompt: Callable[[Any], Tokens]
    reading: Callable[[Any], Reading]
    first: int = 0
    """First row on which the reading is defined."""
    exact: bool = False
    """What is 0 for the oracle must be 0: weights that a mask hides."""


def _steps(count: int) -> Tokens:
    """Tokens of the dial whose weights depend on the scale alone, mixed."""
    return tuple(STEPS[n * n % 7 % len(STEPS)] for n in range(count))


def _first_layer_sum(scope: Any) -> Reading:
    def total(scores: Array) -> Array:
        found: Array = scope.read(scores)[:, :1].sum(axis=-1, keepdims=True)  # [n, 1, H_q, 1]
        return found

    return total


def _gate(switch: int) -> Probe:
    def prompt(dial: DialScope) -> Tokens:
        return switch, *_steps(LENGTH - 3), *SCRIPTED

    return Probe(DIAL, f"gate, switch {switch}", prompt, lambda dial: dial.gate, first=1)


PROBES = (
    Probe(SCOPE, "weights", lambda scope: scope.content_at(LENGTH, PLACES), lambda scope: scope.read, exact=True),
    Probe(LOUD_SCOPE, "sum of weights", lambda scope: scope.loud_after(LENGTH, 17), _first_layer_sum, exact=True),
    Probe(DIAL, "shares", lambda dial: (*_steps(LENGTH - 2), *SCRIPTED), lambda dial: dial.shares),
    Probe(DIAL, "sums", lambda dial: (*_steps(LENGTH - 2), *SCRIPTED), lambda dial: dial.sums),
    Probe(DIAL, "shares, offset", lambda dial: (*_steps(LENGTH - 2), STEPS[2], OFFSET), lambda dial: dial.shares, LAST),
    Probe(DIAL, "shares, by head", lambda dial: (*_steps(LENGTH - 2), OFFSET, HEADS), lambda dial: dial.shares, LAST),
    *(_gate(switch) for switch in SWITCHES),
    Probe(DIAL, "signature", lambda dial: (*dial.switches(_steps(LENGTH - 2)), *SWITCHES), lambda dial: dial.signature),
    *(
        probe
        for name in (TURN_SCOPE, STRETCHED_TURN_SCOPE)
        for probe in (
            Probe(name, "share", lambda scope: scope.spread(LENGTH), lambda scope: scope.share),
            Probe(name, "share, at the end", lambda scope: scope.at_the_end(LENGTH), lambda scope: scope.share, LAST),
            Probe(name, "turn", lambda scope: scope.spread(LENGTH), lambda scope: scope.turn, LAST),
            Probe(name, "lead", lambda scope: scope.at_the_end(LENGTH), lambda scope: scope.lead, LAST),
        )
    ),
)

WEIGHED = {
    BALANCE: ("residual", "order", "eps", "mean", "weight", "gate", "embedding", "logits"),
    HUGE_BALANCE: ("final", "activation", "huge"),
    LADDER: ("layers",),
}
"""Quantities that are judged on each."""
REPEATED = 17


CHECKPOINTS = tuple(dict.fromkeys((*(probe.checkpoint for probe in PROBES), *WEIGHED)))


def measure(engine: Engine, table: Table, checkpoints: tuple[str, ...] = CHECKPOINTS) -> None:
    """Every reading of every instrument, in every way of working of one engine."""
    for checkpoint in checkpoints:
        for name, subject in engine.subjects(INSTRUMENTS[checkpoint](engine.precision)):
            for probe in PROBES:
                if probe.checkpoint == checkpoint:
                    _read(name, subject, probe, table)
            if checkpoint in WEIGHED:
                _weigh(name, subject, WEIGHED[checkpoint], checkpoint, table)


def _read(name: str, subject: Subject, probe: Probe, table: Table) -> None:
    instrument: Any = subject.material.instrument
    reading = probe.reading(instrument)
    for label, way in WAYS.items():
        use = table.at(f"{probe.checkpoint}: {probe.name}", f"{name}, {label}")
        try:
            scores = way(subject, probe.prompt(instrument), instrument.columns, 2)[probe.first :]
        except NotFinite:
            use.not_finite += 1
            continue
        wanted, budget = subject.yardstick.budget(
            scores.places, scores.columns, logprobs=scores.logprobs, reading=reading
        )
        error = np.abs(reading(scores.values).reshape(wanted.shape) - wanted)
        bounds = np.where((wanted == 0) & probe.exact, 0, budget.reading[:, None])
        use.read(error, bounds)


def _weigh(name: str, subject: Subject, quantities: tuple[str, ...], checkpoint: str, table: Table) -> None:
    """A number that this format cannot tell from a faulty one counts as unfit."""
    pairs = getattr(subject.material.instrument, "pairs", [(0,)])
    for label, way in WAYS.items():
        rows = {token: _last_row(subject, token, way) for token in {token for pair in pairs for token in pair}}
        scores = joined([rows[token] for pair in pairs for token in pair])
        for quantity in quantities:
            use = table.at(f"{checkpoint}: {quantity}", f"{name}, {label}")
            for number in measured(subject, scores, quantity):
                if number.decided:
                    use.read(np.array(number.error), np.array(number.bound))
                else:
                    use.unfit += 1


def _last_row(subject: Subject, token: int, way: Way) -> Scores:
    """The row after a prompt that repeats ``token``; the first step of ``generate``, since the next id is another."""
    instrument: Any = subject.material.instrument
    return way(subject, (token,) * REPEATED, instrument.columns, 1)[LAST:]
