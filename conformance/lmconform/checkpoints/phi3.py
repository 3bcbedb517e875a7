"""A llama checkpoint in phi3's wrapping: the same decoder, its projections of one input stored as one matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.layout import Checkpoint, phi3_config

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""phi3's matrices, and llama's whose rows they hold, one below the other."""


def as_phi3(checkpoint: Checkpoint, window: int | None = None) -> Checkpoint:
    """The llama ``checkpoint`` as a phi3. With ``window`` each position sees its last ``window`` positions alone.

    Raises ValueError if it is no llama, or if the window leaves a position nothing to see.
    """
    if window is not None and window < 1:
        raise ValueError(f"Each position sees itself: a window of 1 or more is needed; got {window}.")
    if checkpoint.config["model_type"] != "llama":
        raise ValueError(f"{checkpoint.name} is a {checkpoint.config['model_type']}; only a llama becomes a phi3.")
    return replace(
        checkpoint,
        name=f"phi3-{checkpoint.name}" + ("" if window is None else f"-window{window}"),
        config=phi3_config(checkpoint.config, window),
        weights=fused(checkpoint.weights),
        recipe={"kind": "phi3", "window": window, "llama": dict(checkpoint.recipe)},
    )


def fused(weights: Mapping[str, Array]) -> dict[str, Array]:
    """The tensors of a llama as those of a phi3."""
    found = {}
    for name, value in weights.items():
        stem, _, kind = name.removesuffix(".weight").rpartition(".")
        whole = next((whole for whole, parts in FUSED.items() if kind in parts), None)
        if whole is None:
            found[name] = value
        else:
            rows = [weights[f"{stem}.{part}.weight"] for part in FUSED[whole]]
            found[f"{stem}.{whole}.weight"] = np.concatenate(rows)  # [sum of rows, hidden]
    return found
