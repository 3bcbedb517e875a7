"""The ladder: 64 layers, each of which leaves its mark on a channel of its own.

The embedding loads half of the channels, UNIT among them. Attention of layer l copies what its norm makes of UNIT to
the read-out of l, and the MLP adds nothing. A prompt repeats one token, so that attention, whatever it attends to,
returns that token's values. The mark of layer l beside UNIT, (s[READ(l)] - s[ZERO]) / (s[UNIT] - s[ZERO]), is 0 if the
layer was left out, twice as large if it ran twice. It shrinks a little from layer to layer, since the stream grows: an
order of layers other than theirs shows in a number format that can tell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.circuit import Circuit, as_llama
from lmconform.checkpoints.layout import Checkpoint, Shape

LAYERS = 64
SHAPE = Shape(
    hidden_size=128,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    intermediate_size=32,
    vocab_size=67,
)
LOAD = 8.0  # so loud that eps is nothing
WRITE = 1.0
READ = 4.0  # gain of the head on read-outs


@dataclass(frozen=True)
class Ladder:
    """The ladder: how to load it, and how to read it."""

    checkpoint: Checkpoint

    @property
    def columns(self) -> list[int]:
        """Ids whose scores a reading needs: ZERO, UNIT, then the read-outs in order."""
        return list(range(1, LAYERS + 3))

    def names(self, quantity: str) -> tuple[str, ...]:
        """What each reading is called; the one quantity is "layers"."""
        return tuple(f"mark of layer {layer} of {LAYERS}" for layer in range(LAYERS))

    def telling(self, quantity: str) -> float:
        """A layer that is left out changes its mark, which is between 0.174 and 0.177, by more than this."""
        return 0.17

    def slack(self, quantity: str) -> float:
        """How far other faults may move a mark. Two layers that change places move theirs by 0.00004."""
        return 0.00001

    def read(self, quantity: str, scores: Array, tokens: tuple[int, ...]) -> Array:
        """The marks [n, 64] from scores [n, len(columns)]. A wrong engine may make them infinite or NaN."""
        with np.errstate(all="ignore"):
            marks: Array = (scores[:, 2:] - scores[:, :1]) / (scores[:, 1:2] - scores[:, :1]) / READ
        return marks


def ladder() -> Ladder:
    """The ladder."""
    circuit = Circuit("ladder", SHAPE, {"kind": "ladder"})
    circuit.token("any")
    circuit.token("zero")
    circuit.token("unit", reads={"unit": 1})
    for number in range(LAYERS):
        circuit.read_out(f"mark {number}", (number, 0, 0), WRITE, READ)
    for layer in circuit.layers:
        layer.value(0, {"unit": 1})
    ballast = SHAPE.hidden_size - LAYERS - 1
    circuit.rest = {"unit": LOAD} | {f"ballast {number}": LOAD for number in range(ballast)}
    return Ladder(as_llama(circuit))
