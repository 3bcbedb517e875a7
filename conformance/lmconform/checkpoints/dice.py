"""Dice: a checkpoint that draws from known distributions, the same at every step or one after another.

All sublayers add nothing, and every id belongs to one die. The head gives an id its score on the channel of its die and
``OUTSIDE`` on the others. Its embedding is the channel of the die that is drawn after it: of its own, so that a prompt
that ends with an id of a die draws an id of the same die, and again, and one generation of n tokens is n independent
draws; or of another, so that each step has a die of its own.

With hidden_size = 4^k, RMSNorm multiplies the one channel by 2^k (up to eps), and scores lie on the grid that bfloat16
and float16 hold. All scores are below 0, so that a padded head row of zeros would stand above every real id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.circuit import Circuit, as_llama
from lmconform.checkpoints.layout import Checkpoint, Shape
from lmconform.checkpoints.odds import OUTSIDE, checked

SHAPE = Shape(
    hidden_size=256,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    intermediate_size=96,
    vocab_size=0,  # as many as there are outcomes
    rms_norm_eps=1e-9,
)
MOST_IDS = 50_000
"""Each has a printable character of its own in the tokenizer, and of those there are not many more."""
LADDER = (0.36, 0.24, 0.16, 0.10, 0.06, 0.04, 0.025, 0.015)
EQUALS, FAIR = 100, 64
ENDS = "ends"
"""The die of this name, where there is one, has two outcomes: the first and the last id of the vocabulary."""

SCORES: Mapping[str, Array] = {
    # One id stands so far above 100 equal ones that at the temperature named it has a share of 1/2.
    "coin at 2": np.array([-1.0] + [-1 - 2 * np.log(EQUALS)] * EQUALS),
    "coin at 0.5": np.array([-1.0] + [-1 - 0.5 * np.log(EQUALS)] * EQUALS),
    # Shares so far apart that thresholds of filters can stand between them.
    "ladder": np.log(LADDER) - 1,
    "fair": np.full(FAIR, -4.0),
    # The first and the last id of the vocabulary, each with a share of 1/2.
    ENDS: np.full(2, -4.0),
    # Three ids share the top.
    "tied": np.array([-2.0, -2.0, -2.0, -3.0, -4.0]),
}
"""281 ids: a prime number, so that every engine that pads must pad them."""


@dataclass(frozen=True)
class Dice:
    """The checkpoint, and the ids of each die; the order of a die's ids is that of its scores."""

    checkpoint: Checkpoint
    ids: Mapping[str, tuple[int, ...]]
    after: Mapping[str, str] = field(default_factory=dict)
    """By die, the one that is drawn after its ids, where that is another."""

    def start(self, die: str) -> int:
        """A token after which this die is drawn."""
        return next(own[-1] for name, own in self.ids.items() if self.after.get(name, name) == die)


def dice(scores: Mapping[str, Array] = SCORES, after: Mapping[str, str] | None = None) -> Dice:
    """All dice in one checkpoint. ``scores``: by die, that of each outcome, below 0; they are rounded to the grid.

    ``after`` names for some dice the one that is drawn after their ids, as ``in_turn`` does; after all others comes the
    same die again. Raises ValueError where this checkpoint cannot hold them.
    """
    _check(scores, after or {})
    drawn = {die: die for die in scores} | dict(after or {})
    ids = _ids(scores)
    recipe: dict[str, Any] = {"kind": "dice"}
    if scores is not SCORES or after:
        recipe |= {"scores": {die: np.asarray(own).tolist() for die, own in scores.items()}, "after": dict(after or {})}
    circuit = Circuit("dice", SHAPE, recipe, power=1)
    for die in ids:
        circuit.channel(die)
    held = circuit.held(dict.fromkeys(ids, OUTSIDE))
    outcomes = [(*one, die) for die, own in ids.items() for one in zip(own, scores[die], strict=True)]
    for token, score, die in sorted(outcomes):
        circuit.token(str(token), {drawn[die]: 1}, {**held, **circuit.held({die: float(score)})})
    return Dice(as_llama(circuit), ids, dict(after or {}))


def in_turn(dice: Sequence[str]) -> dict[str, str]:
    """Each die after the one before it, and the first again after the last."""
    return dict(zip(dice, [*dice[1:], dice[0]], strict=True))


def _check(scores: Mapping[str, Array], after: Mapping[str, str]) -> None:
    for die, own in scores.items():
        checked(own, f"die {die!r}")
    size = sum(map(len, scores.values()))
    if not 2 <= size <= MOST_IDS:
        raise ValueError(f"Dice need 2 to {MOST_IDS} outcomes, an id each; got {size}.")
    if len(scores) > SHAPE.hidden_size:
        raise ValueError(f"Each die needs a channel, and there are {SHAPE.hidden_size}; got {len(scores)} dice.")
    if len(scores.get(ENDS, (0, 0))) != 2:
        raise ValueError(f"Die {ENDS!r} has two outcomes, the first and the last id; got {len(scores[ENDS])}.")
    if unknown := ({*after} | {*after.values()}) - {*scores}:
        raise ValueError(f"There are no dice {sorted(unknown)} to be drawn one after another.")
    if never := {*scores} - {after.get(die, die) for die in scores}:
        raise ValueError(f"Dice {sorted(never)} come after none, so that no prompt draws them.")


def _ids(scores: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """Ids of each die: mixed, so that no order of ids is one of scores; the first and the last id are the ends."""
    size = sum(map(len, scores.values()))
    ends = {ENDS: (0, size - 1)} if ENDS in scores else {}
    free = np.setdiff1d(np.arange(size), [*ends.values()])
    mixed = iter(np.random.default_rng(0).permutation(free).tolist())
    return {die: tuple(islice(mixed, len(own))) for die, own in scores.items() if die != ENDS} | ends
