"""A small language for instruments: a decoder, described by what its parts make of named channels.

A circuit names channels of the residual stream, and ids of the vocabulary. Embeddings write channels; the heads and
neurons of a layer read channels after its norms, and write others; rows of the head read channels after the last norm.
What is not said is 0, so that a sublayer without words adds nothing; the weights of norms are 1. ``as_llama`` compiles
a circuit to a checkpoint. Ids are numbered as they are named, and channels as they are named by ``channel`` or by a
word of a layer; those that ids alone write or read come last.

If the squares of every embedding add up to the same ``power``, and hidden_size is ``power`` times a power of 4, all
norms multiply by a power of two (up to eps), which rounds nothing: ``Circuit.gain``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.layout import Checkpoint, Shape, on_grid

Writes = Mapping[str, float]
"""Channel to number."""


@dataclass(frozen=True)
class Neuron:
    """A neuron of an MLP: what its gate reads, what the gate multiplies, and what is written.

    ``up`` is None where nothing is multiplied, as in gpt2.
    """

    gate: Writes
    up: Writes | None
    down: Writes


class Layer:
    """The sublayers of one layer, as sparse maps from and to channels; all of them start at 0.

    ``query``, ``key``, ``value`` and ``write`` say numbers of the maps by name, for one head or for all of them. Said
    again, a number takes the place of the one before.
    """

    def __init__(self, shape: Shape, channel: Callable[[str], int]) -> None:
        self._channel = channel
        heads, kv_heads = shape.num_attention_heads, shape.num_key_value_heads
        self.queries: Array = np.zeros((heads, shape.head_dim, shape.hidden_size))
        """[H_q, D, channels], of the normed stream, before rotation."""
        self.keys: Array = np.zeros((kv_heads, shape.head_dim, shape.hidden_size))
        """[H_kv, D, channels]."""
        self.values: Array = np.zeros((kv_heads, shape.head_dim, shape.hidden_size))
        """[H_kv, D, channels]."""
        self.writes: Array = np.zeros((heads, shape.head_dim, shape.hidden_size))
        """[H_q, D, channels]: what entry j of what head h returns adds to each channel."""
        self.neurons: list[Neuron] = []

    def query(self, entry: int, reads: Writes, head: int | None = None) -> None:
        """What entry ``entry`` of the query of a head adds up."""
        self._say(self.queries, entry, reads, head)

    def key(self, entry: int, reads: Writes, head: int | None = None) -> None:
        """What entry ``entry`` of the key of a KV head adds up."""
        self._say(self.keys, entry, reads, head)

    def value(self, entry: int, reads: Writes, head: int | None = None) -> None:
        """What entry ``entry`` of the value of a KV head adds up."""
        self._say(self.values, entry, reads, head)

    def write(self, entry: int, writes: Writes, head: int | None = None) -> None:
        """What entry ``entry`` of what a head returns adds to channels."""
        self._say(self.writes, entry, writes, head)

    def _say(self, maps: Array, entry: int, numbers: Writes, head: int | None) -> None:
        for name, number in numbers.items():
            maps[slice(None) if head is None else head, entry, self._channel(name)] = number


class Circuit:
    """A decoder in words. The vocabulary holds the ids that are named, or more where ``shape`` says so."""

    def __init__(self, name: str, shape: Shape, recipe: Mapping[str, Any], power: float = 4.0) -> None:
        self.name, self.recipe, self.power = name, dict(recipe), power
        self.layers = [Layer(shape, self.channel) for _ in range(shape.num_hidden_layers)]
        self.rest: Writes = {}
        """What the embeddings write of ids that were not named, or named without saying what they write."""
        self.norms: dict[str, Writes] = {}
        """Weights of the norms on channels, by name of the norm, such as ``layers.0.input_layernorm`` and ``norm``."""
        self._shape = shape
        self._channels: dict[str, int] = {}
        self._tokens: dict[str, int] = {}
        self._writes: list[dict[str, float]] = []
        self._reads: list[dict[str, float]] = []

    @property
    def shape(self) -> Shape:
        """The sizes, with the vocabulary as wide as it has become."""
        return replace(self._shape, vocab_size=max(self._shape.vocab_size, len(self._tokens)))

    @property
    def gain(self) -> float:
        """What a norm makes of a channel that holds 1, where the squares of the stream add up to ``power``."""
        return sqrt(self._shape.hidden_size / self.power)

    def held(self, numbers: Writes) -> dict[str, float]:
        """Reads of what channels hold before a norm: these numbers, without the norm's gain."""
        return {name: number / self.gain for name, number in numbers.items()}

    @property
    def tokens(self) -> Mapping[str, int]:
        """Ids by name, in the order in which they were named."""
        return self._tokens

    def channel(self, name: str) -> int:
        """The place of a channel; the first time it is named, the next free one. Raises ValueError if none is."""
        if name not in self._channels and len(self._channels) == self._shape.hidden_size:
            raise ValueError(f"A circuit of hidden_size {self._shape.hidden_size} has no room for channel {name!r}.")
        return self._channels.setdefault(name, len(self._channels))

    def token(self, name: str, writes: Writes | None = None, reads: Writes | None = None) -> int:
        """The id ``name``: what its embedding writes, and what its row of the head reads.

        Named again, it writes and reads that as well.
        """
        if name not in self._tokens:
            self._tokens[name] = len(self._tokens)
            self._writes.append({})
            self._reads.append({})
        token = self._tokens[name]
        for known, more in ((self._writes[token], writes), (self._reads[token], reads)):
            for channel, value in (more or {}).items():
                known[channel] = known.get(channel, 0.0) + value
        return token

    def read_out(self, name: str, place: tuple[int, int, int], write: float, gain: float) -> int:
        """The id and the channel ``name`` show entry j of what head h of layer l returns; ``place`` is (l, h, j).

        1 of it stands in the channel as ``write``; the id's row of the head multiplies the channel by ``gain``.
        """
        layer, head, entry = place
        self.layers[layer].write(entry, {name: write}, head)
        return self.token(name, reads={name: gain})

    @property
    def embedding(self) -> Array:
        """What each id writes, [V, channels]."""
        return self._matrix([writes or self.rest for writes in self._writes], self.rest)

    @property
    def head(self) -> Array:
        """What the score of each id adds up, of the stream after the last norm, [V, channels]."""
        return self._matrix(self._reads, {})

    def vector(self, numbers: Writes) -> Array:
        """[channels], with these numbers at the channels named."""
        found = np.zeros(self._shape.hidden_size)
        for name, value in numbers.items():
            found[self.channel(name)] = value
        return found

    def columns(self, names: Iterable[str]) -> list[int]:
        """Ids of these names."""
        return [self._tokens[name] for name in names]

    def _matrix(self, rows: Sequence[Writes], rest: Writes) -> Array:
        found = np.zeros((self.shape.vocab_size, self._shape.hidden_size))
        for token, row in enumerate(rows):
            found[token] = self.vector(row)
        found[len(rows) :] = self.vector(rest)
        return found


def as_llama(circuit: Circuit) -> Checkpoint:
    """The circuit as a llama checkpoint."""
    shape = circuit.shape
    weights = {name: np.zeros(size) for name, size in shape.tensors().items()}
    for value in weights.values():
        if value.ndim == 1:
            value[:] = 1
    for norm, numbers in circuit.norms.items():
        for name, number in numbers.items():
            weights[f"model.{norm}.weight"][circuit.channel(name)] = number
    weights["model.embed_tokens.weight"] += circuit.embedding
    weights["lm_head.weight"] += circuit.head
    for number, layer in enumerate(circuit.layers):
        stem = f"model.layers.{number}."
        for name, maps in (("q", layer.queries), ("k", layer.keys), ("v", layer.values)):
            weights[f"{stem}self_attn.{name}_proj.weight"] += maps.reshape(-1, shape.hidden_size)  # [H·D, hidden]
        weights[f"{stem}self_attn.o_proj.weight"] += layer.writes.reshape(-1, shape.hidden_size).T  # [hidden, H_q·D]
        for place, neuron in enumerate(layer.neurons):
            if neuron.up is None:
                raise ValueError("A neuron of a llama multiplies: say what its gate multiplies.")
            weights[f"{stem}mlp.gate_proj.weight"][place] = circuit.vector(neuron.gate)
            weights[f"{stem}mlp.up_proj.weight"][place] = circuit.vector(neuron.up)
            weights[f"{stem}mlp.down_proj.weight"][:, place] = circuit.vector(neuron.down)
    return Checkpoint(circuit.name, shape.config(), {k: on_grid(v) for k, v in weights.items()}, circuit.recipe)
