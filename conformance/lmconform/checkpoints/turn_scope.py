"""The turn scope: an attention scope whose weights are the curve that RoPE draws.

Queries and keys come from the constant channel, so they are the same for every token, and all that tells one key from
another is its distance. Half as many RoPE pairs as there are query heads are read, in even steps: with H_q = D all of
them. Every key has length 1 and phase 0 in each. Query head h looks at the h mod H_q/2-th of them. In the first H_q/2
heads it is a quarter turn ahead of the key, in the others in phase with it, so that a key d tokens back scores

    -a_h sin(d f)    in heads 0 .. H_q/2 - 1        a_h cos(d f)    in heads H_q/2 .. H_q - 1

before the softmax; f is the pair's frequency, a_h the head's amplitude. The first see the direction of the turn, and
together the two see the angle itself. Heads of the first kind are louder the more slowly their pair turns, so that
each of them sees a difference over the lengths that the suite uses. Values name the token, as in any scope.

Readings take scores [n, len(columns)] of ``columns`` and return [n, layers, heads or pairs, elements].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.attention_scope import CONST, SHAPE, AttentionScope, plain
from lmconform.checkpoints.circuit import as_llama
from lmconform.checkpoints.layout import Shape

SPAN = 128
"""Tokens over which a slow pair should show a difference."""
LOUDNESS = 2.0
"""Largest part of a score that a slow pair has within ``SPAN``, and about the amplitude of a fast one."""
NEAR = 0.25
"""Turns that differ by a smaller part of themselves are the same: the norms of two layers make 0.01 of a difference."""
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 20_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
"""Of the pairs of D = 8 the first stays, the second blends, the third and fourth slow down."""


@dataclass(frozen=True)
class TurnScope(AttentionScope):
    """A turn scope, how to write a prompt for it, and how to read its scores."""

    amplitudes: tuple[float, ...] = ()
    """a_h of each head."""

    def spread(self, length: int, spared: int = 0) -> tuple[int, ...]:
        """Content tokens near and far: the last positions, then at distances that grow by a factor, up to position 0.

        The last ``spared`` content tokens are left out, for a continuation to write.
        """
        count = min(self.content - spared, length)
        back = np.round(np.geomspace(1, length, count)).astype(int)  # 1 is the last position
        back = np.maximum(back, np.arange(1, count + 1))  # side by side where they would coincide
        return self.content_at(length, (length - back).tolist())

    def at_the_end(self, length: int) -> tuple[int, ...]:
        """Content tokens side by side at the last positions, filler before them."""
        return self.content_at(length, range(max(length - self.content, 0), length))

    def share(self, scores: Array) -> Array:
        """In the first layer, each content token's part of the weight on all of them, [n, 1, quiet heads, content].

        It depends on differences of scores alone. Above the first layer the norm reads how many tokens came before;
        and a loud head would magnify what a wrong frequency does to the last bits of a score.
        """
        weights = self.read(scores)[:, :1, [amplitude == self.amplitudes[0] for amplitude in self.amplitudes]]
        return weights / weights.sum(axis=-1, keepdims=True)

    def turn(self, scores: Array) -> Array:
        """In the first layer, what each pair's turn adds to a score: -a sin(d f), [n, 1, H_q/2, content - 1].

        Only on rows of the last content token that see all the others. The logarithms of their weights, less that of
        the own one, are (x, y) = r (-sin(d f), cos(d f) - 1) in the two heads of a pair, a circle through the origin
        whose radius r is 1 for the right attention scale. It is divided out, so that a wrong scale is no wrong turn.
        """
        return self._turns(scores)[:, :1]

    def likeness(self, scores: Array) -> Array:
        """How far within ``NEAR`` a pair's turn in a further layer is that in the first one, [n, L - 1, H_q/2, 1].

        Below 0 if the two are not near. Only on the rows that ``turn`` reads.
        """
        turns = self._turns(scores)
        size, apart = (np.abs(part).max(axis=-1, keepdims=True) for part in (turns[:, :1], turns[:, 1:] - turns[:, :1]))
        return NEAR * (1 + size) - apart

    def radius(self, scores: Array) -> Array:
        """In the first layer, what the fastest pair multiplies queries and keys by together, [n, 1, 1, 1].

        Only on the rows that ``turn`` reads. It is 1 for a turn and the right attention scale.
        """
        return self._radius(*self._circles(scores))[:, :1]

    def _turns(self, scores: Array) -> Array:
        x, y = self._circles(scores)
        return np.array(self.amplitudes[: self._pairs])[:, None] * x / self._radius(x, y)

    def _circles(self, scores: Array) -> tuple[Array, Array]:
        """x and y of each pair and content token but the last, in every layer, [n, L, H_q/2, content - 1] each."""
        weights = self.read(scores)
        scored = np.log(weights[..., :-1] / weights[..., -1:]) / np.array(self.amplitudes)[:, None]
        x, y = np.split(scored, 2, axis=2)
        return x, y

    @staticmethod
    def _radius(x: Array, y: Array) -> Array:
        """r of the fastest pair, [n, L, 1, 1]."""
        x, y = x[:, :, :1], y[:, :, :1]
        radius: Array = -(x**2 + y**2).sum(axis=-1, keepdims=True) / (2 * y.sum(axis=-1, keepdims=True))
        return radius

    def lead(self, scores: Array) -> Array:
        """How much heavier the last content token is than the one before it, in the first layer; -1 to 1.

        [n, 1, fast pairs, 1], in the heads that see the direction. Only on rows that see both tokens.
        """
        return self._leads(scores)[:, :1]

    def accord(self, scores: Array) -> Array:
        """``lead`` in each further layer times that in the first, above 0 if alike, [n, L - 1, fast pairs, 1]."""
        leads = self._leads(scores)
        return leads[:, 1:] * leads[:, :1]

    def _leads(self, scores: Array) -> Array:
        weights = self.read(scores)[:, :, : self._fast]
        last, other = weights[..., -1:], weights[..., -2:-1]
        return (last - other) / (last + other)

    @property
    def _pairs(self) -> int:
        return self.heads // 2

    @property
    def _fast(self) -> int:
        """Pairs that are as loud as the fastest."""
        return self.amplitudes[: self._pairs].count(self.amplitudes[0])


def turn_scope(name: str, rope: Mapping[str, Any] | None = None, shape: Shape = SHAPE) -> TurnScope:
    """The turn scope in ``shape``; ``rope`` replaces its ``rope_parameters``.

    With D query heads all pairs are read; with a k-th of them, every k-th pair.
    """
    heads, size = shape.num_attention_heads, shape.head_dim
    if heads % 2 or size % heads:
        raise ValueError(f"A turn scope needs an even H_q that divides D; got {heads} and {size}.")
    shown, content = range(0, size // 2, size // heads), heads - 1
    loudness = _loudness(len(shown), size, shape.rope_theta if rope is None else rope["rope_theta"])
    recipe: dict[str, Any] = {"kind": "turn_scope", "rope": dict(rope or {})}
    if shape != SHAPE:
        recipe |= {"shape": vars(shape)}
    circuit = plain(name, shape, content, recipe)
    for layer in circuit.layers:
        for head, pair in enumerate(shown):  # its halves are the entries ``pair`` and ``D/2 + pair``
            layer.key(pair, circuit.held({CONST: 1}))
            layer.query(size // 2 + pair, circuit.held({CONST: loudness[head]}), head=head)  # a quarter turn ahead
            layer.query(pair, circuit.held({CONST: loudness[0]}), head=len(shown) + head)
    checkpoint = as_llama(circuit)
    if rope is not None:
        fields = {**checkpoint.config, "rope_theta": rope["rope_theta"], "rope_parameters": dict(rope)}
        checkpoint = replace(checkpoint, config=fields)
    amplitudes = np.array([*loudness, *[loudness[0]] * len(shown)]) / np.sqrt(size)  # [H_q]
    return TurnScope(checkpoint, shape.num_hidden_layers, heads, content, amplitudes=tuple(amplitudes.tolist()))


def _loudness(pairs: int, size: int, base: float) -> list[float]:
    """Length of the query of each pair that is read, D being ``size``: the power of two nearest to its slowness."""
    frequencies = base ** (-np.arange(pairs) / pairs)
    within = np.sin(np.minimum(frequencies * SPAN, np.pi / 2))  # most that a pair's sine reaches
    wanted = LOUDNESS * np.sqrt(size) / within
    return [float(one) for one in 2.0 ** np.round(np.log2(wanted))]
