"""Edits of a checkpoint's rotary position embedding: of config.json, and of the rows of W_q and W_k.

Those of the rows change what a head's entries mean. Turning pairs of q and of k by the same angle changes no score, and
neither does the order of pairs that all turn alike; that is what laws are made of. The others are what a wrong engine
would compute, to see whether an example could show it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.layout import Checkpoint

LINEAR_FACTOR = 4
ROPE_FIELDS = ("rope_parameters", "rope_scaling", "rope_theta")


def quarter_turned(checkpoint: Checkpoint) -> Checkpoint:
    """Every second pair (i, i + D/2) of each query and key turned by 90 degrees: (a, b) becomes (-b, a)."""

    def turned(heads: Array) -> Array:
        first, second = np.split(heads, 2, axis=1)  # [H, D/2, hidden] each
        odd = np.arange(first.shape[1])[:, None] % 2 == 0
        return np.concatenate([np.where(odd, -second, first), np.where(odd, first, second)], axis=1)

    return _rows(checkpoint, turned)


def interleaved(checkpoint: Checkpoint) -> Checkpoint:
    """Entries 2i and 2i + 1 where i and i + D/2 were: what an engine computes that pairs neighbours."""
    return _rows(checkpoint, lambda heads: np.concatenate([heads[:, ::2], heads[:, 1::2]], axis=1))


def interleaved_of_quarter_turned(checkpoint: Checkpoint) -> Checkpoint:
    """What an engine that pairs neighbours makes of ``quarter_turned``."""
    return interleaved(quarter_turned(checkpoint))


def mirrored(checkpoint: Checkpoint) -> Checkpoint:
    """Entries i and i + D/2 exchanged: what an engine computes that turns the other way."""
    return _rows(checkpoint, lambda heads: np.concatenate(np.split(heads, 2, axis=1)[::-1], axis=1))


def of_base_10_000(checkpoint: Checkpoint) -> Checkpoint:
    """The default base, and no scaling, whatever the checkpoint asks for."""
    return _rope(checkpoint, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0})


def unscaled(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint's base, and no scaling."""
    theta = checkpoint.config["rope_theta"]
    return _rope(checkpoint, rope_theta=theta, rope_parameters={"rope_type": "default", "rope_theta": theta})


def still(checkpoint: Checkpoint) -> Checkpoint:
    """Pairs that hardly turn: 2^40 times more slowly."""
    return _linear(checkpoint, 2.0**40)


def linear(checkpoint: Checkpoint) -> Checkpoint:
    """Scaling of type ``linear`` by ``LINEAR_FACTOR``."""
    return _linear(checkpoint, float(LINEAR_FACTOR))


def newer_spelling(checkpoint: Checkpoint) -> Checkpoint:
    """RoPE in ``rope_parameters`` alone."""
    return _rope(checkpoint, rope_parameters=_parameters(checkpoint))


def older_spelling(checkpoint: Checkpoint) -> Checkpoint:
    """RoPE in ``rope_theta`` and ``rope_scaling`` alone; the base stands outside."""
    numbers = _parameters(checkpoint)
    theta = numbers.pop("rope_theta")
    return _rope(checkpoint, rope_theta=theta, rope_scaling=None if numbers["rope_type"] == "default" else numbers)


def _parameters(checkpoint: Checkpoint) -> dict[str, Any]:
    return dict(checkpoint.config["rope_parameters"])


def _linear(checkpoint: Checkpoint, factor: float) -> Checkpoint:
    theta = checkpoint.config["rope_theta"]
    numbers = {"rope_type": "linear", "rope_theta": theta, "factor": factor}
    return _rope(checkpoint, rope_theta=theta, rope_parameters=numbers)


def _rope(checkpoint: Checkpoint, **fields: Any) -> Checkpoint:
    """The checkpoint with these RoPE fields in config.json and no others."""
    rest: Mapping[str, Any] = {name: value for name, value in checkpoint.config.items() if name not in ROPE_FIELDS}
    return replace(checkpoint, config={**rest, **fields})


def _rows(checkpoint: Checkpoint, change: Callable[[Array], Array]) -> Checkpoint:
    """The checkpoint with ``change`` applied to W_q and W_k of each layer, [H, D, hidden]."""
    weights = dict(checkpoint.weights)
    for name, value in weights.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = value.reshape(-1, checkpoint.config["head_dim"], value.shape[1])  # [H·D, hidden] to [H, D, hidden]
            weights[name] = change(heads).reshape(value.shape)
    return replace(checkpoint, weights=weights)
