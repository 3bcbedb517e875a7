"""Edits: a checkpoint, changed in one known way.

A law may relate an engine's scores on two checkpoints: those of one with shared KV heads, and those of one in which
each query head has a copy of its own. And the oracle of a faulty engine is often the oracle of an edited checkpoint: a
wrong scale is a query projection multiplied by a number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lmconform.checkpoints import config_edits, rope_edits, stream_edits
from lmconform.checkpoints.eos import EOS_EDITS
from lmconform.checkpoints.heads import (
    copy_first_kv_head,
    enlarge_values,
    keep_first_kv_head,
    name_dropout,
    repeat_kv,
    repeat_kv_backwards,
    uneven_heads,
)
from lmconform.checkpoints.layout import Checkpoint
from lmconform.checkpoints.random import IF_ABSENT

Edit = Callable[[Checkpoint], Checkpoint]

SMALL_CONTEXT = 32


def small_context(checkpoint: Checkpoint) -> Checkpoint:
    """The same decoder, which says that it has only ``SMALL_CONTEXT`` positions."""
    return replace(checkpoint, config={**checkpoint.config, "max_position_embeddings": SMALL_CONTEXT})


def spelled_out(checkpoint: Checkpoint) -> Checkpoint:
    """The same llama, whose config.json says all that it may leave out."""
    heads, size = checkpoint.config["num_attention_heads"], checkpoint.config["hidden_size"]
    usual = {**IF_ABSENT["llama"], "head_dim": size // heads, "num_key_value_heads": heads}
    return replace(checkpoint, config={**usual, **checkpoint.config})


EDITS: dict[str, Edit] = {
    "repeat-kv": repeat_kv,
    "repeat-kv-backwards": repeat_kv_backwards,
    "first-kv-head": keep_first_kv_head,
    "equal-kv-heads": copy_first_kv_head,
    "uneven-heads": uneven_heads,
    "large-values": enlarge_values,
    "attention-dropout": name_dropout,
    "small-context": small_context,
    "spelled-out": spelled_out,
    "quarter-turned": rope_edits.quarter_turned,
    "linear-rope": rope_edits.linear,
    "unscaled-rope": rope_edits.unscaled,
    "older-rope-spelling": rope_edits.older_spelling,
    "newer-rope-spelling": rope_edits.newer_spelling,
    "empty-layer": stream_edits.empty_layer,
    "larger-stream": stream_edits.larger_stream,
    "tied": stream_edits.tied,
    "copied-head": stream_edits.copied_head,
    "relu-gate": stream_edits.relu_gate,
    "gelu-gate": stream_edits.gelu_gate,
    "overflowing-mlp": stream_edits.overflowing_mlp,
    **EOS_EDITS,
    **config_edits.DESCRIBED,
    **config_edits.UNDESCRIBED,
}
"""The edits that tests may ask the engine to load, by name."""


def edited(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """The checkpoint after the edit ``name``; its recipe says so."""
    changed = EDITS[name](checkpoint)
    return replace(changed, name=f"{checkpoint.name}~{name}", recipe={**checkpoint.recipe, "edit": name})
