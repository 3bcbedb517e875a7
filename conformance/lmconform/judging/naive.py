"""A naive llama decoder in any ``Arithmetic``: what right engines may return, errors and all.

It shares no code with the spec's oracle or with the reference: what is judged must not set its own budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lmconform.adapter import Array
from lmconform.judging.arithmetic import Arithmetic
from lmconform.spec.decoder import Config
from lmconform.spec.rope import rope_frequencies


def decode(config: Config, weights: Mapping[str, Array], tokens: Sequence[int], how: Arithmetic) -> Array:
    """Scores [T, V] of one sequence in one pass, widened to float64."""

    def tensor(name: str) -> Array:
        return np.asarray(weights[name + ".weight"], how.working)

    eps = config.rms_norm_eps
    turn = _rotations(config, len(tokens), how)
    stream = how.store(tensor("model.embed_tokens")[list(tokens)])  # [T, hidden]
    for layer in range(config.num_hidden_layers):
        stem = f"model.layers.{layer}."
        x = how.norm(stream, tensor(stem + "input_layernorm"), eps)
        own = {name: tensor(f"{stem}self_attn.{name}_proj") for name in "qkvo"}
        mixed = _attention(config, own, x, turn, how)
        stream = how.store(stream + mixed)
        x = how.norm(stream, tensor(stem + "post_attention_layernorm"), eps)
        gate = how.matmul(x, tensor(stem + "mlp.gate_proj").T)
        up = how.matmul(x, tensor(stem + "mlp.up_proj").T)
        inner = how.store(how.store(gate / (1 + np.exp(-gate))) * up)
        stream = how.store(stream + how.matmul(inner, tensor(stem + "mlp.down_proj").T))
    x = how.norm(stream, tensor("model.norm"), eps)
    head = tensor("model.embed_tokens" if config.tie_word_embeddings else "lm_head")
    return how.scores(how.matmul(x, head.T)).astype(np.float64)


def _attention(config: Config, own: Mapping[str, Array], x: Array, turn: tuple[Array, Array], how: Arithmetic) -> Array:
    heads, kv_heads, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    length = len(x)
    q = how.matmul(x, own["q"].T).reshape(length, heads, width).swapaxes(0, 1)  # [H_q, T, D]
    k = how.matmul(x, own["k"].T).reshape(length, kv_heads, width).swapaxes(0, 1)  # [H_kv, T, D]
    v = how.matmul(x, own["v"].T).reshape(length, kv_heads, width).swapaxes(0, 1)
    q, k, v = _rotate(q, turn, how), how.cache(_rotate(k, turn, how)), how.cache(v)
    group = heads // kv_heads
    k, v = np.repeat(k, group, axis=0), np.repeat(v, group, axis=0)  # [H_q, T, D]
    scores = how.store(how.matmul(q, k.swapaxes(1, 2)) * how.working(width**-0.5))  # [H_q, T, T]
    hidden = np.triu(np.ones((length, length), bool), 1)
    weights = how.softmax(np.where(hidden, -np.inf, scores))
    mixed = how.matmul(weights, v).swapaxes(0, 1).reshape(length, heads * width)  # [T, H_q·D]
    return how.matmul(mixed, own["o"].T)


def _rotations(config: Config, length: int, how: Arithmetic) -> tuple[Array, Array]:
    """cos and sin [T, D/2]; angles in float32 at least, whatever the compute format."""
    frequencies = rope_frequencies(config.head_dim, config.rope).astype(how.working)
    if how.split and config.rope["rope_type"] == "default":  # one from the other, as some engines compute them
        steps = np.full(len(frequencies), frequencies[1] if len(frequencies) > 1 else 1, how.working)
        frequencies = np.cumprod(steps, dtype=how.working) / steps
    angles = np.arange(length, dtype=how.working)[:, None] * frequencies
    return how.store(np.cos(angles)), how.store(np.sin(angles))


def _rotate(x: Array, turn: tuple[Array, Array], how: Arithmetic) -> Array:
    """Half-split rotation of x [H, T, D]."""
    cos, sin = turn
    first, second = np.split(x, 2, axis=-1)
    return how.store(np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1))
