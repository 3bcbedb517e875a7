"""The attention scope: a checkpoint whose scores are its attention weights.

Channels of the residual stream: one for each content token, one for filler, a constant one, and a read-out for each
(layer, query head, content token). Every embedding is one token channel plus the constant, so that with
hidden_size = 2·4^k RMSNorm multiplies by the power of two 2^k (up to eps). W_v copies the token channels, and W_o puts
what head h of layer l saw of content token j into read-out (l, h, j). The MLP adds nothing. Then

    weight(l, h, t, j) = (s[t, READ(l, h, j)] - s[t, ZERO]) / (s[t, CONST] - s[t, ZERO])

for logits and for log-probabilities alike: CONST is a token whose head row reads the constant channel, ZERO one whose
head row is zero. In layer l the norm sees the read-outs of the l layers below, which makes the ratio smaller by at most
l·H_q/1024 of it; the expected reading is computed from the oracle's scores in the same way.

What heads look for is free: ``plain`` makes the circuit, and words for its queries and keys may follow. Two are made
here. quiet: queries are 0, so that all weights of row t are 1/(t+1): for numbers. loud: the score of a key depends on
its token alone, strongly negative for plain tokens and as strongly positive for loud ones: a mask must hide the loud
ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from math import log, pi
from typing import Any, Literal

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.circuit import Circuit, as_llama
from lmconform.checkpoints.layout import Checkpoint, Shape
from lmconform.checkpoints.phi3 import as_phi3

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
LOUD = 3  # loud tokens: the last content tokens
MOST_TURN = pi / 3  # of the pair that carries loud scores, over all positions: half of a score is left
SCRIPT = 2.0**-2  # the scripted next token stands 2 above the constant
FILLER, CONST = "filler", "const"  # names of channels, and of ids: CONST is the id that shows its channel


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
        with np.errstate(divide="ignore", invalid="ignore"):  # a wrong engine may lose the constant
            weights = unit * (rest - zero) / (const - zero)
        return weights.reshape(len(scores), self.layers, self.heads, self.content)  # [rows, L, H_q, content]


def attention_scope(
    heads: Literal["quiet", "loud"],
    *,
    narrow: bool = False,
    shape: Shape = SHAPE,
    content: int | None = None,
    window: int | None = None,
) -> AttentionScope:
    """The scope with quiet or loud heads. ``narrow`` keeps loud scores within a quarter of float16's range.

    Loud scores: |q·k| is 2^36 before scaling, so that masks of -1e4 and -1e9 leak; narrow, 15,360, so that -1e4 does.
    ``content``: how many content tokens, D - 1 unless given. ``window``: the scope is a phi3 whose positions see so
    many. Raises ValueError where a scope cannot have this shape; see ``fitting``.
    """
    content = shape.head_dim - 1 if content is None else content
    recipe: dict[str, Any] = {"kind": "attention_scope", "heads": heads, "narrow": narrow}
    if (shape, content) != (SHAPE, SHAPE.head_dim - 1):
        recipe |= {"shape": vars(shape), "content": content}
    circuit = plain(f"scope-{heads}" + ("-narrow" if narrow else ""), shape, content, recipe)
    loud = tuple(range(max(content - LOUD, 0), content)) if heads == "loud" else ()
    if loud:
        _make_loud(circuit, content, loud, NARROW if narrow else WIDE)
    checkpoint = as_llama(circuit) if window is None else as_phi3(as_llama(circuit), window)
    return AttentionScope(checkpoint, shape.num_hidden_layers, shape.num_attention_heads, content, loud)


def token(number: int) -> str:
    """Name of a content token: of its id and of its channel."""
    return f"content {number}"


def plain(name: str, shape: Shape, content: int, recipe: Mapping[str, Any], write: float = WRITE) -> Circuit:
    """A scope whose queries and keys are 0 and whose values name the token: entry j is 1 for content token j.

    A weight of 1 stands in the stream as ``write``, and W_head makes ``WRITE`` of it: the less is written, the less a
    layer changes what the next one reads. Raises ValueError where a scope cannot have this shape.
    """
    _check(shape, content)
    circuit = Circuit(name, shape, recipe, power=2)
    contents = [token(number) for number in range(content)]
    for channel in (*contents, FILLER, CONST):
        circuit.channel(channel)
    for own in (*contents, FILLER):
        circuit.token(own, {own: 1, CONST: 1})
    circuit.rest = {FILLER: 1, CONST: 1}
    for last, follows in zip(contents, [*contents[1:], contents[0]], strict=True):
        circuit.token(follows, reads={last: 1 + SCRIPT, CONST: SCRIPT})
    circuit.token("zero")
    circuit.token(CONST, reads={CONST: 1})
    for place in product(range(shape.num_hidden_layers), range(shape.num_attention_heads), range(content)):
        circuit.read_out("read {} {} {}".format(*place), place, write, WRITE / write)
    for layer in circuit.layers:
        for entry, own in enumerate(contents):
            layer.value(entry, circuit.held({own: 1}))
    return circuit


def fitting(shape: Shape, content: int) -> Shape:
    """``shape`` with the least hidden_size that has a channel for each read-out, and as many ids as there are."""
    size = 32
    while size < _channels(shape, content):
        size *= 4
    return replace(shape, hidden_size=size, vocab_size=0)


def _channels(shape: Shape, content: int) -> int:
    return content + 2 + shape.num_hidden_layers * shape.num_attention_heads * content


def _check(shape: Shape, content: int) -> None:
    heads, kv_heads, width = shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim
    if heads % kv_heads or width % 2:
        raise ValueError(f"A decoder needs H_q a multiple of H_kv, and D even; got {heads}, {kv_heads} and {width}.")
    if not 0 < content <= width:
        raise ValueError(f"A scope shows 1 to D = {width} content tokens, an entry of the values each; got {content}.")
    channels, power = _channels(shape, content), log(shape.hidden_size / 2, 4)
    if channels > shape.hidden_size or 2 * 4 ** round(power) != shape.hidden_size or shape.tie_word_embeddings:
        raise ValueError(
            f"A scope needs an untied head and hidden_size = 2·4^k of at least {channels} channels; got "
            f"{shape.hidden_size}."
        )


def _make_loud(circuit: Circuit, content: int, loud: tuple[int, ...], gains: tuple[float, float]) -> None:
    """Queries the same for all tokens, and keys of one sign or the other, in the first half of the slowest pair."""
    shape = circuit.shape
    slowest = shape.head_dim // 2 - 1
    turn = shape.rope_theta ** (-2 * slowest / shape.head_dim) * shape.max_position_embeddings
    if turn > MOST_TURN:
        raise ValueError(
            f"Loud heads need a RoPE pair that hardly turns: the slowest of D = {shape.head_dim} and base "
            f"{shape.rope_theta:g} turns by {turn:.2g} over {shape.max_position_embeddings} positions, and "
            f"{MOST_TURN:.2g} is allowed."
        )
    query, key = gains
    keys = {token(number): key if number in loud else -key for number in range(content)}
    for layer in circuit.layers:
        layer.query(slowest, {CONST: query})
        layer.key(slowest, {**keys, FILLER: -key})
