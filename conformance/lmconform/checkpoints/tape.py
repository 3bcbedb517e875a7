"""The tape: a checkpoint whose scores depend on the last token alone.

All sublayers add nothing. The head row of the successor of token a reads the embedding of a, so that greedy decoding
follows a script, and row t of the scores names tokens[t].
"""

from __future__ import annotations

import numpy as np

from lmconform.checkpoints.layout import Checkpoint, Shape, on_grid

SHAPE = Shape(hidden_size=128, num_attention_heads=4, num_key_value_heads=2, head_dim=32, vocab_size=101)
PEAK = 2.5  # head gain: after the final norm the successor stands 2.5·sqrt(hidden_size), about 28, above the rest


def successor(token: int, vocab_size: int) -> int:
    """The token that the tape plays after ``token``: one cycle through the whole vocabulary, in steps of 7."""
    return (token + 7) % vocab_size


def tape(shape: Shape = SHAPE) -> Checkpoint:
    """The tape in this shape; the vocabulary may be at most hidden_size wide, and prime to 7."""
    if shape.vocab_size > shape.hidden_size or shape.vocab_size % 7 == 0:
        raise ValueError(f"A tape needs vocab_size <= hidden_size and prime to 7; got {shape.vocab_size}.")
    weights = {name: np.zeros(size, np.float32) for name, size in shape.tensors().items()}
    for name, value in weights.items():
        if value.ndim == 1:
            value[:] = 1
        elif name == "model.embed_tokens.weight":
            np.fill_diagonal(value, 1)
    head = weights["lm_head.weight"]
    for token in range(shape.vocab_size):
        head[successor(token, shape.vocab_size), token] = PEAK
    weights = {name: on_grid(value) for name, value in weights.items()}
    return Checkpoint("tape", shape.config(), weights, {"kind": "tape"})
