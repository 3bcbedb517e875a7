"""What a weighing of the scales says of a decoder's structure: what can only be one way or another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lmconform.checkpoints.balance import BALLAST, NORMS, SUBLAYERS, Weighing
from lmconform.checkpoints.scales import BALLASTS, LAST, LOADED

UNKNOWN = "none that is known"
NEAR = 0.25
"""A number so near to that of a known mechanism is taken for it."""
HEAVIER = 1 + (BALLAST**2 - 1) * BALLASTS / LOADED
"""What weights in the mean square make of it."""


@dataclass(frozen=True)
class Stream:
    """The scale of the stream and the factor of norms, from the lines of a weighing, of which each holds a mixture.

    With embeddings e times as large, residuals of f_a and f_m, and norms k times as large, the scales that the lines
    give are e f_a / k, e f_a f_m / k^2, e f_a^2 f_m / k, e f_a^2 f_m^2 / k^2. Where residuals are kept, f = 1 and k
    follows; else k is taken for 1. Numbers near 1 are taken for 1 where other readings rest on them.
    """

    embedding: float
    factor: float
    """k^2."""
    before: tuple[float, ...]
    """Scale of the stream before each norm, up to k."""

    @classmethod
    def of(cls, found: Weighing) -> Stream:
        first, second, third = found.scales[1:4]
        if abs(third / first - 1) < NEAR:
            embedding, factor = first**2 / second, first * third / second**2
            return cls(embedding, factor, (snapped(embedding),) * len(NORMS))
        embedding = first * second / third
        return cls(embedding, 1.0, (snapped(embedding), *found.scales[1:]))


def snapped(number: float) -> float:
    return 1.0 if abs(number - 1) < NEAR else float(number)


def _norm(found: Weighing) -> str:
    """LayerNorm takes the mean away, so that a channel that was empty is no more."""
    means = found.read("mean")
    if not np.isfinite(means).all():
        return UNKNOWN
    moved = [name for name, mean in zip(NORMS, means, strict=True) if abs(mean) > NEAR]
    if not moved:
        return "RMSNorm"
    return "LayerNorm" if len(moved) == len(NORMS) else f"LayerNorm in {', '.join(moved)}"


def _position(found: Weighing) -> str:
    """Whether the first sublayer sees the embedding through a norm: its weight on SKEW, or loads made alike."""
    unit = found.shares[0, "unit"]
    if not np.isfinite(unit).all():
        return UNKNOWN
    weighed = abs(found.light(0, "skew") - 1) > NEAR / 2
    return "before the sublayer" if weighed or unit[0] / unit[1] > 2 else "after it"


def _order(found: Weighing) -> str:
    known: dict[tuple[int, ...], str] = {
        (0, 1, 0, 1, 1): "attention, then MLP",
        (1, 0, 1, 0, 1): "MLP, then attention",
        (0, 0, 0, 0, 1): "side by side",
    }
    return _nearest(found.read("order"), known)


def _residual(found: Weighing) -> str:
    """From what reaches the head of the embedding, and from what its scale becomes, a layer on."""
    unit = found.shares[SUBLAYERS - 2, "unit"]
    if not (found.plain[:, 0] > 0).all() or not np.isfinite(unit).all():
        return "dropped"
    if unit[0] / unit[1] < 2:
        return "of the norm, not of the stream"  # a light load stands to what attention writes as a heavy one does
    both = found.read("residual")
    known = _nearest(both, {(1, 1): "kept"})
    if known is not UNKNOWN or not np.isfinite(both).all():
        return known
    first, second, third = found.scales[1:4]
    return f"{third / second:.2g} times around attention, {second / first:.2g} times around the MLP"


def weight_order(found: Weighing) -> str:
    """A weight in the mean square divides what every norm gives by the root of what it makes of the mean square."""
    inside = abs(Stream.of(found).factor * HEAVIER - 1) < NEAR
    return "in the mean square" if inside else "after the mean square"


def _gate(found: Weighing) -> str:
    return _nearest(found.read("gate"), {(-1, 0, -1, 0): "as named", (0, -1, 0, -1): "swapped"})


def _head(found: Weighing) -> str:
    """TIED has a row of zeros, and an embedding on UNIT."""
    tied = found.shares[LAST, "tied"]
    return "the embedding" if (np.abs(tied - 1) < NEAR).all() else "a matrix of its own"


def last_norm(found: Weighing) -> str:
    """Without the last norm the head sees a load as large as it is."""
    light, heavy = found.plain[:, 0] / found.loads
    return "absent" if abs(light / heavy - 1) < NEAR else "present"


def _nearest(numbers: Sequence[float], known: Mapping[tuple[int, ...], str]) -> str:
    for wanted, name in known.items():
        if (np.abs(np.subtract(numbers, wanted)) < NEAR).all():
            return name
    return UNKNOWN


NEEDED: dict[str, Callable[[Weighing], str]] = {
    "residual": _residual,
    "norm position": _position,
    "norm": _norm,
    "head": _head,
}
"""Where one of these is not the page's, no other number is what it seems; but a residual may be scaled."""
STRUCTURE: dict[str, Callable[[Weighing], str]] = {
    "order of sublayers": _order,
    "weight order": weight_order,
    "gate and up": _gate,
}
