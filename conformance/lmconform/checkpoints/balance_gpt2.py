"""A balance for gpt2: its scores tell the eps of every LayerNorm, whether the mean is taken away, and the activation.

A prompt repeats one token, which carries a load a on the channel UNIT. Attention copies what its norm makes of UNIT,
and a wide open neuron what the norm of the MLP makes of it. The share of such a copy beside UNIT is W n / a, where n is
what the norm made of a. So (W / share)^2 = ms + eps, ms being the mean square of the stream, and a light load and a
heavy one tell both. The last norm does so without a copy: (a / score)^2 = ms + eps.

The shifted load is the heavy one with the same number added to every channel of gpt2's stream, which no norm may see.
The other neurons show the activation at ``POINTS``, for the heavy load.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.circuit import Circuit, Neuron
from lmconform.checkpoints.circuit_gpt2 import as_gpt2
from lmconform.checkpoints.layout import Checkpoint, Shape, on_grid

SHAPE = Shape(
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=4,
    intermediate_size=8,
    vocab_size=0,
    rms_norm_eps=2.0**-4,
)
EPS = SHAPE.rms_norm_eps
LIGHT, HEAVY, SHIFT = 1.0, 8.0, 2.0
LOADS = ("light", "heavy", "shifted")
COPY, OPEN, WRITE = 2.0**-4, 16.0, 2.0**-10
"""What attention writes of a copy; gate of the open neuron, and what neurons write: the copy is OPEN · WRITE."""
READ = 16.0
"""Of copies, by the head."""
LOUDER = 16.0
"""For what an activation leaves of a point."""


NORMED = HEAVY / sqrt(HEAVY**2 / SHAPE.hidden_size + EPS)
"""What a norm makes of the heavy load, nearly."""
POINTS = (-3.0, -2.0, -1.0, 1.0)
"""Where the activation is read, nearly."""
GATES = on_grid(np.array(POINTS) / NORMED).astype(np.float64)
NORMS = ("ln_1", "ln_2", "ln_f")


@dataclass(frozen=True, eq=False)
class GPT2Balance:
    """The balance: how to load it, and how to read it."""

    checkpoint: Checkpoint
    circuit: Circuit

    @property
    def columns(self) -> list[int]:
        """Ids whose scores a reading needs: ZERO, UNIT, the two copies, and the points."""
        return self.circuit.columns(["zero", "unit", "attention", "MLP", *(f"at {point:g}" for point in POINTS)])

    def prompt(self, load: str) -> tuple[int, ...]:
        """A prompt of one load; its last row is read."""
        return (self.circuit.tokens[load],) * 5

    def eps(self, rows: Array) -> Array:
        """eps of each norm [3], from scores [3, columns] of the three loads."""
        level, shares = _levels(rows)
        found = []
        for number, inverse in enumerate(_inverse(level, shares)):
            inside = 1 + (shares[:, : (0, 1, shares.shape[1])[number]] ** 2).sum(axis=1)
            square = np.array([LIGHT, HEAVY]) ** 2 * inside[:2] / SHAPE.hidden_size
            slope = (inverse[1] - inverse[0]) / (square[1] - square[0])
            found.append(inverse[0] / slope - square[0])
        return np.array(found)

    def shifted(self, rows: Array) -> Array:
        """What each norm [3] makes of the shifted load, beside what it makes of the heavy one."""
        found: Array = np.array([np.sqrt(inverse[1] / inverse[2]) for inverse in _inverse(*_levels(rows))])
        return found

    def activation(self, rows: Array) -> tuple[Array, Array]:
        """Where the activation was read, nearly ``POINTS``, and what it was there."""
        _, shares = _levels(rows)
        held = shares[1] * HEAVY / WRITE  # what the neurons returned
        return GATES * held[1] / OPEN, held[2:] / LOUDER


def _levels(rows: Array) -> tuple[Array, Array]:
    """UNIT [3] above ZERO, and all others beside it [3, columns - 2]: what their channels hold beside UNIT's."""
    above = rows - rows[:, :1]
    return above[:, 1], above[:, 2:] / above[:, 1:2] / READ


def _inverse(level: Array, shares: Array) -> list[Array]:
    """ms + eps of each norm, for each load, [3 norms][3 loads]."""
    loads = np.array([LIGHT, HEAVY, HEAVY])
    return [(COPY / shares[:, 0]) ** 2, (OPEN * WRITE / shares[:, 1]) ** 2, (loads / level) ** 2]


def gpt2_balance(activation: str = "gelu_new") -> GPT2Balance:
    """The balance, with this activation of gpt2."""
    circuit = Circuit("balance", SHAPE, {"kind": "gpt2-balance", "activation": activation})
    for load, size in zip(LOADS, (LIGHT, HEAVY, HEAVY), strict=True):
        circuit.token(load, {"unit": size})
    circuit.token("zero")
    circuit.token("unit", reads={"unit": 1})
    layer = circuit.layers[0]
    layer.values[0, 0, circuit.channel("unit")] = 1
    layer.writes[0, 0, circuit.channel("attention")] = COPY
    layer.neurons.append(Neuron({"unit": OPEN}, None, {"MLP": WRITE}))
    for point, gate in zip(POINTS, GATES.tolist(), strict=True):
        layer.neurons.append(Neuron({"unit": gate}, None, {f"at {point:g}": LOUDER * WRITE}))
    for name in ("attention", "MLP", *(f"at {point:g}" for point in POINTS)):
        circuit.token(name, reads={name: READ})
    made = as_gpt2(circuit, activation=activation)
    weights = dict(made.weights)
    weights["transformer.wte.weight"] = weights["transformer.wte.weight"].copy()
    weights["transformer.wte.weight"][circuit.tokens["shifted"]] += SHIFT
    return GPT2Balance(replace(made, name=f"{made.name}-{activation}", weights=weights), circuit)
