"""The attention scope: a checkpoint whose scores are its attention weights.

Channels of the residual stream: one for each content token, one for filler, a constant one, and a read-out for each
(layer, query head, content token). Every embedding is one token channel plus the constant, so that with
hidden_size = 2·4^k RMSNorm multiplies by the power of two 2^k (up to eps). W_v copies the token channels, and W_o puts
what head h of layer l saw of content token j into read-out (l, h, j). The MLP adds nothing. Then

    weight(l, h, t, j) = (s[t, READ(l, h, j)] - s[t, ZERO]) / (s[t, CONST] - s[t, ZERO])

for logits and for log-probabilities alike: CONST is a token whose head row reads the constant channel, ZERO one whose
head row is zero. In layers above the first the norm sees the read-outs of the layers below, which changes the ratio
by less than 1 %; the expected reading is computed from the oracle's scores in the same way.

What heads look for is free: ``Maps`` gives the query, key and value that each channel contributes, and
``scope_checkpoint`` builds the checkpoint. Three are made here. quiet: queries are 0, so that all weights of row t are
1/(t+1): for numbers. turning: queries and keys are the same for all tokens, so that the score of a key depends on its
distance alone. loud: the score of a key depends on its token alone, strongly negative for plain tokens and as
strongly positive for loud ones: a mask must hide the loud ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
TURNING = 2.0**-2  # gain of W_q and W_k in turning heads: scores within 3 of 0
TURNING = 2.0**-2  # gain of W_q and W_k in turning heads: scores within 3 of 0
SCRIPT = 2.0**-2  # the scripted next token stands 2 above the constant


@dataclass(frozen=True, eq=False)
class Maps:
    """What the heads of one layer make of the channels that embeddings write.

    The last axis is a channel: the content tokens, then filler, then the constant. A token's query, before rotation, is
    the map of its own channel plus that of the constant one; so are its key and its value.
    """

    queries: Array
    """[H_q, D, content + 2]"""
    keys: Array
    """[H_kv, D, content + 2]"""
    values: Array
    """[H_kv, D, content + 2]; the read-outs of a head show the first ``content`` entries of what it returns."""


def plain(shape: Shape, content: int) -> Maps:
    """Heads whose queries and keys are 0 and whose values name the token: entry j is 1 for content token j."""
    queries = np.zeros((shape.num_attention_heads, shape.head_dim, content + 2))
    keys = np.zeros((shape.num_key_value_heads, shape.head_dim, content + 2))
    values = np.zeros_like(keys)
    values[:, range(content), range(content)] = 1
    return Maps(queries, keys, values)


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


def attention_scope(
    heads: Literal["quiet", "loud", "turning"], *, narrow: bool = False, shape: Shape = SHAPE
) -> AttentionScope:
    """The scope with quiet, loud or turning heads. ``narrow`` keeps loud scores within a quarter of float16's range.

    Loud scores: |q·k| is 2^36 before scaling, so that masks of -1e4 and -1e9 leak; narrow, 15,360, so that -1e4 does.
    """
    content = shape.head_dim - 1
    loud = tuple(range(content - 3, content)) if heads == "loud" else ()
    maps = plain(shape, content)
    unit = np.sqrt(shape.hidden_size / 2)  # gains are those of W_q and W_k
    if heads == "turning":
        for entries in (maps.queries, maps.keys):
            entries[:, :2, content + 1] = TURNING * unit  # first halves of the two fastest RoPE pairs
    if loud:
        gains = NARROW if narrow else WIDE
        slowest = shape.head_dim // 2 - 1  # first half of the slowest RoPE pair
        maps.queries[:, slowest, content + 1] = gains[0] * unit
        maps.keys[:, slowest, : content + 1] = -gains[1] * unit
        maps.keys[:, slowest, loud] = gains[1] * unit
    name = f"scope-{heads}" + ("-narrow" if narrow else "")
    recipe = {"kind": "attention_scope", "heads": heads, "narrow": narrow}
    checkpoint = scope_checkpoint(name, shape, content, [maps] * shape.num_hidden_layers, recipe)
    return AttentionScope(checkpoint, shape.num_hidden_layers, shape.num_attention_heads, content, loud)


def scope_checkpoint(
    name: str, shape: Shape, content: int, layers: Sequence[Maps], recipe: Mapping[str, Any], write: float = WRITE
) -> Checkpoint:
    """The checkpoint of a scope with these heads, one ``Maps`` a layer.

    A weight of 1 stands in the stream as ``write``, and W_head makes ``WRITE`` of it: the less is written, the less a
    layer changes what the next one reads. Raises ValueError if the shape has no room for the read-outs.
    """
    _check(shape, content)
    weights = {name: np.zeros(size, np.float32) for name, size in shape.tensors().items()}
    for value in weights.values():
        if value.ndim == 1:
            value[:] = 1
    _embed(weights["model.embed_tokens.weight"], content)
    _head(weights["lm_head.weight"], shape, content, WRITE / write)
    unit = np.sqrt(shape.hidden_size / 2)  # the norm's gain: what an embedding's 1 is when a projection reads it
    for layer, maps in enumerate(layers):
        stem = f"model.layers.{layer}.self_attn."
        for projection, entries in (("q", maps.queries), ("k", maps.keys), ("v", maps.values)):
            rows = entries.reshape(-1, content + 2) / unit  # [H, D, channels] to [H·D, channels]
            weights[stem + f"{projection}_proj.weight"][:, : content + 2] = rows
        _read_out(weights[stem + "o_proj.weight"], shape, content, layer, write)
    return Checkpoint(name, shape.config(), {name: on_grid(value) for name, value in weights.items()}, recipe)


def _check(shape: Shape, content: int) -> None:
    power = np.log2(shape.hidden_size / 2) / 2
    channels = content + 2 + shape.num_hidden_layers * shape.num_attention_heads * content
    tokens = content + 3 + shape.num_hidden_layers * shape.num_attention_heads * content
    fits = content <= shape.head_dim and channels <= shape.hidden_size and tokens <= shape.vocab_size
    if not fits or power != int(power) or shape.tie_word_embeddings:
        raise ValueError(
            f"A scope needs an untied head, hidden_size = 2·4^k of at least {channels} channels, vocab_size of at "
            f"least {tokens} and head_dim of at least {content}; got {shape.hidden_size}, {shape.vocab_size} and "
            f"{shape.head_dim}."
        )


def _embed(embedding: Array, content: int) -> None:
    """Token channel plus constant channel; every id beyond the content tokens looks like filler."""
    for token in range(len(embedding)):
        embedding[token, min(token, content)] = 1
    embedding[:, content + 1] = 1


def _head(head: Array, shape: Shape, content: int, gain: float) -> None:
    """Rows: scripted successors for content tokens, then ZERO, CONST, and one row a read-out."""
    for token in range(content):
        head[(token + 1) % content, token] = 1 + SCRIPT
        head[(token + 1) % content, content + 1] = SCRIPT
    const = content + 2
    head[const, content + 1] = 1
    readouts = shape.num_hidden_layers * shape.num_attention_heads * content
    for index in range(readouts):
        head[const + 1 + index, content + 2 + index] = gain


def _read_out(outputs: Array, shape: Shape, content: int, layer: int, write: float) -> None:
    """W_o [hidden, H_q·D] puts the first ``content`` entries of what a head returns into its read-outs."""
    for head in range(shape.num_attention_heads):
        for token in range(content):
            channel = content + 2 + (layer * shape.num_attention_heads + head) * content + token
            outputs[channel, head * shape.head_dim + token] = write
