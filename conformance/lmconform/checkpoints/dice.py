"""Dice: a checkpoint that draws from known distributions, the same at every step.

All sublayers add nothing, and every id belongs to one die. The embeddings of a die's ids are equal, one channel, and
the head gives an id its score on that channel and ``OUTSIDE`` on the others. So a prompt that ends with an id of a die
draws an id of the same die, and again: one generation of n tokens is n independent draws.

With hidden_size = 4^k, RMSNorm multiplies the one channel by 2^k (up to eps), and scores lie on the grid that bfloat16
and float16 hold. All scores are below 0, so that a padded head row of zeros would stand above every real id.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.layout import Checkpoint, Shape, on_grid

GAIN = 16  # sqrt(hidden_size): what the final norm makes of the one channel
OUTSIDE = -100.0  # score of the ids of other dice: below exp(-40) of a share even at temperature 2
LADDER = (0.36, 0.24, 0.16, 0.10, 0.06, 0.04, 0.025, 0.015)
EQUALS, FAIR = 100, 64

SCORES: Mapping[str, Array] = {
    # One id stands so far above 100 equal ones that at the temperature named it has a share of 1/2.
    "coin at 2": np.array([-1.0] + [-1 - 2 * np.log(EQUALS)] * EQUALS),
    "coin at 0.5": np.array([-1.0] + [-1 - 0.5 * np.log(EQUALS)] * EQUALS),
    # Shares so far apart that thresholds of filters can stand between them.
    "ladder": np.log(LADDER) - 1,
    "fair": np.full(FAIR, -4.0),
    # The first and the last id of the vocabulary, each with a share of 1/2.
    "ends": np.full(2, -4.0),
    # Three ids share the top.
    "tied": np.array([-2.0, -2.0, -2.0, -3.0, -4.0]),
}
VOCAB_SIZE = sum(map(len, SCORES.values()))  # 281: prime, so that every engine that pads must pad it
SHAPE = Shape(
    hidden_size=GAIN**2,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    intermediate_size=96,
    vocab_size=VOCAB_SIZE,
    rms_norm_eps=1e-9,
)


@dataclass(frozen=True)
class Dice:
    """The checkpoint, and the ids of each die; the order of a die's ids is that of its ``SCORES``."""

    checkpoint: Checkpoint
    ids: Mapping[str, tuple[int, ...]]

    def start(self, die: str) -> int:
        """A token after which this die is drawn from."""
        return self.ids[die][-1]


def dice() -> Dice:
    """All dice in one checkpoint."""
    ids = _ids()
    weights = {name: np.zeros(size, np.float32) for name, size in SHAPE.tensors().items()}
    for value in weights.values():
        if value.ndim == 1:
            value[:] = 1
    embedding, head = weights["model.embed_tokens.weight"], weights["lm_head.weight"]  # [V, hidden_size] each
    head[:, : len(ids)] = OUTSIDE / GAIN
    for channel, (die, own) in enumerate(ids.items()):
        embedding[list(own), channel] = 1
        head[list(own), channel] = SCORES[die] / GAIN
    weights = {name: on_grid(value) for name, value in weights.items()}
    return Dice(Checkpoint("dice", SHAPE.config(), weights, {"kind": "dice"}), ids)


def _ids() -> dict[str, tuple[int, ...]]:
    """Ids of each die: mixed, so that no order of ids is one of scores; the first and the last id are the ends."""
    mixed = iter(np.random.default_rng(0).permutation(np.arange(1, VOCAB_SIZE - 1)).tolist())
    found = {die: tuple(next(mixed) for _ in scores) for die, scores in SCORES.items() if die != "ends"}
    return {**found, "ends": (0, VOCAB_SIZE - 1)}
