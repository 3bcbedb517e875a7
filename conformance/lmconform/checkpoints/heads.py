"""Edits of attention heads: other numbers of them, another order, other scales.

Those that are registered in ``edits.py`` leave the decoder the same function, or say what they change. Others make the
checkpoint whose oracle is that of a faulty engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.layout import Checkpoint

ENLARGED = 8.0
DROPOUT = 0.5


def scaled(checkpoint: Checkpoint, factors: dict[str, float]) -> Checkpoint:
    """Each projection named (``q``, ``k``, ``v``, ``o``) times its factor, in every layer."""
    return _with(checkpoint, {name: partial(np.multiply, factor) for name, factor in factors.items()})


def with_kv(checkpoint: Checkpoint, keys: Sequence[int], values: Sequence[int]) -> Checkpoint:
    """Other KV heads: the k-th has the keys of the old ``keys[k]`` and the values of the old ``values[k]``."""
    edited = _with(checkpoint, {"k": _rows(checkpoint, keys), "v": _rows(checkpoint, values)})
    return replace(edited, config={**checkpoint.config, "num_key_value_heads": len(keys)})


def repeat_kv(checkpoint: Checkpoint) -> Checkpoint:
    """The same function with H_kv = H_q: each query head has a copy of the KV head that it shared."""
    own = shared(checkpoint)
    return with_kv(checkpoint, own, own)


def repeat_kv_backwards(checkpoint: Checkpoint) -> Checkpoint:
    """``repeat_kv`` with the last head first, in all four projections: the same function again."""
    whole = repeat_kv(checkpoint)
    order = range(int(checkpoint.config["num_attention_heads"]))[::-1]
    return in_order(with_kv(whole, order, order), order, order)


def in_order(checkpoint: Checkpoint, queries: Sequence[int], outputs: Sequence[int]) -> Checkpoint:
    """The h-th query head is the old ``queries[h]``; the h-th block of W_o is the old ``outputs[h]``."""
    return _with(
        checkpoint,
        {"q": _rows(checkpoint, queries), "o": lambda value: _rows(checkpoint, outputs)(value.T).T},
    )


def keep_first_kv_head(checkpoint: Checkpoint) -> Checkpoint:
    """H_kv = 1: the first KV head for all query heads. Another function."""
    return with_kv(checkpoint, [0], [0])


def copy_first_kv_head(checkpoint: Checkpoint) -> Checkpoint:
    """The function of ``keep_first_kv_head`` with the old number of KV heads, all of them copies of the first."""
    copies = [0] * int(checkpoint.config["num_key_value_heads"])
    return with_kv(checkpoint, copies, copies)


def uneven_heads(checkpoint: Checkpoint) -> Checkpoint:
    """No decoder at all: the least number of KV heads, above 1, that does not divide the number of query heads."""
    heads = int(checkpoint.config["num_attention_heads"])
    fewer = next(count for count in range(2, heads) if heads % count)
    chosen = [head % int(checkpoint.config["num_key_value_heads"]) for head in range(fewer)]
    return with_kv(checkpoint, chosen, chosen)


def enlarge_values(checkpoint: Checkpoint) -> Checkpoint:
    """The same function with values 8 times as large, which W_o takes back; exact, since 8 is a power of two."""
    return scaled(checkpoint, {"v": ENLARGED, "o": 1 / ENLARGED})


def name_dropout(checkpoint: Checkpoint) -> Checkpoint:
    """The same function; config.json says with which attention dropout it was trained."""
    return replace(checkpoint, config={**checkpoint.config, "attention_dropout": DROPOUT})


def shared(checkpoint: Checkpoint) -> list[int]:
    """KV head of each query head."""
    return sorted(shared_in_turn(checkpoint))


def shared_in_turn(checkpoint: Checkpoint) -> list[int]:
    """KV head of each query head under the other plausible map, h % H_kv."""
    heads, kv_heads = int(checkpoint.config["num_attention_heads"]), int(checkpoint.config["num_key_value_heads"])
    return [head % kv_heads for head in range(heads)]


def _rows(checkpoint: Checkpoint, heads: Sequence[int]) -> Callable[[Array], Array]:
    """Picks blocks of D rows of a matrix."""
    D = int(checkpoint.config["head_dim"])

    def pick(value: Array) -> Array:
        return np.concatenate([value[head * D : (head + 1) * D] for head in heads])  # [len(heads) · D, ...]

    return pick


def _with(checkpoint: Checkpoint, changes: dict[str, Callable[[Array], Array]]) -> Checkpoint:
    """The checkpoint with these changes to the attention projections of every layer."""
    weights = dict(checkpoint.weights)
    for name, value in checkpoint.weights.items():
        kind = name.removesuffix("_proj.weight").rpartition(".")[2]
        if "self_attn" in name and kind in changes:
            weights[name] = changes[kind](value)
    return replace(checkpoint, weights=weights)
