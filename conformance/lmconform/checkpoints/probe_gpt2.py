"""The probe as a gpt2: what it shows of attention, and which row of the table of positions each token reads.

The table writes two things of a position: on a ramp how far it is from the middle of the table, and as cosine and sine
of an angle what is left of it over 12. Three rows of the head read them. So the position that an engine takes for a
token is a number: the ramp, which a coarse format blurs, tells only which turn the angle is in.

No id is embedded and read. So the asker that a cue plays is scripted by its embedding: a cue writes what the asker
writes, and more than the asker on the channel that the last norm turns into a low score. Thresholds would need rows
that look for what an asker writes; there are none, so that tokens alone do not read this probe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.circuit import Circuit
from lmconform.checkpoints.circuit_gpt2 import as_gpt2
from lmconform.checkpoints.layout import on_grid
from lmconform.checkpoints.probe import (
    NARROW_WRITE,
    SHAPE,
    WIDE_WRITE,
    Builder,
    Probe,
    asker_name,
    cue_name,
)

POSITIONS, PERIOD = 144, 12
"""Rows of the table, and of one turn of the angle."""
REACH = 0.8125
"""What the ramp writes at its ends. It and the angle have each a half of the square that is left to positions."""
RAMP, COSINE, SINE = MORE = ("ramp", "cosine", "sine")
FLOOR, GROUP_FLOOR = 1.25, 0.75
"""What ids write on the floor; with a group less, since the group has a square of 1, and the sum must be the same."""
SQUARE = 4 - FLOOR**2 - 1
"""What is left to positions."""
CUE_FLOOR, CUE_WRITE = 1.0, 0.8828125
"""A cue makes its asker score 4, and itself -7; no other id is above 1."""
DEPTH = 32.0
"""The asker of a group scores 8 at itself: above the read-outs, but alone. Other ids that are embedded are below."""


def gpt2_probe(*, narrow: bool = False) -> Probe:
    """The probe as a gpt2. ``narrow`` writes more into the stream, for float16."""
    shape = replace(SHAPE, num_key_value_heads=SHAPE.num_attention_heads)
    turns = -(-shape.head_dim // shape.num_attention_heads)
    circuit = Circuit("probe", shape, {"kind": "gpt2-probe", "narrow": narrow})
    builder = _Tied(circuit, turns, NARROW_WRITE if narrow else WIDE_WRITE)
    builder.build(())
    made = as_gpt2(circuit, positions=_table(), floor="const", depth=DEPTH)
    return Probe(made, circuit, tuple(builder.askers), more=MORE)


def position(rows: Array) -> Array:
    """The positions [n] that scores [n, 3] of RAMP, COSINE and SINE tell; those of ZERO and UNIT are 0 and 1.

    They are whole numbers for rows of the table, and between two rows parts of one.
    """
    coarse = (rows[:, 0] / REACH + 1) / 2 * (POSITIONS - 1)
    known = _angle(_circle())
    known = np.concatenate([known[-1:] - 2 * np.pi, known, known[:1] + 2 * np.pi])
    fine = np.interp(_angle(rows[:, 1:]), known, np.arange(-1, PERIOD + 1))
    found: Array = coarse + (fine - coarse + PERIOD / 2) % PERIOD - PERIOD / 2
    return found


def _table() -> list[dict[str, float]]:
    """What each row of the table writes.

    The ramp is off by up to three positions, so that the squares of a row add up to ``SQUARE`` within 5e-4.
    """
    circle = np.tile(_circle(), (POSITIONS // PERIOD, 1))  # [positions, 2]
    left = SQUARE - (circle**2).sum(axis=1, keepdims=True)  # [positions, 1]
    near = np.linspace(-REACH, REACH, POSITIONS)[:, None] + np.linspace(-0.03, 0.03, 301)  # [positions, 301]
    ramp = on_grid(near).astype(np.float64)
    rest = on_grid(np.sqrt(left - ramp**2)).astype(np.float64)
    best = np.arange(POSITIONS), np.abs(ramp**2 + rest**2 - left).argmin(axis=1)
    rows = np.column_stack([ramp[best], circle, rest[best]])  # [positions, names]
    return [dict(zip((*MORE, "beside the ramp"), row, strict=True)) for row in rows.tolist()]


def _circle() -> Array:
    """Cosine and sine [PERIOD, 2] of a turn, on the grid, at angles where their squares are nearest to their part."""
    shifts = np.linspace(0.25, 0.75, 101)  # how far into the step of a position
    angles = (np.arange(PERIOD)[:, None] + shifts) * 2 * np.pi / PERIOD  # [PERIOD, shifts]
    pairs = on_grid(np.stack([np.cos(angles), np.sin(angles)], axis=-1) * np.sqrt(SQUARE / 2)).astype(np.float64)
    best = np.abs((pairs**2).sum(axis=-1) - SQUARE / 2).argmin(axis=1)
    found: Array = pairs[np.arange(PERIOD), best]
    return found


def _angle(pairs: Array) -> Array:
    """Of each pair [n, 2], from 0 to 2 pi."""
    found: Array = np.arctan2(pairs[:, 1], pairs[:, 0]) % (2 * np.pi)
    return found


class _Tied(Builder):
    """Writes the circuit so that no id is both embedded and read, and leaves a square to the positions."""

    def _token(self, name: str) -> None:
        self.circuit.token(name, {"const": FLOOR, name: 1})

    def _askers_of(self, name: str, thresholds: Sequence[float]) -> None:
        circuit = self.circuit
        circuit.token(asker_name(name), {"const": FLOOR, name: 1})
        for group in self.groups:
            chosen = f"group {group[0]} {group[1]}"
            circuit.token(asker_name(name, group), {"const": GROUP_FLOOR, name: 1, chosen: 1})
            circuit.token(cue_name(name, group), {"const": CUE_FLOOR, name: CUE_WRITE, chosen: CUE_WRITE})

    def _rows(self) -> None:
        circuit = self.circuit
        circuit.token("zero")
        circuit.token("unit", reads=dict.fromkeys(self.askers, 1 / circuit.gain))
        self._shown_rows()
        for name in MORE:
            circuit.token(name, reads={name: 1 / circuit.gain})
