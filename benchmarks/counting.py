"""What a decoder must compute and read, counted from its sizes alone.

The rules, which flatter nobody: a matrix that a pass uses is read once for the whole batch, the head too, whether it is
tied to the embedding or not; of the embedding a pass gathers a few rows, which count as nothing; keys and values are
read at the actual length, by each row its own; queries, activations and what is written count as nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from lmconform.checkpoints.layout import Shape

BYTES = {
    "float64": 8.0,
    "float32": 4.0,
    "tf32": 4.0,
    "bfloat16": 2.0,
    "float16": 2.0,
    "fp8_e4m3": 1.0,
    "fp8_e5m2": 1.0,
    "q8_0": 34 / 32,  # 32 numbers of a byte each, and their scale
    "int8": 1.0,
}
"""Bytes of one number, by the name of its format."""


@dataclass(frozen=True)
class Formats:
    """Bytes of one number."""

    weights: float
    kv_cache: float


@dataclass(frozen=True)
class Work:
    """What one pass over a model takes."""

    projection_flops: float
    """Products with weights, the head's included. A product of [m, k] and [k, n] takes 2·m·k·n."""
    attention_flops: float
    """Queries with keys, and weights with values, over the positions that are seen."""
    weight_bytes: float
    kv_bytes: float

    @property
    def flops(self) -> float:
        """All floating-point operations of products."""
        return self.projection_flops + self.attention_flops

    @property
    def bytes(self) -> float:
        """All bytes that must be read."""
        return self.weight_bytes + self.kv_bytes


def body_parameters(shape: Shape) -> int:
    """Numbers in the matrices of all layers."""
    queries, keys = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    attention = shape.hidden_size * (2 * queries + 2 * keys)  # q and o, k and v
    return shape.num_hidden_layers * (attention + 3 * shape.hidden_size * shape.intermediate_size)


def head_parameters(shape: Shape) -> int:
    """Numbers in the head [V, hidden_size], which may be the embedding."""
    return shape.vocab_size * shape.hidden_size


def norm_parameters(shape: Shape) -> int:
    """Numbers in the weights of all norms."""
    return (2 * shape.num_hidden_layers + 1) * shape.hidden_size


def parameters(shape: Shape) -> int:
    """All numbers of a model; those of a tied embedding once."""
    matrices = 1 if shape.tie_word_embeddings else 2
    return body_parameters(shape) + matrices * head_parameters(shape) + norm_parameters(shape)


def kv_bytes(shape: Shape, tokens: float, number: float) -> float:
    """Bytes of the keys and values of ``tokens`` tokens, of ``number`` bytes each."""
    return 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim * number * tokens


def decode_step(shape: Shape, length: float, formats: Formats, batch: int = 1) -> Work:
    """One token for each of ``batch`` rows, each of which then holds ``length`` tokens, the new one included."""
    matrices = body_parameters(shape) + head_parameters(shape)
    return Work(
        projection_flops=2.0 * batch * matrices,
        attention_flops=_attention_flops(shape, batch * length),
        weight_bytes=formats.weights * (matrices + norm_parameters(shape)),
        kv_bytes=kv_bytes(shape, batch * length, formats.kv_cache),
    )


def prefill(shape: Shape, length: int, formats: Formats, batch: int = 1) -> Work:
    """A prompt of ``length`` tokens for each row, with the logits of its last token alone.

    Position t sees t + 1 keys, so attention is counted at the causal half. Keys and values are made, not read.
    """
    body, head = body_parameters(shape), head_parameters(shape)
    return Work(
        projection_flops=2.0 * batch * (length * body + head),
        attention_flops=_attention_flops(shape, batch * length * (length + 1) / 2),
        weight_bytes=formats.weights * (body + head + norm_parameters(shape)),
        kv_bytes=0.0,
    )


def _attention_flops(shape: Shape, seen: float) -> float:
    """Both products of attention in all layers, where all queries together see ``seen`` positions."""
    return 4.0 * shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim * seen
