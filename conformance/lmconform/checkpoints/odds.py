"""Odds: scores below 0, on the grid that bfloat16 and float16 hold, from which ids are drawn with known probabilities.

Rounded scores are the scores of another distribution. So what is drawn from is always what the rounded scores say, and
``die_of`` finds those that come nearest to the probabilities asked for.
"""

from __future__ import annotations

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.layout import on_grid

OUTSIDE = -100.0
"""Score of an id that is not to be drawn: below exp(-40) of the greatest share even at temperature 2."""
LEAST_TOP, LEAST = -20.0, -50.0
"""The greatest score of a distribution is at least the one, and every score but ``OUTSIDE`` at least the other."""
WITHIN = 0.05
"""How far a probability may be off, as a part of it: scores from -8 to -16 are 1/16 apart, which is 3 % either way."""
TOPS = np.concatenate([-(2.0**exponent) * (1 + np.arange(128) / 128) for exponent in (-3, -2, -1, 0, 1)])
"""All numbers of the grid from -1/8 to -4: what the greatest score may be."""
BLOCK = 1_000_000
"""How many scores are tried at a time."""


def checked(scores: Array, what: str) -> Array:
    """``scores`` on the grid, where ids can be drawn by them; else raises ValueError, which names ``what``."""
    rounded = on_grid(scores).astype(np.float64)
    if rounded.ndim != 1 or not rounded.size or not np.isfinite(rounded).all():
        raise ValueError(f"The scores of {what} must be finite numbers, at least one; got {scores}.")
    held = ((rounded >= LEAST) & (rounded < 0)) | (rounded == OUTSIDE)
    if not held.all() or rounded.max() < LEAST_TOP:
        raise ValueError(
            f"The scores of {what} must be at least {LEAST:g} and below 0, or {OUTSIDE:g} for ids that are not drawn, "
            f"and the greatest at least {LEAST_TOP:g}; they lie from {rounded.min():g} to {rounded.max():g}."
        )
    return rounded


def die_of(probabilities: Array, within: float = WITHIN) -> Array:
    """Scores [K] on the grid whose softmax is nearest to ``probabilities`` [K], in the worst of them; 0 is OUTSIDE.

    Raises ValueError where they are no distribution, and where one of them would be off by more than ``within``, as a
    part of it.
    """
    wanted = np.asarray(probabilities, np.float64)
    if wanted.ndim != 1 or not (wanted >= 0).all() or not abs(wanted.sum() - 1) < 1e-6:
        raise ValueError(f"Probabilities must be 0 or more and add up to 1; got {probabilities}.")
    levels, place, count = np.unique(wanted[wanted > 0], return_inverse=True, return_counts=True)
    logs = np.log(levels / levels[-1])
    blocks = np.array_split(TOPS, 1 + len(TOPS) * len(levels) // BLOCK)
    errors = [np.abs(_off(_rounded(logs + tops[:, None]), levels, count)).max(axis=1) for tops in blocks]
    best = _rounded(logs + TOPS[int(np.concatenate(errors).argmin())])
    off = _off(best, levels, count)
    worst = int(np.abs(off).argmax())
    if not abs(off[worst]) <= within:
        raise ValueError(
            f"A probability of {levels[worst]:.3g} would be {levels[worst] * (1 + off[worst]):.3g}, off by "
            f"{abs(off[worst]):.1%}, and {within:.1%} is allowed: its score is {best[worst]:g}, and near it numbers of "
            f"bfloat16 are {_step(best[worst]):g} apart."
        )
    scores = np.full(wanted.shape, OUTSIDE)
    scores[wanted > 0] = best[place]
    return checked(scores, "these probabilities")


def log_softmax(scores: Array) -> Array:
    """Logarithms of the probabilities that scores [..., K] give."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    found: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found


def _rounded(scores: Array) -> Array:
    return on_grid(scores).astype(np.float64)


def _off(scores: Array, levels: Array, count: Array) -> Array:
    """How far each probability is off, as a part of it, if ``count`` ids have each of these scores [..., levels]."""
    shares = np.exp(scores)
    off: Array = shares / (shares * count).sum(axis=-1, keepdims=True) / levels - 1
    return off


def _step(score: float) -> float:
    """From a number of bfloat16, which has 8 significant bits, to the next."""
    return float(2.0 ** (np.floor(np.log2(abs(score))) - 7))
