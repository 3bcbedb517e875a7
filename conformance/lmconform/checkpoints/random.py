"""Random checkpoints, loud and quiet.

Loud: attention scores of standard deviation about 2, so that every mechanism moves the logits by a large part of
their spread. Quiet: a residual stream so small that the norm's eps matters. Engines are usually tested on weights of
standard deviation 0.02, under which a missing attention scale moves the logits by 0.009.
"""

from __future__ import annotations

from dataclasses import replace
from math import sqrt
from typing import Any, Literal

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.layout import Checkpoint, GPT2Shape, Phi3Shape, Shape, on_grid
from lmconform.checkpoints.phi3 import fused

Volume = Literal["loud", "quiet"]


def random_checkpoint(shape: Shape, volume: Volume, seed: int) -> Checkpoint:
    """Draw all tensors of ``shape`` from ``seed``."""
    generator = np.random.default_rng([seed, volume == "quiet"])
    if isinstance(shape, GPT2Shape):
        drawn = {name: _draw_gpt2(generator, name, size, volume) for name, size in shape.tensors().items()}
    else:
        drawn = {name: _draw(generator, name, size, volume) for name, size in Shape.tensors(shape).items()}
        drawn = fused(drawn) if isinstance(shape, Phi3Shape) else drawn
    weights = {name: on_grid(value) for name, value in drawn.items()}
    recipe = {"kind": "random", "volume": volume, "seed": seed, "family": shape.family, **vars(shape)}
    config = _terse(shape) if shape in (*FAMILIES, TERSE, BRIEF) else shape.config()
    config |= {"tie_word_embeddings": False} if shape == BRIEF else {}
    return Checkpoint(f"{volume}-{label(shape)}", config, weights, recipe)


def _terse(shape: Shape) -> dict[str, Any]:
    """config.json without the fields whose value is the one that the standard gives a field that is left out."""
    heads = shape.num_attention_heads
    usual = IF_ABSENT[shape.family] | {"head_dim": shape.hidden_size // heads, "num_key_value_heads": heads}
    return {name: value for name, value in shape.config().items() if name not in usual or usual[name] != value}


def label(shape: Shape) -> str:
    """A short name such as ``h6kv2d16v61``: query heads, KV heads, head dimension, vocabulary; before it the family."""
    sizes = f"h{shape.num_attention_heads}kv{shape.num_key_value_heads}d{shape.head_dim}v{shape.vocab_size}"
    return sizes if shape.family == "llama" else f"{shape.family}-{sizes}"


def _draw(generator: np.random.Generator, name: str, size: tuple[int, ...], volume: Volume) -> Array:
    if len(size) == 1:  # a norm's weight
        return 1 + generator.uniform(-0.5, 0.5, size)
    return generator.standard_normal(size) * _deviation(name, size[-1], volume)


def _deviation(name: str, inputs: int, volume: Volume) -> float:
    """Standard deviation of a matrix whose rows have ``inputs`` columns."""
    kind = name.removesuffix(".weight").rsplit(".", 1)[-1]
    if kind == "embed_tokens":
        return EMBEDDING[volume]
    gain = {"q_proj": 1.4, "k_proj": 1.4, "lm_head": 2.5}.get(kind, 1.0)
    if volume == "quiet" and kind in ("o_proj", "down_proj"):
        gain = 0.01  # what a sublayer adds is as small as the stream
    return gain / sqrt(inputs)


def _draw_gpt2(generator: np.random.Generator, name: str, size: tuple[int, ...], volume: Volume) -> Array:
    """One tensor of a gpt2; every bias is of the size of what it is added to, so that none can be left out unseen."""
    stem, _, part = name.rpartition(".")
    kind = stem.rsplit(".", 1)[-1]
    gain = 0.01 if volume == "quiet" and kind == "c_proj" else 1.0
    if kind in ("wte", "wpe"):  # the same size, so that a position counts as much as a token
        return generator.standard_normal(size) * EMBEDDING[volume]
    if kind == "ln_f":  # the head is the embedding; its scores spread by 2.5 at either volume
        gain = 2.5 / sqrt(size[0]) / EMBEDDING[volume]
    if part == "bias":
        return generator.standard_normal(size) * 0.3 * gain
    if len(size) == 1:  # a norm's weight
        return gain * (1 + generator.uniform(-0.5, 0.5, size))
    columns = np.full(size[1], 2.0 if kind == "c_fc" else gain)  # [out]; c_fc reaches where the forms of GELU differ
    if kind == "c_attn":
        columns[: 2 * size[0]] = 1.4  # queries and keys
    return generator.standard_normal(size) * columns / sqrt(size[0])


EMBEDDING: dict[Volume, float] = {"loud": 1.0, "quiet": 0.01}
"""Standard deviation of embeddings."""

USUAL: dict[str, Any] = {
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "rope_theta": 10_000.0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
}
IF_ABSENT: dict[str, dict[str, Any]] = {
    "llama": {**USUAL, "rms_norm_eps": 1e-6},
    "phi3": {**USUAL, "rms_norm_eps": 1e-5},
    "gpt2": {
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "tie_word_embeddings": True,
    },
}
"""What a field of config.json means that is left out, as many real files leave it out (decoder.md, families.md). The
random checkpoints of the other families, and a llama, leave out what they can, so that an engine that takes something
else shows."""

SHAPES: tuple[Shape, ...] = (
    # Heads, KV heads and group all differ; head_dim is not hidden/heads; odd vocabularies; three layers once.
    Shape(hidden_size=48, num_attention_heads=6, num_key_value_heads=2, head_dim=16, vocab_size=61),
    Shape(hidden_size=56, num_attention_heads=4, num_key_value_heads=1, head_dim=24, vocab_size=131),
    Shape(hidden_size=40, num_attention_heads=5, num_key_value_heads=5, head_dim=8, vocab_size=89, num_hidden_layers=3),
    Shape(hidden_size=54, num_attention_heads=6, num_key_value_heads=3, head_dim=10, vocab_size=77),
    Shape(hidden_size=64, num_attention_heads=8, num_key_value_heads=2, head_dim=8, vocab_size=101),
    # Sizes that engines with fixed kernels accept.
    Shape(hidden_size=128, num_attention_heads=4, num_key_value_heads=2, head_dim=32, vocab_size=259),
    Shape(hidden_size=256, num_attention_heads=4, num_key_value_heads=2, head_dim=64, vocab_size=288),
)
"""Adversarial shapes, most telling first. One for which the engine's ``accepts`` gives a reason is passed over."""

FAMILIES: tuple[Shape, ...] = (
    GPT2Shape(
        hidden_size=60,
        num_attention_heads=5,
        num_key_value_heads=5,
        head_dim=12,
        intermediate_size=88,
        vocab_size=83,
        max_position_embeddings=192,
        tie_word_embeddings=True,
    ),
    Phi3Shape(hidden_size=48, num_attention_heads=6, num_key_value_heads=2, head_dim=8, vocab_size=73),
)
"""One shape of each other family."""

TERSE = Shape(
    hidden_size=128,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=32,
    vocab_size=97,
    rms_norm_eps=1e-6,
)
"""A llama that leaves out D = hidden_size / H_q, H_kv = H_q and eps; none of them is another engine's default, and
engines with fixed kernels accept the sizes."""

BRIEF = replace(TERSE, num_key_value_heads=2, rms_norm_eps=1e-5)
"""A llama that says its sizes, eps and that its head is its own, which some engines need, and leaves out the rest."""

WINDOWED = Phi3Shape(
    hidden_size=52, num_attention_heads=4, num_key_value_heads=2, head_dim=12, vocab_size=67, sliding_window=20
)
"""A shape with a window, of no multiple of a block."""
