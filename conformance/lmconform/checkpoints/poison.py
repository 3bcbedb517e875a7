"""Poison: a random decoder with two tokens whose keys and values must reach no other sequence.

Two channels of the residual stream belong to one token each. No other embedding writes to them, no sublayer does, and
only W_k and W_v of the layers read them, with a gain that makes this token's keys and values a thousand times larger
than those of others (garbage), or larger than the compute format holds (overflow). A sequence without these tokens is
scored as if the channels were not there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.layout import Checkpoint, Shape, on_grid
from lmconform.checkpoints.random import random_checkpoint

SHAPE = Shape(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=16, vocab_size=79)
GARBAGE = 2.0**9  # the norm's gain of about 8 on top: keys and values of 4,096, which float16 holds
# 8 times as much is beyond float32 and bfloat16, or beyond float16; twice as much is not: a weight may be doubled.
OVERFLOW, NARROW_OVERFLOW = 2.0**126, 2.0**14


@dataclass(frozen=True)
class Poison:
    """The checkpoint, and its two tokens."""

    checkpoint: Checkpoint
    garbage: int
    """A token of large finite keys and values."""
    overflow: int
    """A token whose keys and values are infinite, or NaN."""

    def clean(self, tokens: Iterable[int]) -> tuple[int, ...]:
        """``tokens`` with others in place of the two."""
        return tuple(token % self.garbage for token in tokens)


def poisoned(*, narrow: bool = False, shape: Shape = SHAPE) -> Poison:
    """The decoder in this shape. ``narrow``: the overflow is one of float16, and the weights still fit in it."""
    plain = random_checkpoint(shape, "loud", seed=0)
    weights = {name: value.copy() for name, value in plain.weights.items()}
    garbage, overflow = shape.vocab_size - 2, shape.vocab_size - 1
    for token, gain in ((garbage, GARBAGE), (overflow, NARROW_OVERFLOW if narrow else OVERFLOW)):
        _poison(weights, token, shape.hidden_size - shape.vocab_size + token, gain)
    recipe = {"kind": "poison", "narrow": narrow}
    checkpoint = Checkpoint("poison" + ("-narrow" if narrow else ""), shape.config(), weights, recipe)
    return Poison(checkpoint, garbage, overflow)


def _poison(weights: dict[str, Array], token: int, channel: int, gain: float) -> None:
    """Give ``channel`` to ``token``; every key and value reads it with ``gain``, of alternating sign."""
    for name, value in weights.items():
        if name.endswith("layernorm.weight") or name == "model.norm.weight":
            value[channel] = 1
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            value[channel] = 0
        elif name.endswith(("k_proj.weight", "v_proj.weight")):
            value[:, channel] = on_grid(gain * (-1.0) ** np.arange(len(value)))
        else:
            value[:, channel] = 0
    weights["lm_head.weight"][token] = 0  # so that no continuation chooses it
    weights["model.embed_tokens.weight"][token] = 0
    weights["model.embed_tokens.weight"][token, channel] = 1
