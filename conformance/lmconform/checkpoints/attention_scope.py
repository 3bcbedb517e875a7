"""The attention scope: a checkpoint whose scores are its attention weights.

Channels of the residual stream: one for each content token, one for filler, a constant one, and a read-out for each
(layer, query head, content token). Every embedding is one token channel plus the constant, so that with
hidden_size = 2·4^k RMSNorm multiplies by the power of two 2^k (up to eps). W_v copies the token channels, and W_o puts
what head h of layer l saw of content token j into read-out (l, h, j). The MLP adds nothing. Then

    weight(l, h, t, j) = (s[t, READ(l, h, j)] - s[t, ZERO]) / (s[t, CONST] - s[t, ZERO])

for logits and for log-probabilities alike: CONST is a token whose head row reads the constant channel, ZERO one whose
head row is zero. In layers above the first the norm sees the read-outs of the layers below, which changes the ratio
by less than 1 %; the expected reading is computed from the oracle's scores in the same way.

quiet: W_q = 0, so that all weights of row t are 1/(t+1): for numbers. loud: the score of a key depends on its token
alone, strongly negative for plain tokens and as strongly positive for loud ones: a mask must hide the loud ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.layout import Checkpoint, Shape, on_grid

SHAPE = Shape(
    hidden_size=128,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=64,
    vocab_size=131,
    rope_theta=500_000.0,
    rms_norm_eps=1e-6,
)
WRITE = 2.0**-4  # read-outs are small beside the constant, so that they hardly change the next norm
WIDE, NARROW = (2.0**15, 2.0**15), (16.0, 15.0)  # gains of W_q and W_k in loud heads
SCRIPT = 2.0**-2  # the scripted next token stands 2 above the constant


@dataclass(frozen=True)
class AttentionScope:
    """A scope checkpoint, how to write a prompt for it, and how to read its scores."""

    checkpoint: Checkpoint
    layers: int
    heads: int
    content: int
    """Number of content tokens; their ids are 0 .. content-1."""
    loud: tuple[int, ...] = ()
    """Content tokens whose keys score high for every query (empty in a quiet scope)."""

    @property
    def filler(self) -> int:
        """A token that no read-out names."""
        return self.content

    @property
    def columns(self) -> list[int]:
        """Ids whose scores a reading needs: ZERO, CONST, then READ(l, h, j) in order."""
        first = self.content + 1
        return list(range(first, first + 2 + self.layers * self.heads * self.content))

    def content_at(self, length: int, places: Iterable[int]) -> tuple[int, ...]:
        """A prompt with content tokens 0, 1, 2, ... at ``places`` in order, filler elsewhere."""
        tokens = {place: token for token, place in enumerate(sorted(places))}
        return tuple(tokens.get(position, self.filler) for position in range(length))

    def loud_after(self, length: int, here: int) -> tuple[int, ...]:
        """A prompt of filler with loud tokens from position ``here`` on, as many as there are."""
        tokens = dict(zip(range(here, length), self.loud, strict=False))
        return tuple(tokens.get(position, self.filler) for position in range(length))

    def read(self, scores: Array) -> Array:
        """Attention weights [rows, layers, heads, content] from scores [rows, len(columns)] of ``columns``."""
        zero, const, rest = scores[:, :1], scores[:, 1:2], scores[:, 2:]
        unit = 1 / WRITE
        weights = unit * (rest - zero) / (const - zero)
        return weights.reshape(len(scores), self.layers, self.heads, self.content)  # [rows, L, H_q, content]


def attention_scope(heads: Literal["quiet", "loud"], *, narrow: bool = False, shape: Shape = SHAPE) -> AttentionScope:
    """The scope with quiet or loud heads. ``narrow`` keeps loud scores within a quarter of float16's range.

    Loud scores: |q·k| is 2^36 before scaling, so that masks of -1e4 and -1e9 leak; narrow, 15,360, so that -1e4 does.
    """
    content = shape.head_dim - 1
    _check(shape, content)
    loud = tuple(range(content - 3, content)) if heads == "loud" else ()
    weights = {name: np.zeros(size, np.float32) for name, size in shape.tensors().items()}
    for value in weights.values():
        if value.ndim == 1:
            value[:] = 1
    _embed(weights["model.embed_tokens.weight"], content)
    _head(weights["lm_head.weight"], shape, content)
    for layer in range(shape.num_hidden_layers):
        stem = f"model.layers.{layer}.self_attn."
        _read_out(weights[stem + "v_proj.weight"], weights[stem + "o_proj.weight"], shape, content, layer)
        if loud:
            query, key = weights[stem + "q_proj.weight"], weights[stem + "k_proj.weight"]
            _loud(query, key, shape, content, loud, NARROW if narrow else WIDE)
    name = f"scope-{heads}" + ("-narrow" if narrow else "")
    weights = {name: on_grid(value) for name, value in weights.items()}
    recipe = {"kind": "attention_scope", "heads": heads, "narrow": narrow}
    checkpoint = Checkpoint(name, shape.config(), weights, recipe)
    return AttentionScope(checkpoint, shape.num_hidden_layers, shape.num_attention_heads, content, loud)


def _check(shape: Shape, content: int) -> None:
    power = np.log2(shape.hidden_size / 2) / 2
    channels = content + 2 + shape.num_hidden_layers * shape.num_attention_heads * content
    tokens = content + 3 + shape.num_hidden_layers * shape.num_attention_heads * content
    if power != int(power) or channels > shape.hidden_size or tokens > shape.vocab_size or shape.tie_word_embeddings:
        raise ValueError(
            f"A scope needs an untied head, hidden_size = 2·4^k of at least {channels} channels and vocab_size of at "
            f"least {tokens}; got {shape.hidden_size} and {shape.vocab_size}."
        )


def _embed(embedding: Array, content: int) -> None:
    """Token channel plus constant channel; every id beyond the content tokens looks like filler."""
    for token in range(len(embedding)):
        embedding[token, min(token, content)] = 1
    embedding[:, content + 1] = 1


def _head(head: Array, shape: Shape, content: int) -> None:
    """Rows: scripted successors for content tokens, then ZERO, CONST, and one row a read-out."""
    for token in range(content):
        head[(token + 1) % content, token] = 1 + SCRIPT
        head[(token + 1) % content, content + 1] = SCRIPT
    const = content + 2
    head[const, content + 1] = 1
    readouts = shape.num_hidden_layers * shape.num_attention_heads * content
    for index in range(readouts):
        head[const + 1 + index, content + 2 + index] = 1


def _read_out(values: Array, outputs: Array, shape: Shape, content: int, layer: int) -> None:
    """W_v [H_kv·D, hidden] copies the token channels; W_o [hidden, H_q·D] names head and token."""
    unit = 1 / np.sqrt(shape.hidden_size / 2)  # undoes the norm's gain
    for head in range(shape.num_key_value_heads):
        for token in range(content):
            values[head * shape.head_dim + token, token] = unit
    for head in range(shape.num_attention_heads):
        for token in range(content):
            channel = content + 2 + (layer * shape.num_attention_heads + head) * content + token
            outputs[channel, head * shape.head_dim + token] = WRITE


def _loud(
    queries: Array, keys: Array, shape: Shape, content: int, loud: Sequence[int], gains: tuple[float, float]
) -> None:
    """q·k = ± the product of the gains times hidden/2, carried by the first half of the slowest RoPE pair."""
    slowest = shape.head_dim // 2 - 1
    queries[slowest :: shape.head_dim, content + 1] = gains[0]
    for token in range(content + 1):
        keys[slowest :: shape.head_dim, token] = gains[1] if token in loud else -gains[1]
