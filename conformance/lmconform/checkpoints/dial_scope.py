"""The dial: an attention scope with known scores, one dial a question.

Scores are q·k / sqrt(D) = 4 · key / sqrt(32), carried by the slower half of the slowest RoPE pair, whose angle stays
below 4e-5 at 129 tokens: position does not matter. Content tokens have parts:

- 0, 1, 2, the steps: every KV head gives them the same keys, of three levels, and the same values. Among themselves
  their weights depend on the scale alone.
- 3, the offset: as a query it adds +100 to all scores of a row in even heads and -100 in odd ones, through keys that
  are the same for all tokens.
- 4, the heads: as a query it multiplies the scores of each query head by another number.
- 5, 6, the switches: their keys stand some 360 above all steps in one KV head and as far below in the other, so that
  the weight on the steps is 0 or as if the switch were not there, whatever the scale. In KV head 1 their values are
  half of those in KV head 0.

Query heads 8, KV heads 2, group 4, head_dim 32, hidden_size / H_q 16: no two are the same, so neither are their scales
and maps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.attention_scope import CONST, FILLER, AttentionScope, plain, token
from lmconform.checkpoints.circuit import Circuit, as_llama
from lmconform.checkpoints.layout import Shape

SHAPE = Shape(
    hidden_size=128,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=32,
    intermediate_size=64,
    vocab_size=131,
    rope_theta=10_000_000.0,
    rms_norm_eps=1e-6,
)
CONTENT = 7
STEPS, OFFSET, HEADS, SWITCHES = (0, 1, 2), 3, 4, (5, 6)
QUERY = 4.0
LEVELS = (-2.0, 0.25, 2.0, -0.5, 0.5)  # keys of the tokens 0 to 4
FILLER_KEY = -16.0
SWITCH = 512.0
GAINS = (1.75, -0.75, 0.25, -1.25, 1.25, -0.25, 0.75, -1.75)  # of query heads 0 to 7, for the heads' token
LEVEL_ENTRY, OFFSET_ENTRY = SHAPE.head_dim - 1, SHAPE.head_dim - 2  # second halves of the two slowest pairs
OFFSET_KEY, OFFSET_QUERY = 16.0, 36.0  # 16 · 36 / sqrt(32) = 102

WIDE_WRITE, NARROW_WRITE = 2.0**-12, 2.0**-8  # squared, it moves the next norm by less than a rounding error


class DialScope(AttentionScope):
    """The dial's checkpoint, its prompts, and its meters."""

    def steps(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """As many steps: a prompt whose weights depend on the scale alone."""
        return tuple(STEPS[token % len(STEPS)] for token in tokens)

    def switches(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """As many switches: a prompt whose readings show the values alone."""
        return tuple(SWITCHES[token % len(SWITCHES)] for token in tokens)

    def weights(self, scores: Array) -> Array:
        """Weight on each step, [n, L, H_q, 3]."""
        return self.read(scores)[..., list(STEPS)]

    def shares(self, scores: Array) -> Array:
        """Weight on each step as a part of that on all steps, [n, L, H_q, 3]: what else a head sees does not count."""
        weights = self.weights(scores)
        with np.errstate(divide="ignore", invalid="ignore"):  # a wrong engine may see no step at all
            return weights / weights.sum(axis=-1, keepdims=True)

    def sums(self, scores: Array) -> Array:
        """Weight on all steps together, and the negative weights among them, [n, L, H_q, 2]."""
        weights = self.weights(scores)
        return np.stack([weights.sum(axis=-1), np.minimum(weights, 0).sum(axis=-1)], axis=-1)

    def gate(self, scores: Array) -> Array:
        """Weight on all steps together, [n, L, H_q, 1]: what a switch leaves to them."""
        return self.weights(scores).sum(axis=-1, keepdims=True)

    def signature(self, scores: Array) -> Array:
        """What the values of the switches add up to, [n, L, H_q, 1]: 1 from KV head 0, 1/2 from KV head 1."""
        return self.read(scores)[..., list(SWITCHES)].sum(axis=-1, keepdims=True)


def dial_scope(*, narrow: bool = False) -> DialScope:
    """The dial. The scripted next token of content token j is j + 1, so that decode steps read on.

    ``narrow`` writes more into the stream, for float16, whose small numbers are coarse.
    """
    write, recipe = NARROW_WRITE if narrow else WIDE_WRITE, {"kind": "dial_scope", "narrow": narrow}
    circuit = plain("dial", SHAPE, CONTENT, recipe, write)
    _set_queries(circuit)
    _set_keys(circuit)
    for layer in circuit.layers:
        for switch in SWITCHES:
            layer.value(switch, circuit.held({token(switch): 0.5}), head=1)
    return DialScope(as_llama(circuit), SHAPE.num_hidden_layers, SHAPE.num_attention_heads, CONTENT)


def _set_queries(circuit: Circuit) -> None:
    for layer in circuit.layers:
        for head, gain in enumerate(GAINS):
            offset = -OFFSET_QUERY if head % 2 else OFFSET_QUERY
            layer.query(LEVEL_ENTRY, circuit.held({CONST: QUERY, token(HEADS): QUERY * (gain - 1)}), head)
            layer.query(OFFSET_ENTRY, circuit.held({token(OFFSET): offset}), head)


def _set_keys(circuit: Circuit) -> None:
    levels = {token(number): level for number, level in enumerate(LEVELS)}
    for layer in circuit.layers:
        layer.key(OFFSET_ENTRY, circuit.held({CONST: OFFSET_KEY}))
        layer.key(LEVEL_ENTRY, circuit.held({**levels, FILLER: FILLER_KEY}))
        for own, switch in enumerate(SWITCHES):
            for head in range(SHAPE.num_key_value_heads):
                layer.key(LEVEL_ENTRY, circuit.held({token(switch): SWITCH if head == own else -SWITCH}), head)
