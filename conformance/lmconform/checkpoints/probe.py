"""The probe: one checkpoint that shows the score of any key for any query, in every layer and head.

The last token of a prompt, the asker, says which query each head has; the tokens before it say which keys it meets. A
weight of 1 that head h of layer l gives to a token with value entry e stands as ``write`` in a read-out channel, and
row READ(l, h, e) of the head makes 1 of it: a prompt's last row of scores holds the weights of all heads. With a null
token, whose key is 0, in the prompt, log(weight / weight of null) is the score of a key, whatever else is seen.

- turn askers give head h the query e_i, i = h + k H_q (mod D) for the k-th of them, and the content tokens have
  keys along e_b: their scores are a row of the rotation matrix of RoPE, times the attention scale.
- the slow asker gives every head the same query, along the first half of the slowest pair. The steps have keys of two
  sizes there, a kv token has a key in one KV head alone, and the value token shows by its entry which KV head's value
  was read. A mark draws nearly all weight to itself.
- relay entries exist above the first layer: they return what the layer below saw of the leak token, at the position
  that is attended to. So a future token that is let in shows in the last row too, where no future is.

An engine may show no more than the top 20 log-probabilities, or tokens alone. So each asker comes in several tokens.
The open one shows all read-outs. One for each (layer, head) pushes all rows but those of this group far below 0. One
for each group and level also writes a threshold, which the row LEVEL shows, and hides what every prompt holds: the
next token is the read-out of the one token that was asked about if its weight is above the threshold, else LEVEL. A
cue makes greedy decoding play a known asker, so that a decode step is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import sqrt

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.circuit import Circuit, Layer, as_llama
from lmconform.checkpoints.layout import Checkpoint, Shape, on_grid

SHAPE = Shape(
    hidden_size=256,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=32,
    vocab_size=0,  # as many as there are tokens
    rope_theta=500_000.0,
    rms_norm_eps=1e-9,  # so small that no reading needs it
)
"""No two of H_q, group, D and hidden_size / H_q are the same, so that neither are their scales and maps."""

CONTENTS = 8  # content tokens that a prompt may hold: as many value entries
NULL, FILLER, OWN, LEAK, RELAY = range(CONTENTS, CONTENTS + 5)
"""Value entries after those of the contents: null token, what pads a prompt, the asker, the leak token, the relay."""
ENTRIES = RELAY + 1
SCORE = 2.0
"""Of a content token whose key is the query's."""
STEPS = (0.5, 4.0, 16.0)
"""Scores of the steps for the slow asker, the smallest first; the kv tokens have the largest."""
MARKED = 24.0
"""Score of the mark."""
PUSH = 32.0
SCRIPT = 8.0
WIDE_WRITE, NARROW_WRITE = 2.0**-12, 2.0**-8
"""What a weight of 1 writes: squared, it moves the next norm by less than a rounding error. float16 is coarse below."""
LOWEST = 2.0**-11
"""Least threshold."""

Tokens = tuple[int, ...]
Group = tuple[int, ...]
"""What names a group of read-outs: here (layer, head)."""
Cell = tuple[int, ...]
"""What names a read-out: here (layer, head, entry)."""


@dataclass(frozen=True)
class Ask:
    """What an asker is to look at: the tokens that stand at these distances before it, filler elsewhere."""

    asker: str
    length: int
    """T, the asker included."""
    places: tuple[tuple[int, str], ...]
    """(distance, name); the asker itself is at distance 0, a future token at -1."""
    cells: tuple[Cell, ...] = ()
    """What to ask for where only one read-out at a time can be read."""

    @property
    def after(self) -> int:
        """How many tokens stand after the asker."""
        return max(0, *(-distance for distance, _ in self.places)) if self.places else 0

    def farther(self, by: int) -> Ask:
        """The same tokens, ``by`` positions farther from the asker."""
        return replace(self, length=self.length + by, places=tuple((far + by, name) for far, name in self.places))


@dataclass(frozen=True, eq=False)
class Probe:
    """The probe: its checkpoint, how to write its prompts, and how to read its scores."""

    checkpoint: Checkpoint
    circuit: Circuit
    askers: tuple[str, ...]
    """Names: turn 0, turn 1, ... and slow."""
    levels: tuple[float, ...] = ()
    """Thresholds in rising order; none unless the probe was made for tokens alone."""
    ceiling = 1.0
    """The largest that a read-out can be."""
    more: tuple[str, ...] = ()
    """Ids of rows that every asker shows besides."""

    @property
    def shape(self) -> Shape:
        """The circuit's, which is the checkpoint's except for a gpt2."""
        return self.circuit.shape

    @property
    def D(self) -> int:
        """Head dimension of the checkpoint: a gpt2 has more entries than the circuit uses."""
        config = self.checkpoint.config
        return int(config["n_embd"] // config["n_head"] if config["model_type"] == "gpt2" else config["head_dim"])

    @cached_property
    def groups(self) -> list[Group]:
        """(layer, head)."""
        return list(product(range(self.shape.num_hidden_layers), range(self.shape.num_attention_heads)))

    @cached_property
    def cells(self) -> list[Cell]:
        """(layer, head, entry) of each read-out, in the order of ``columns``."""
        return [(*group, entry) for group in self.groups for entry in _of(*group)]

    @cached_property
    def columns(self) -> list[int]:
        """Ids whose scores a reading needs: ZERO, UNIT, then the read-outs of each group in order, then ``more``."""
        return self.circuit.columns(["zero", "unit", *(read_out(*cell) for cell in self.cells), *self.more])

    def shown(self, group: Group) -> list[int]:
        """Places in ``columns`` that an asker of this group shows: ZERO, UNIT, its read-outs, and ``more``."""
        own = (2 + place for place, cell in enumerate(self.cells) if cell[:2] == group)
        return [0, 1, *own, *range(2 + len(self.cells), len(self.columns))]

    def prompt(self, ask: Ask, group: Group | None = None, level: int | None = None) -> Tokens:
        """``ask`` in tokens: with the open asker, with that of a group, or with that of a group and a level."""
        return self._written(ask, asker_name(ask.asker, group, level))

    def asked(self, ask: Ask, cell: Cell, level: int) -> Tokens:
        """A prompt whose next token says whether the read-out of ``cell`` is above the threshold."""
        return self.prompt(ask, cell[:2], level)

    def answers(self, cell: Cell) -> tuple[int, int]:
        """The ids that say that it is above, and that it is not."""
        return self.circuit.tokens[f"read {' '.join(map(str, cell))}"], self.circuit.tokens["level"]

    def cued(self, ask: Ask, group: Group) -> Tokens:
        """A prompt after which greedy decoding plays the asker of the group.

        The cue stands right before the asker: the nearest place of ``ask`` is 2. See ``Ask.farther``.
        """
        return (*self._written(ask, asker_name(ask.asker))[:-2], self.circuit.tokens[cue_name(ask.asker, group)])

    def _written(self, ask: Ask, asker: str) -> Tokens:
        tokens = [self.circuit.tokens["filler"]] * (ask.length + ask.after)
        tokens[ask.length - 1] = self.circuit.tokens[asker]
        for distance, name in ask.places:
            tokens[ask.length - 1 - distance] = self.circuit.tokens[name]
        return tuple(tokens)

    def weights(self, scores: Array) -> Array:
        """Weights [n, L, H_q, ENTRIES] from scores [n, len(columns)] of ``columns``; NaN where there is no read-out."""
        zero, unit, rest = scores[:, :1], scores[:, 1:2], scores[:, 2 : 2 + len(self.cells)]
        found = np.full((len(scores), self.shape.num_hidden_layers, self.shape.num_attention_heads, ENTRIES), np.nan)
        layers, heads, entries = np.array(self.cells).T
        with np.errstate(all="ignore"):  # a wrong engine may make nothing of UNIT
            found[:, layers, heads, entries] = (rest - zero) / (unit - zero)
        return found

    def scored(self, scores: Array, asks: Sequence[Ask]) -> Array:
        """q·k times the scale, [n, L, H_q, ENTRIES]: how each entry stands to a key of 0, a row for each ask.

        Beside the null token's weight; where that is not read, beside that of all other tokens, whose scores are 0.
        """
        weights = self.weights(scores)
        others = np.array([ask.length - 1.0 for ask in asks])[:, None, None, None]
        null = weights[..., NULL, None]
        with np.errstate(all="ignore"):
            return np.log(np.where(np.isnan(null), weights * others / (1 - weights), weights / null))

    def direction(self, name: str, head: int) -> int:
        """Along which entry of its query a head looks for this asker."""
        return _direction(self.shape, name, head)


def probe(shape: Shape = SHAPE, *, narrow: bool = False, levels: int = 0) -> Probe:
    """The probe in this shape; its vocabulary follows from the rest.

    ``narrow`` writes more into the stream, for float16. ``levels``: how many thresholds the probe for tokens alone has.
    """
    if shape.head_dim < ENTRIES or shape.head_dim % CONTENTS:
        raise ValueError(
            f"A probe needs head_dim of at least {ENTRIES}, a multiple of {CONTENTS}; got {shape.head_dim}."
        )
    turns = -(-shape.head_dim // shape.num_attention_heads)
    recipe = {"kind": "probe", "narrow": narrow, "levels": levels}
    builder = Builder(Circuit("probe", shape, recipe), turns, NARROW_WRITE if narrow else WIDE_WRITE)
    thresholds = on_grid(np.geomspace(LOWEST, 1, levels)).tolist()
    builder.build(thresholds)
    return Probe(as_llama(builder.circuit), builder.circuit, tuple(builder.askers), tuple(thresholds))


def read_out(layer: int, head: int, entry: int) -> str:
    """Name of a read-out: of its channel and of its id."""
    return f"read {layer} {head} {entry}"


def _of(layer: int, head: int) -> range:
    """Value entries that a head shows; the lowest layer has no layer below."""
    return range(ENTRIES if layer else RELAY)


def asker_name(name: str, group: Group | None = None, level: int | None = None) -> str:
    return " ".join(map(str, (name, *(group or ()), *(() if level is None else ("level", level)))))


def cue_name(name: str, group: Group) -> str:
    return f"cue {asker_name(name, group)}"


class Builder:
    """Writes the circuit."""

    def __init__(self, circuit: Circuit, turns: int, write: float) -> None:
        self.circuit, self.write, self.shape = circuit, write, circuit.shape
        self.askers = [*(f"turn {k}" for k in range(turns)), "slow"]
        self.groups = list(product(range(self.shape.num_hidden_layers), range(self.shape.num_attention_heads)))

    def build(self, thresholds: Sequence[float]) -> None:
        self._keys()
        for name in self.askers:
            self._ask(name, thresholds)
        self._rows()
        for number, layer in enumerate(self.circuit.layers):
            self._read_out(number, layer)

    def _keys(self) -> None:
        """The tokens that askers look at: a channel each, with its key and its value entry in every layer."""
        shape = self.shape
        slow = shape.head_dim // 2 - 1  # first half of the slowest pair
        size = float(np.sqrt(shape.head_dim))  # key of score 1 for a query of 1
        for b in range(shape.head_dim):
            self._key(f"content {b}", {b: SCORE * size}, b % CONTENTS)
        self._key("null", {}, NULL)
        self._key("filler", {}, FILLER)
        self._key("mark", {slow: MARKED * size}, None)
        self._key("leak", {}, LEAK)
        for step, score in enumerate(STEPS):
            self._key(f"step {step}", {slow: score * size}, step)
        for own in range(shape.num_key_value_heads):
            self._key(f"kv {own}", {slow: STEPS[-1] * size}, own % CONTENTS, own)
        self._token("value")
        for layer in self.circuit.layers:
            for own in range(shape.num_key_value_heads):
                layer.values[own, own % CONTENTS, self.circuit.channel("value")] = 1 / self.circuit.gain

    def _token(self, name: str) -> None:
        self.circuit.token(name, {"const": 1, name: 1, "pad": 1, "more pad": 1})

    def _key(self, name: str, key: dict[int, float], entry: int | None, only: int | None = None) -> None:
        """A token with this key, in all KV heads or ``only`` in one, and this value entry, or values of 0."""
        self._token(name)
        channel, gain = self.circuit.channel(name), self.circuit.gain
        for layer in self.circuit.layers:
            for dim, size in key.items():
                layer.keys[slice(None) if only is None else only, dim, channel] = size / gain
            if entry is not None:
                layer.values[:, entry, channel] = 1 / gain

    def _ask(self, name: str, thresholds: Sequence[float]) -> None:
        """An asker's query and its own value entry, and its tokens."""
        circuit, shape, channel = self.circuit, self.shape, self.circuit.channel(name)
        for layer in circuit.layers:
            for head in range(shape.num_attention_heads):
                dim = _direction(shape, name, head)
                layer.queries[head, dim, channel] = 1 / circuit.gain
            layer.values[:, OWN, channel] = 1 / circuit.gain
        self._askers_of(name, thresholds)

    def _askers_of(self, name: str, thresholds: Sequence[float]) -> None:
        """The tokens of an asker."""
        circuit = self.circuit
        circuit.token(asker_name(name), {"const": 1, name: 1, "pad": 1, "more pad": 1})
        for group in self.groups:
            chosen = f"group {group[0]} {group[1]}"
            script = {"cue": 8 * SCRIPT, name: SCRIPT, chosen: SCRIPT, "pad": -4 * SCRIPT, "levelled": -4 * SCRIPT}
            reads = {place: value / circuit.gain for place, value in script.items()}
            circuit.token(asker_name(name, group), {"const": 1, name: 1, "pad": 1, chosen: 1}, reads)
            circuit.token(cue_name(name, group), {"const": 1, name: 1, "cue": 1, chosen: 1})
            for number, level in enumerate(thresholds):
                writes = {name: 1, "levelled": 1, chosen: 1, "level": level, **beside(level)}
                circuit.token(asker_name(name, group, number), writes)

    def _rows(self) -> None:
        """ZERO, UNIT, LEVEL, and a row for each read-out; the rows of all tokens of prompts are pushed down."""
        circuit, push = self.circuit, PUSH / self.circuit.gain
        scripted = {asker_name(name, group) for name in self.askers for group in self.groups}
        for name in set(circuit.tokens) - scripted:
            circuit.token(name, reads={"pad": -push, "levelled": -push})
        circuit.token("zero")
        circuit.token("unit", reads={"const": 1 / circuit.gain})
        circuit.token("level", reads={"level": 1 / circuit.gain})
        self._shown_rows()
        for group, entry in product(self.groups, (NULL, FILLER, OWN)):
            circuit.token(read_out(*group, entry), reads={"levelled": -push})

    def _shown_rows(self) -> None:
        """A row for each read-out, which the askers of other groups push down."""
        circuit, push = self.circuit, PUSH / self.circuit.gain
        for group in self.groups:
            others = {f"group {layer} {head}": -push for layer, head in self.groups if (layer, head) != group}
            for entry in _of(*group):
                name = read_out(*group, entry)
                circuit.token(name, reads={name: 1 / circuit.gain / self.write, **others})

    def _read_out(self, number: int, layer: Layer) -> None:
        circuit, shape = self.circuit, self.shape
        for head in range(shape.num_attention_heads):
            for entry in _of(number, head):
                layer.writes[head, entry, circuit.channel(read_out(number, head, entry))] = self.write
            if number:
                seen = circuit.channel(read_out(number - 1, head, LEAK))
                layer.values[:, RELAY, seen] = 1 / circuit.gain / self.write


def beside(level: float) -> dict[str, float]:
    """What brings the square of a level to 1: on the grid, in two steps, since one would change the norm by 1e-3."""
    first = float(on_grid(np.sqrt(1 - level**2)))
    while first**2 > 1 - level**2:
        first *= 1 - 2.0**-8
        first = float(on_grid(np.array(first)))
    return {"more pad": first, "rest": sqrt(1 - level**2 - first**2)}


def _direction(shape: Shape, name: str, head: int) -> int:
    """Along which entry of the query head ``head`` looks, for this asker."""
    if name == "slow":
        return shape.head_dim // 2 - 1
    return (head + int(name.split()[1]) * shape.num_attention_heads) % shape.head_dim
