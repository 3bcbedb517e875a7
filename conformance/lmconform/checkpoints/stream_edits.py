"""Edits of the residual stream, the layers and the head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.layout import Checkpoint

HUGE = 2.0**100
"""Finite in float32 and bfloat16; its square is not."""


def _with(checkpoint: Checkpoint, weights: Mapping[str, Array], **config: Any) -> Checkpoint:
    return replace(checkpoint, config={**checkpoint.config, **config}, weights=weights)


def _sublayer_outputs(weights: Mapping[str, Array]) -> list[str]:
    """Tensors through which sublayers write to the stream."""
    return [name for name in weights if name.endswith(("o_proj.weight", "down_proj.weight"))]


def empty_layer(checkpoint: Checkpoint) -> Checkpoint:
    """The same function with one more layer, after the first: it is a copy of that one, but writes nothing."""
    first, weights = "model.layers.0.", {}
    for name, value in checkpoint.weights.items():
        layer, dot, rest = name.removeprefix("model.layers.").partition(".")
        moved = name.startswith("model.layers.") and layer != "0"
        weights[f"model.layers.{int(layer) + 1}{dot}{rest}" if moved else name] = value
    added = {name.removeprefix(first): value for name, value in weights.items() if name.startswith(first)}
    silent = _sublayer_outputs(added)
    weights |= {f"model.layers.1.{name}": value * (name not in silent) for name, value in added.items()}
    return _with(checkpoint, weights, num_hidden_layers=checkpoint.config["num_hidden_layers"] + 1)


def larger_stream(checkpoint: Checkpoint) -> Checkpoint:
    """The same function of a stream that is 4 times as large: all that is written to it, and the root of eps."""
    written = {"model.embed_tokens.weight", *_sublayer_outputs(checkpoint.weights)}
    weights = {name: value * np.float32(4 if name in written else 1) for name, value in checkpoint.weights.items()}
    return _with(checkpoint, weights, rms_norm_eps=16 * checkpoint.config["rms_norm_eps"])


def tied(checkpoint: Checkpoint) -> Checkpoint:
    """The head is the embedding, and the file has none."""
    weights = {name: value for name, value in checkpoint.weights.items() if name != "lm_head.weight"}
    return _with(checkpoint, weights, tie_word_embeddings=True)


def copied_head(checkpoint: Checkpoint) -> Checkpoint:
    """The head is a copy of the embedding, of its own in the file."""
    weights = {**checkpoint.weights, "lm_head.weight": checkpoint.weights["model.embed_tokens.weight"]}
    return _with(checkpoint, weights, tie_word_embeddings=False)


def overflowing_mlp(checkpoint: Checkpoint) -> Checkpoint:
    """Finite weights that make every score NaN, for a checkpoint whose MLPs write nothing and whose stream is positive.

    Gate and up are finite, their product is not, and 0 times it is NaN: no order of a sum makes something else of it.
    Of inf - inf in one sum, fused multiplications may make inf.
    """
    weights = {**checkpoint.weights}
    for name in ("model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"):
        weights[name] = np.array(weights[name])
        weights[name][0] = HUGE
    return _with(checkpoint, weights)


def relu_gate(checkpoint: Checkpoint) -> Checkpoint:
    """The activation of the MLP is ReLU."""
    return _with(checkpoint, checkpoint.weights, hidden_act="relu")


def gelu_gate(checkpoint: Checkpoint) -> Checkpoint:
    """The activation of the MLP is GELU, by the error function."""
    return _with(checkpoint, checkpoint.weights, hidden_act="gelu")
