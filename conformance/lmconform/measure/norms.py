"""What norms, the residual stream and the MLPs do, read off the scales.

First what can only be one way or another: norm, position, order, residual, head. Then numbers, whose equations (see
``checkpoints/balance.py``) hold for a decoder of this structure; where it is another, the lines say so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import sqrt

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.balance import GATE, LOUDER, NORMS, POINTS, TELLING, Weighing, names
from lmconform.checkpoints.probe import Ask
from lmconform.checkpoints.scales import WEIGHED, Scales
from lmconform.measure.experiment import Experiment, chosen, worst
from lmconform.measure.observation import Observation
from lmconform.measure.sheet import Entry, Outcome, choice
from lmconform.measure.structure import HEAVIER, NEEDED, STRUCTURE, UNKNOWN, Stream, last_norm, snapped, weight_order
from lmconform.spec.pre_norm_residual import ACTIVATIONS

SECTION = "norms"
LENGTH = 5
"""Of a prompt, which holds one load throughout: attention returns its values, whatever it attends to."""
KNOWN = {"silu": "SiLU", "gelu": "GELU exact", "gelu_pytorch_tanh": "GELU tanh", "relu": "ReLU"}
FLOOR = 1e-4
"""A reading so near to an activation's curve is on it: less than what tells the two forms of GELU apart."""
ROUGH = 0.02
"""The same where another line differs, on which the readings rest."""
SAME_FACTOR = "the common factor of all scores: it changes the order of none, and so no greedy token"
TOO_SMALL = "what a stream of 512 shows: read-outs beside its load are below all thresholds"


def experiments(scales: Scales) -> list[Experiment]:
    """All that is asked about norms, the stream and MLPs."""
    both = tuple(Ask(load, LENGTH, (), tuple(scales.cells)) for load in WEIGHED)
    huge = tuple(Ask(load, LENGTH, ()) for load in ("plain", "huge"))
    return [
        Experiment(SECTION, "norms, stream and MLPs", both, partial(_inside, scales)),
        Experiment(SECTION, "eps of the last norm", both, partial(_last_eps, scales), SAME_FACTOR),
        Experiment(SECTION, "final norm", huge, partial(_final, scales), SAME_FACTOR),
        Experiment(SECTION, "logits scale", both, partial(_logits, scales), SAME_FACTOR),
        Experiment(SECTION, "norm of a stream of 512", huge, partial(_huge, scales), TOO_SMALL),
    ]


@dataclass(frozen=True)
class _Reader:
    """Reads lines off what was seen."""

    scales: Scales
    seen: Observation

    @classmethod
    def of(cls, scales: Scales, seen: Observation) -> _Reader:
        """Greedy tokens may be no answer: neither the read-out nor the threshold.

        Then the threshold, which is a part of the embedding, is below scores of 0: the read-out beside it is as good
        as infinite.
        """
        return cls(scales, replace(seen, rows=np.where(np.isnan(seen.rows), np.inf, seen.rows)))

    @cached_property
    def _needed(self) -> list[Entry]:
        return [chosen(self.seen, SECTION, name, _of(self.scales, read)) for name, read in NEEDED.items()]

    @cached_property
    def _source(self) -> Entry | None:
        """The first line without which nothing else can be read."""
        wrong = (line for line in self._needed if line.outcome is Outcome.DIFFERS and "times" not in line.measured)
        return next(wrong, None)

    @property
    def doubt(self) -> str:
        """Why nothing else can be read; empty where it can."""
        source = self._source
        return f"cannot be read where the {source.quantity} is: {source.measured}" if source else ""

    @cached_property
    def structure(self) -> list[Entry]:
        """What can only be one way or another; where there is doubt, other differences may only follow from it."""
        follows = [line for line in self._needed if line is not self._source and line.measured == UNKNOWN]
        rest = [chosen(self.seen, SECTION, name, _of(self.scales, read)) for name, read in STRUCTURE.items()]
        follows += [line for line in rest if line.outcome is Outcome.DIFFERS]
        return [
            _doubtful(line, self.doubt) if self.doubt and line in follows else line for line in [*self._needed, *rest]
        ]

    @cached_property
    def _moved(self) -> bool:
        """Whether the structure or the scale of the stream is another, which moves all numbers a little."""
        with np.errstate(all="ignore"):
            stream = Stream.of(self.scales.weighing(self.seen.rows, self.seen.asks))
        return snapped(stream.embedding) != 1 or any(line.outcome is not Outcome.EQUAL for line in self.structure)

    @cached_property
    def eps(self) -> Entry:
        """Of the norms before sublayers."""
        return self._number("eps", "eps", lambda found: _eps(found)[:-1], names("eps"), self._moved)

    @property
    def rough(self) -> bool:
        """Whether another line differs, by which this one may be moved."""
        return self._moved or self.eps.outcome is Outcome.DIFFERS

    def number(
        self, name: str, quantity: str, read: Callable[[Weighing], Sequence[float]], where: Sequence[str]
    ) -> Entry:
        """One line for numbers of this kind. Where another line differs, the slack of the balance is allowed."""
        return self._number(name, quantity, read, where, self.rough)

    def _number(
        self,
        name: str,
        quantity: str,
        read: Callable[[Weighing], Sequence[float]],
        where: Sequence[str],
        rough: bool,
    ) -> Entry:
        telling, slack = TELLING[quantity]

        def reading(rows: Array, asks: Sequence[Ask]) -> Array:
            with np.errstate(all="ignore"):
                return np.array(read(self.scales.weighing(rows, asks)), np.float64)

        value = self.seen.value(reading)
        line = worst(value, SECTION, name, where, telling=telling)
        if rough and line.outcome is Outcome.DIFFERS:
            wider = replace(value, bound=np.maximum(value.bound, slack))
            loose = worst(wider, SECTION, name, where, telling=telling)
            line = loose if loose.outcome is Outcome.EQUAL else line
        return _doubtful(line, self.doubt) if self.doubt else line


def _doubtful(line: Entry, why: str) -> Entry:
    """The same line, without what was measured."""
    return replace(line, measured="", uncertainty="", outcome=Outcome.NOT_RESOLVABLE, note=why)


def _of(scales: Scales, read: Callable[[Weighing], str]) -> Callable[[Array, Sequence[Ask]], str]:
    def name(rows: Array, asks: Sequence[Ask]) -> str:
        with np.errstate(all="ignore"):
            return read(scales.weighing(rows, asks))

    return name


def _inside(scales: Scales, seen: Observation) -> list[Entry]:
    """What the read-outs of sublayers show beside UNIT."""
    reader = _Reader.of(scales, seen)
    layers = names("residual")
    return [
        *reader.structure,
        reader.eps,
        reader.number("scale of the stream, a layer on", "residual", lambda found: found.read("residual"), layers),
        reader.number("weight", "weight", lambda found: found.read("weight")[:-1], names("weight")),
        reader.number("embedding scale", "embedding", lambda found: [Stream.of(found).embedding], ["all layers"]),
        _activation(reader),
    ]


def _eps(found: Weighing) -> list[float]:
    """Of each norm."""
    stream = Stream.of(found)
    heavier = HEAVIER if weight_order(found) == "in the mean square" else 1.0
    return [cut / slope * scale**2 * heavier for (slope, cut), scale in zip(found.lines, stream.before, strict=True)]


def _last_eps(scales: Scales, seen: Observation) -> list[Entry]:
    return [_last(scales, seen, "eps of the last norm", "eps", lambda found: _eps(found)[-1:], NORMS[-1])]


def _logits(scales: Scales, seen: Observation) -> list[Entry]:
    """Of the scores of UNIT, with the factor that all norms have taken out."""

    def read(found: Weighing) -> list[float]:
        return [found.read("logits")[0] / sqrt(snapped(Stream.of(found).factor))]

    return [_last(scales, seen, "logits scale", "logits", read, "all scores")]


def _last(
    scales: Scales,
    seen: Observation,
    name: str,
    quantity: str,
    read: Callable[[Weighing], Sequence[float]],
    where: str,
) -> Entry:
    """A line for a number that is read through the last norm."""
    reader = _Reader.of(scales, seen)
    line = reader.number(name, quantity, read, [where])
    absent = not reader.doubt and _of(scales, last_norm)(seen.rows, seen.asks) == "absent"
    return _doubtful(line, "cannot be read where the final norm is: absent") if absent else line


def _final(scales: Scales, seen: Observation) -> list[Entry]:
    return [chosen(seen, SECTION, "final norm", _of(scales, last_norm))]


def _huge(scales: Scales, seen: Observation) -> list[Entry]:
    """Beside a load that is large, too: a right norm makes nearly the same of both."""
    telling, slack = TELLING["huge"]

    def reading(rows: Array, asks: Sequence[Ask]) -> Array:
        with np.errstate(all="ignore"):
            return np.array(scales.weighing(rows, asks).read("huge"))

    value = seen.value(reading)
    value = replace(value, bound=np.maximum(value.bound, slack))  # an eps, too, moves it a little
    return [worst(value, SECTION, "norm of a stream of 512, beside one of 8", names("huge"), telling=telling)]


def _activation(reader: _Reader) -> Entry:
    """The curves that go through all readings, within the uncertainty."""
    curves = [*ACTIVATIONS.values(), lambda x: x]
    called = [*(KNOWN[name] for name in ACTIVATIONS), "identity"]

    def errors(rows: Array, asks: Sequence[Ask]) -> Array:
        with np.errstate(all="ignore"):
            readings, gates = _curve(reader.scales.weighing(rows, asks))
            return np.concatenate([curve(gates) - readings for curve in curves])

    value = reader.seen.value(errors)
    got, wanted, bound = (np.abs(one).reshape(len(curves), -1) for one in (value.got, value.wanted, value.bound))
    expected = called[int(wanted.max(axis=1).argmin())]
    gate = next(line for line in reader.structure if line.quantity == "gate and up")
    swapped = "" if gate.outcome is Outcome.EQUAL else f"cannot be read where gate and up are: {gate.measured}"
    if doubt := reader.doubt or swapped:
        return Entry(SECTION, "activation", "", expected, Outcome.NOT_RESOLVABLE, note=doubt)
    floor = ROUGH if reader.rough else FLOOR
    fits = [name for name, far, most in zip(called, got, bound, strict=True) if (far <= most + floor).all()]
    if expected in fits:
        note = f"{' and '.join(other for other in fits if other != expected)} cannot be told from it here"
        return Entry(SECTION, "activation", expected, expected, Outcome.EQUAL, note=note if len(fits) > 1 else "")
    return choice(SECTION, "activation", " or ".join(fits) or UNKNOWN, expected)


def _curve(found: Weighing) -> tuple[Array, Array]:
    """What the activation makes of each gate, and the gates, [layers · POINTS], for the heavy load."""
    readings, gates = [], []
    factor = snapped(Stream.of(found).factor)
    for mlp in (1, 3):
        slope, cut = found.lines[mlp]
        n = found.loads[1] * np.sqrt(factor * slope / (slope * found.square(mlp)[1] + cut))
        for point in POINTS:
            readings.append(found.shares[mlp, f"at {point}"][1] / found.shares[mlp, "unit"][1] * GATE / LOUDER * n)
            gates.append(point * n)
    return np.array(readings), np.array(gates)
