"""What a decoder with learned positions makes of them, read off the gpt2 probe: rows of the table, and no rotation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.probe import Ask, Probe
from lmconform.checkpoints.probe_gpt2 import MORE, PERIOD, position
from lmconform.measure.experiment import Experiment, chosen, worst
from lmconform.measure.layouts import MOVED
from lmconform.measure.observation import Observation, Value
from lmconform.measure.rope import all_at_once, turns
from lmconform.measure.sheet import Entry

SECTION = "positions"
LENGTHS = (2, 9, 17, 33, 65, 129)
"""Both sides of what prefills are cut into; the last position of each is read."""

NEAR_AND_FAR = (0, 4)
"""Shifts that bring each direction to two distances: half of them from near to far, half the other way."""


def experiments(probe: Probe) -> list[Experiment]:
    """All that is asked about positions."""
    asks = tuple(Ask("slow", length, ((length - 1, "null"),)) for length in LENGTHS)
    return [
        Experiment(SECTION, "position of a token", asks, partial(_positions, probe)),
        Experiment(SECTION, "rotation", tuple(all_at_once(probe, NEAR_AND_FAR)), partial(_rotation, probe)),
    ]


def _positions(probe: Probe, seen: Observation) -> list[Entry]:
    """The row of the table that each asker was given, counted from 0."""

    before = np.array([ask.length - 1.0 - PERIOD for ask in seen.asks])

    def apart(rows: Array, asks: Sequence[Ask]) -> Array:
        with np.errstate(all="ignore"):  # a wrong engine may make nothing of UNIT
            return position((rows[:, -len(MORE) :] - rows[:, :1]) / (rows[:, 1:2] - rows[:, :1])) - before

    value, lines = seen.value(apart), []  # about one turn: bounds grow with numbers, and an angle is read in its turn
    for k, (ask, start) in enumerate(zip(seen.asks, before, strict=True)):
        one = Value(start + value.got[[k]], start + value.wanted[[k]], value.bound[[k]])
        where = [f"the asker, at the end of {ask.length} tokens"]
        lines.append(worst(one, SECTION, f"position of token {ask.length - 1}", where, telling=1.0))
    return lines


def _rotation(probe: Probe, seen: Observation) -> list[Entry]:
    """Whether scores depend on the distance: each direction should meet itself alone, wherever it stands."""

    def rotation(rows: Array, asks: Sequence[Ask]) -> str:
        scores = turns(probe, rows, asks)  # [L, H_q, askers, D, distances]
        size, read = np.abs(np.nan_to_num(scores)), ~np.isnan(scores)
        own = np.zeros_like(read)
        for k, asker in enumerate(probe.askers[:-1]):
            for h in range(probe.shape.num_attention_heads):
                own[:, h, k, probe.direction(asker, h)] = True
        alone = ((size > MOVED * size.max()) == own)[read]
        return "none" if alone.size and alone.all() else "scores depend on the distance"

    return [chosen(seen, SECTION, "rotation", rotation)]
