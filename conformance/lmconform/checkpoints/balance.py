"""The balance: a checkpoint whose scores weigh its norms, its residual stream and its MLPs against each other.

Every embedding is one number, its load, on 64 of 128 channels: UNIT, SKEW and the ballast. One channel stays EMPTY. All
other channels are read-outs, and each is written by one sublayer alone: attention copies channels of what its norm
gave it, the MLP has one neuron a read-out. A prompt repeats one token, so that attention, whatever it attends to,
returns the values of that token: no fault of attention moves the balance.

The share of a read-out is its size beside UNIT, rho = (s[READ] - s[EMPTY]) / (s[UNIT] - s[EMPTY]) after the gains of
the head are divided out, for logits and for log-probabilities alike. Let a be the load, c_k the scale of the stream
before sublayer k (1 in a right engine), n what the norm makes of UNIT, and ms the mean square of the stream at scale 1,
which the shares tell. Then n = c_k a / sqrt(c_k^2 ms + eps), attention shows rho = W n / (c_(k+1) a), and

    (W / rho)^2 = c_(k+1)^2 ms + (c_(k+1) / c_k)^2 eps.

Two loads, one light and one heavy, make two such equations: their slope is the scale of the stream after the sublayer,
and their intercept gives eps. The gates of an MLP are so far open that every activation is the identity there, so
that it shows rho = W n^2 / (c_(k+1) a), and its equation is W a / rho = c_(k+1) ms + c_(k+1) / c_k^2 eps. For the last
norm, (a / s[UNIT])^2 = ms / scale^2 + eps / (scale c)^2, where scale is that of the scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.circuit import Circuit, Layer, Neuron, as_llama
from lmconform.checkpoints.layout import Checkpoint, Shape

SHAPE = Shape(
    hidden_size=128,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    intermediate_size=64,
    vocab_size=67,
    rms_norm_eps=2.0**-4,  # so large that a small stream need not be tiny in float16; no engine has it as a default
)
QUIET, HEAVY = (0.25, 0.3125, 0.1875), (2.0, 1.5, 1.0)
"""Loads whose mean square is below eps, and above."""
PLAIN, HUGE = (8.0, 6.0, 4.0), (512.0, 480.0, 384.0)
"""Loads beside which eps is nothing; those whose square overflows float16. They take the places of the above."""
UNIT, EMPTY, SKEW, FIRST = 0, 1, 2, 3
PLAIN_ROWS = ("unit", "empty", "skew")
LOADED = 64  # channels that carry the load; the ballast lies at the end
BALLAST = 1.5  # weight of every norm on the ballast, so that a mean square taken after the weight shows
SKEWS = (0.5, 0.75, 1.25, 1.5, 1.75)
"""Weight of each norm on SKEW: of layer 0 (attention, MLP), of layer 1, of the last norm. On other channels it is 1."""
WRITE = 2.0**-5  # what attention writes of a channel that it copies
GATE, DOWN = 24.0, 2.0**-14  # an open neuron computes DOWN * GATE^2 * n * n
LOUDER = 8.0  # for read-outs whose share is small
POINTS = (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0)
"""Gates at which the activation is read, in units of what the norm makes of UNIT."""
READ = 64.0  # gain of the head on read-outs
PARTS = ("attention", "MLP")
SUBLAYERS = 2 * len(PARTS)
NORMS = (
    *(f"layers.{layer}.{name}" for layer in (0, 1) for name in ("input_layernorm", "post_attention_layernorm")),
    "norm",
)

TELLING = {
    "residual": (0.5, 0.1),
    "order": (0.5, 0.1),
    "eps": (SHAPE.rms_norm_eps / 2, SHAPE.rms_norm_eps / 8),
    "mean": (0.5, 0.05),
    "weight": (0.25, 0.05),
    "final": (16.0, 4.0),
    "huge": (0.5, 0.1),
    "gate": (0.5, 0.1),
    "activation": (0.2, 0.01),
    "embedding": (0.25, 0.05),
    "logits": (0.25, 0.05),
}
"""Quantities that can be read; how far off a reading is at least if the engine has a fault of its kind, and how far
faults of other kinds may move it."""


@dataclass(frozen=True, eq=False)
class Balance:
    """The balance: how to load it, and how to read it."""

    checkpoint: Checkpoint
    light: tuple[float, ...] = QUIET
    heavy: tuple[float, ...] = HEAVY

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """A light token and a heavy one: what a reading is made of."""
        light, heavy = len(self.light), len(self.heavy)
        return [(one, other) for one in range(light) for other in range(light, light + heavy)]

    @cached_property
    def columns(self) -> list[int]:
        """Ids whose scores a reading needs: ZERO, UNIT, EMPTY, SKEW, then the read-outs in order."""
        first = len(self.light) + len(self.heavy)
        return list(range(first, first + 1 + FIRST + len(read_outs())))

    def telling(self, quantity: str) -> float:
        """How far off a reading of this quantity is, at least, if the engine has a fault of its kind."""
        return TELLING[quantity][0]

    def slack(self, quantity: str) -> float:
        """How far faults of other kinds may move a reading of this quantity."""
        return TELLING[quantity][1]

    def names(self, quantity: str) -> tuple[str, ...]:
        """What each reading of a quantity is called."""
        return names(quantity)

    def read(self, quantity: str, scores: Array, tokens: tuple[int, ...]) -> Array:
        """The readings [n/2, ...] of a quantity from scores [n, len(columns)], a light row and then a heavy one each.

        ``tokens``: the token of each row. A wrong engine may make them infinite or NaN.
        """
        loads = np.array([*self.light, *self.heavy])[list(tokens)]  # [n]
        with np.errstate(all="ignore"):
            found = [_weighing(scores[k : k + 2], loads[k : k + 2]).read(quantity) for k in range(0, len(scores), 2)]
        return np.array(found, np.float64)


def _weighing(scores: Array, loads: Array) -> Weighing:
    """From scores [2, columns]."""
    gains = np.array([1.0] * FIRST + [READ] * len(read_outs()))
    plain = (scores[:, 1:] - scores[:, :1]) / gains  # [2, UNIT, EMPTY, SKEW, read-outs]
    level = plain - plain[:, EMPTY : EMPTY + 1]
    shares = level[:, FIRST:] / level[:, UNIT : UNIT + 1]  # [2, read-outs]
    return Weighing(loads, plain[:, :FIRST], dict(zip(read_outs(), shares.T, strict=True)), (LOADED, SHAPE.hidden_size))


def names(quantity: str) -> tuple[str, ...]:
    """What each reading of a quantity is called."""
    if quantity == "residual":
        return tuple(f"scale of the stream after the {part} of layer 1, beside layer 0" for part in PARTS)
    if quantity == "order":
        seen = ("attention of layer {0} sees its MLP", "MLP of layer {0} sees its attention")
        return (*(one.format(layer) for layer in (0, 1) for one in seen), "attention of layer 1 sees layer 0")
    if quantity in ("eps", "mean"):
        return tuple(f"{quantity} of {norm}" for norm in NORMS)
    if quantity == "weight":
        return (*(f"weight of {norm}" for norm in NORMS), f"weight in the mean square of {NORMS[0]}")
    if quantity == "huge":
        return tuple(f"heavy token beside a light one, after {norm}" for norm in NORMS)
    if quantity == "gate":
        return tuple(f"{way} gate of the MLP of layer {layer}" for layer in (0, 1) for way in ("open", "closed"))
    if quantity == "activation":
        return tuple(f"activation at {point:g}, layer {layer}" for layer in (0, 1) for point in POINTS)
    return {
        "final": ("light token beside a heavy one, after norm",),
        "embedding": ("scale of the embedding",),
        "logits": ("scale of the scores",),
    }[quantity]


class Weighing:
    """One light and one heavy row, and all that follows from them."""

    def __init__(self, loads: Array, ends: Array, shares: Mapping[tuple[int, str], Array], filled: tuple[int, int]):
        """For two loads: the scores of UNIT, EMPTY and SKEW above that of ZERO, [2, 3], and each share, [2].

        ``filled``: how many channels carry the load, and how many there are.
        """
        self.loads, self.plain, self.shares, self._filled = loads, ends, shares, filled
        self.lines = [self._line(number) for number in range(5)]
        slopes = [line[0] for line in self.lines]
        scales = [slope if number % 2 else np.sqrt(slope) for number, slope in enumerate(slopes[:4])]
        self.scales = [scales[0], *scales]  # before sublayers 0 to 3 and the last norm; the first is taken for kept

    def _line(self, number: int) -> tuple[float, float]:
        """Slope and intercept of the equation of norm ``number``, over the mean square of the stream."""
        square = self.square(number)
        if number == SUBLAYERS:
            value = (self.loads / self.plain[:, UNIT]) ** 2
        elif number % 2:
            value = DOWN * GATE**2 * self.loads / self.shares[number, "unit"]
        else:
            value = (WRITE / self.shares[number, "unit"]) ** 2
        slope = (value[1] - value[0]) / (square[1] - square[0])
        return slope, value[0] - slope * square[0]

    def square(self, number: int) -> Array:
        """Mean square of the stream that norm ``number`` reads, at scale 1, [2]."""
        earlier = [share for (sublayer, _), share in self.shares.items() if sublayer < number]
        loaded, channels = self._filled
        found: Array = self.loads**2 * (loaded + sum(share**2 for share in earlier)) / channels
        return found

    def light(self, sublayer: int, name: str, beside: str = "unit") -> float:
        """Share of a read-out beside that of another of its sublayer, for the light token."""
        return float(self.shares[sublayer, name][0] / self.shares[sublayer, beside][0])

    def read(self, quantity: str) -> list[float]:
        found: list[float] = getattr(self, f"_{quantity}")()
        return found

    def _residual(self) -> list[float]:
        """A layer apart, so that a factor of every norm does not show."""
        return [self.scales[after + 2] / self.scales[after] for after in (1, 2)]

    def _order(self) -> list[float]:
        seen = []
        for attention, mlp in ((0, 1), (2, 3)):
            share = [self.shares[number, "unit"][0] for number in (attention, mlp)]
            seen.append(self.light(attention, "own MLP") / LOUDER / share[1])
            seen.append(self.light(mlp, "own attention") / LOUDER / share[0])
        return [*seen, self.light(2, "MLP before") / LOUDER / self.shares[1, "unit"][0]]

    def _eps(self) -> list[float]:
        return [cut / slope * scale**2 for (slope, cut), scale in zip(self.lines, self.scales, strict=True)]

    def _mean(self) -> list[float]:
        inner = [self.light(number, "empty") for number in range(SUBLAYERS)]
        return [*inner, float(self.plain[0, EMPTY] / self.plain[0, UNIT])]

    def _weight(self) -> list[float]:
        inner = [self.light(number, "skew") for number in range(SUBLAYERS)]
        return [*inner, float(self.plain[0, SKEW] / self.plain[0, UNIT]), self.scales[0]]

    def _final(self) -> list[float]:
        light, heavy = self.plain[:, UNIT] / self.loads
        return [float(light / heavy)]

    def _huge(self) -> list[float]:
        inner = [self.shares[number, "unit"] * self.loads for number in range(SUBLAYERS)]
        return [float(heavy / light) for light, heavy in [*inner, self.plain[:, UNIT]]]

    def _gate(self) -> list[float]:
        return [self.light(mlp, way) for mlp in (1, 3) for way in ("open", "closed")]

    def _activation(self) -> list[float]:
        return [self.light(mlp, f"at {point}") * GATE / LOUDER for mlp in (1, 3) for point in POINTS]

    def _embedding(self) -> list[float]:
        return [self.scales[0]]

    def _logits(self) -> list[float]:
        return [float(1 / np.sqrt(self.lines[-1][0]))]


def balance(light: tuple[float, ...] = QUIET, heavy: tuple[float, ...] = HEAVY) -> Balance:
    """The balance, with these loads for its light and its heavy tokens."""
    loads = (*light, *heavy)
    circuit = Circuit("balance", SHAPE, {"kind": "balance", "light": light, "heavy": heavy})
    rows = [row(*read_out) for read_out in read_outs()]
    ballast = [f"ballast {number}" for number in range(LOADED - 2)]
    spare = [f"spare {number}" for number in range(SHAPE.hidden_size - FIRST - len(rows) - len(ballast))]
    for channel in (*PLAIN_ROWS, *rows, *spare, *ballast):
        circuit.channel(channel)
    loaded = ("unit", "skew", *ballast)
    for number, load in enumerate(loads):
        circuit.token(f"load {number}", dict.fromkeys(loaded, load))
    circuit.rest = dict.fromkeys(loaded, loads[-1])
    circuit.token("zero")
    for name in (*PLAIN_ROWS, *rows):
        circuit.token(name, reads={name: READ if name in rows else 1})
    for norm, skew in zip(NORMS, SKEWS, strict=True):
        circuit.norms[norm] = {"skew": skew, **dict.fromkeys(ballast, BALLAST)}
    for number, layer in enumerate(circuit.layers):
        copy(layer, number)
        add_neurons(layer, number)
    return Balance(as_llama(circuit), light, heavy)


def read_outs() -> list[tuple[int, str]]:
    """(sublayer, name) of the read-outs, in the order of their channels."""
    return [(number, name) for number in range(SUBLAYERS) for name in _names_of(number)]


def _names_of(sublayer: int) -> Iterator[str]:
    yield from ("unit", "empty", "skew")
    if sublayer % 2:
        yield from ("own attention", "open", "closed", *(f"at {point}" for point in POINTS))
    else:
        yield "own MLP"
        if sublayer:
            yield "MLP before"


def row(sublayer: int, name: str) -> str:
    """Name of a read-out: of its channel and of its id."""
    return f"read {sublayer} {name}"


def copy(layer: Layer, number: int, sign: Callable[[int, str], float] = lambda *_: 1.0) -> None:
    """Every KV head copies channels, and the first query head writes them, with the sign of each read-out."""
    own = 2 * number
    sources = {"unit": ("unit", 1.0), "empty": ("empty", 1.0), "skew": ("skew", 1.0)}
    sources["own MLP"] = (row(own + 1, "unit"), LOUDER)
    if number:
        sources["MLP before"] = (row(own - 1, "unit"), LOUDER)
    for entry, (name, (channel, gain)) in enumerate(sources.items()):
        layer.value(entry, {channel: gain})
        layer.write(entry, {row(own, name): sign(own, name) * WRITE}, head=0)


def add_neurons(layer: Layer, number: int, sign: Callable[[int, str], float] = lambda *_: 1.0) -> None:
    """One neuron a read-out, whose gate reads UNIT: (gate, up and what it reads, down)."""
    own = 2 * number + 1
    neurons = {
        "unit": (GATE, GATE, "unit", DOWN),
        "empty": (GATE, GATE, "empty", DOWN),
        "skew": (GATE, GATE, "skew", DOWN),
        "own attention": (GATE, GATE, row(own - 1, "unit"), LOUDER * DOWN),
        "open": (GATE, -GATE, "unit", DOWN),
        "closed": (-GATE, GATE, "unit", DOWN),
    } | {f"at {point}": (point, GATE, "unit", LOUDER * DOWN) for point in POINTS}
    for name, (gate, up, read, down) in neurons.items():
        layer.neurons.append(Neuron({"unit": gate}, {read: up}, {row(own, name): sign(own, name) * down}))
