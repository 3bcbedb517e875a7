"""Naive decoders in any ``Arithmetic``: what right engines may return, errors and all.

They share no code with the spec's oracle or with the reference: what is judged must not set its own budget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from lmconform.adapter import Array
from lmconform.judging.arithmetic import Arithmetic
from lmconform.spec.decoder import Config
from lmconform.spec.families import GPT2Config
from lmconform.spec.rope import rope_frequencies

Tensor = Callable[[str], Array]
"""Gives a tensor of the checkpoint by its name, in the working format."""


def decode(config: Config | GPT2Config, weights: Mapping[str, Array], tokens: Sequence[int], how: Arithmetic) -> Array:
    """Scores [runs, T, V] of one sequence in one pass, widened to float64."""

    def tensor(name: str) -> Array:
        return np.asarray(weights[name], how.working)

    one_pass = _gpt2 if isinstance(config, GPT2Config) else _llama
    return how.scores(one_pass(config, tensor, list(tokens), how)).astype(np.float64)


def told_apart(how: Arithmetic) -> Arithmetic:
    """``how``, or one in place of all that these decoders compute alike: no way need be computed twice."""
    return replace(how, narrow_softmax=False, weight_last=False) if how.exact else how


def _llama(config: Config, tensor: Tensor, tokens: list[int], how: Arithmetic) -> Array:
    """Scores [runs, T, V] of a llama or phi3 decoder."""
    eps = config.rms_norm_eps
    turn = _rotations(config, len(tokens), how)
    stream = how.store(how.repeated(tensor("model.embed_tokens.weight")[tokens]))  # [runs, T, hidden]
    for layer in range(config.num_hidden_layers):
        stem = f"model.layers.{layer}."
        x = how.norm(stream, tensor(stem + "input_layernorm.weight"), eps)
        q, k, v = _queries_keys_values(config, tensor, stem + "self_attn.", x, how)  # [runs, H, T, D] each
        mixed = _attention(_rotate(q, turn, how), _rotate(k, turn, how), v, how, config.sliding_window)
        stream = how.store(stream + _linear(mixed, tensor, stem + "self_attn.o_proj", config.attention_bias, how))
        x = how.norm(stream, tensor(stem + "post_attention_layernorm.weight"), eps)
        gate, up = _gate_up(config, tensor, stem + "mlp.", x, how)
        inner = how.store(how.activate(config.hidden_act, gate) * up)
        stream = how.store(stream + _linear(inner, tensor, stem + "mlp.down_proj", config.mlp_bias, how))
    x = how.norm(stream, tensor("model.norm.weight"), eps)
    head = tensor("model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight")
    return how.matmul(x, head.T)


def _queries_keys_values(
    config: Config, tensor: Tensor, stem: str, x: Array, how: Arithmetic
) -> tuple[Array, Array, Array]:
    """[runs, H_q, T, D], and twice [runs, H_kv, T, D]."""
    heads, kv_heads, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    if config.fused:
        rows = _in_heads(how.matmul(x, tensor(stem + "qkv_proj.weight").T), width)
        return rows[:, :heads], rows[:, heads : heads + kv_heads], rows[:, heads + kv_heads :]
    flat = (_linear(x, tensor, f"{stem}{name}_proj", config.attention_bias, how) for name in "qkv")
    q, k, v = (_in_heads(one, width) for one in flat)
    return q, k, v


def _in_heads(x: Array, width: int) -> Array:
    """[runs, T, H·D] as [runs, H, T, D]."""
    return x.reshape(*x.shape[:2], -1, width).swapaxes(1, 2)


def _gate_up(config: Config, tensor: Tensor, stem: str, x: Array, how: Arithmetic) -> tuple[Array, Array]:
    """[runs, T, intermediate] each."""
    if config.fused:
        both = how.matmul(x, tensor(stem + "gate_up_proj.weight").T)
        return both[..., : config.intermediate_size], both[..., config.intermediate_size :]
    gate, up = (_linear(x, tensor, f"{stem}{name}_proj", config.mlp_bias, how) for name in ("gate", "up"))
    return gate, up


def _linear(x: Array, tensor: Tensor, name: str, biased: bool, how: Arithmetic) -> Array:
    """A projection, and its bias if it has one."""
    product = how.matmul(x, tensor(f"{name}.weight").T)
    return how.store(product + tensor(f"{name}.bias")) if biased else product


def _attention(q: Array, k: Array, v: Array, how: Arithmetic, window: int | None = None) -> Array:
    """Mixed values [runs, T, H_q·D], for q [runs, H_q, T, D] and k and v [runs, H_kv, T, D] before they are cached."""
    runs, heads, length, width = q.shape
    group = heads // k.shape[1]
    k, v = np.repeat(how.cache(k), group, axis=1), np.repeat(how.cache(v), group, axis=1)  # [runs, H_q, T, D]
    scores = how.store(how.matmul(q, k.swapaxes(2, 3)) * how.working(width**-0.5))  # [runs, H_q, T, T]
    hidden = ~np.tri(length, dtype=bool)
    if window is not None:
        hidden |= np.tri(length, k=-window, dtype=bool)
    weights = how.softmax(np.where(hidden, -np.inf, scores))
    return how.matmul(weights, v).swapaxes(1, 2).reshape(runs, length, -1)  # [runs, H_q, T, D] -> [runs, T, H_q·D]


def _rotations(config: Config, length: int, how: Arithmetic) -> tuple[Array, Array]:
    """cos and sin [runs, 1, T, D/2], 1 for the heads; angles in float32 at least, whatever the compute format."""
    frequencies = rope_frequencies(config.head_dim, config.rope).astype(how.working)
    if how.split and config.rope["rope_type"] == "default":  # one from the other, as some engines compute them
        steps = np.full(len(frequencies), frequencies[1] if len(frequencies) > 1 else 1, how.working)
        frequencies = np.cumprod(steps, dtype=how.working) / steps
    angles = how.angle(how.repeated(np.arange(length, dtype=how.working)[:, None] * frequencies)[:, None])
    return how.store(np.cos(angles)), how.store(np.sin(angles))


def _rotate(x: Array, turn: tuple[Array, Array], how: Arithmetic) -> Array:
    """Half-split rotation of x [runs, H, T, D]."""
    cos, sin = turn
    first, second = np.split(x, 2, axis=-1)
    return how.store(np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1))


def _gpt2(config: GPT2Config, tensor: Tensor, tokens: list[int], how: Arithmetic) -> Array:
    """Scores [runs, T, V] of a gpt2 decoder, whose matrices are [in, out]."""
    length = len(tokens)

    def linear(x: Array, name: str) -> Array:
        return how.store(how.matmul(x, tensor(f"{name}.weight")) + tensor(f"{name}.bias"))

    def norm(x: Array, name: str) -> Array:
        return how.layer_norm(x, tensor(f"{name}.weight"), tensor(f"{name}.bias"), config.layer_norm_epsilon)

    places = tensor("transformer.wpe.weight")[:length]
    stream = how.store(how.repeated(tensor("transformer.wte.weight")[tokens]) + places)  # [runs, T, hidden]
    for layer in range(config.n_layer):
        stem = f"transformer.h.{layer}."
        fused = linear(norm(stream, stem + "ln_1"), stem + "attn.c_attn")  # [runs, T, 3·hidden]
        q, k, v = (_in_heads(part, part.shape[-1] // config.n_head) for part in np.split(fused, 3, axis=-1))
        stream = how.store(stream + linear(_attention(q, k, v, how), stem + "attn.c_proj"))
        inner = how.activate(config.activation_function, linear(norm(stream, stem + "ln_2"), stem + "mlp.c_fc"))
        stream = how.store(stream + linear(inner, stem + "mlp.c_proj"))
    return how.matmul(norm(stream, "transformer.ln_f"), tensor("transformer.wte.weight").T)
