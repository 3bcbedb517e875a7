"""Edits that add one field to config.json: an engine follows it, or refuses the checkpoint.

They are made for a checkpoint whose config.json leaves out what it can. Values are far from the usual ones, so that a
field that is passed over shows in every score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.layout import Checkpoint, on_grid
from lmconform.checkpoints.stream_edits import tied

BASE = 500.0
LINEAR = {"factor": 4.0}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
UNKNOWN = "no-such-name"
ATTENTION = tuple(f"self_attn.{name}_proj" for name in "qkvo")
MLP = tuple(f"mlp.{name}_proj" for name in ("gate", "up", "down"))


def _says(**fields: Any) -> Callable[[Checkpoint], Checkpoint]:
    """The edit that adds these fields to config.json."""

    def edit(checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint, whose config.json says more."""
        return replace(checkpoint, config={**checkpoint.config, **fields})

    return edit


def _newer(kind: str, **numbers: float) -> Callable[[Checkpoint], Checkpoint]:
    """RoPE in the current spelling, at the base that holds where none is given."""
    return _says(rope_parameters={"rope_type": kind, "rope_theta": 10_000.0, **numbers})


def _older(kind: str, spelled: str = "rope_type", /, **numbers: float) -> Callable[[Checkpoint], Checkpoint]:
    """RoPE in the older spelling, in which the type has two names, at the base that holds where none is given."""
    return _says(rope_theta=10_000.0, rope_scaling={spelled: kind, **numbers})


def _biased(names: tuple[str, ...], field: str) -> Callable[[Checkpoint], Checkpoint]:
    """The edit that gives these projections biases, and says so; each is as large as what it is added to."""

    def edit(checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint, some of whose projections have biases."""
        generator = np.random.default_rng(len(names))
        added = {name: on_grid(_bias(generator, value)) for name, value in _projections(checkpoint, names).items()}
        return replace(checkpoint, config={**checkpoint.config, field: True}, weights={**checkpoint.weights, **added})

    return edit


def _projections(checkpoint: Checkpoint, names: tuple[str, ...]) -> Mapping[str, Array]:
    """By the name of its bias, the matrix of each of these projections, in all layers."""
    stems = {name: name.removesuffix(".weight") for name in checkpoint.weights if name.endswith("_proj.weight")}
    return {f"{stem}.bias": checkpoint.weights[name] for name, stem in stems.items() if stem.endswith(names)}


def _bias(generator: np.random.Generator, matrix: Array) -> Array:
    """A bias [out] for a matrix [out, in] whose input spreads by about 1."""
    return generator.standard_normal(len(matrix)) * np.sqrt((matrix**2).sum(axis=1).mean())


DESCRIBED: dict[str, Callable[[Checkpoint], Checkpoint]] = {
    "rms_norm_eps": _says(rms_norm_eps=1e-3),
    "rope_parameters-base": _says(rope_parameters={"rope_type": "default", "rope_theta": BASE}),
    "rope_theta-base": _says(rope_theta=BASE),
    "rope_parameters-linear": _newer("linear", **LINEAR),
    "rope_scaling-linear": _older("linear", **LINEAR),
    "rope_scaling-linear-type": _older("linear", "type", **LINEAR),
    "rope_parameters-llama3": _newer("llama3", **LLAMA3),
    "rope_scaling-llama3": _older("llama3", **LLAMA3),
    "hidden_act": _says(hidden_act="relu"),
    "tie_word_embeddings": tied,
    "attention_bias": _biased(ATTENTION, "attention_bias"),
    "mlp_bias": _biased(MLP, "mlp_bias"),
}
"""Fields whose effect the standard describes, by name."""
UNDESCRIBED: dict[str, Callable[[Checkpoint], Checkpoint]] = {
    "rope_parameters-yarn": _newer("yarn", factor=32.0, original_max_position_embeddings=16),
    "rope_scaling-yarn": _older("yarn", factor=32.0, original_max_position_embeddings=16),
    "rope_parameters-unknown": _newer(UNKNOWN, factor=4.0),
    "rope_scaling-unknown": _older(UNKNOWN, factor=4.0),
    "hidden_act-unknown": _says(hidden_act=UNKNOWN),
}
"""Fields whose effect the standard does not describe, or that nobody can know."""
