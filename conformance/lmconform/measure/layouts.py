"""Which entries of a head turn together: the layouts that are known, and how one is told from what moved."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lmconform.adapter import Array

MOVED = 0.15
"""An element of so large a part of the largest is clearly not 0."""
UNKNOWN = "none that is known"


@dataclass(frozen=True)
class Layout:
    """Which entries turn together."""

    name: str
    partner: tuple[int, ...]
    """Of each entry; its own where it does not turn."""
    pair: tuple[int, ...]
    """Number of the pair, which sets the frequency."""
    sign: tuple[int, ...]
    """1 for the first entry of a pair, -1 for the second."""
    rotated: int
    """Entries that turn."""


def halves(D: int, rotated: int) -> Layout:
    """Entry i turns with entry i + rotated / 2; entries from ``rotated`` on stay."""
    half = rotated // 2
    name = f"halves of {D}" if rotated == D else f"halves of the first {rotated} of {D}"
    partner = [(i + half) % rotated if i < rotated else i for i in range(D)]
    pair = [i % half if i < rotated else 0 for i in range(D)]
    return Layout(name, tuple(partner), tuple(pair), tuple(1 if i < half else -1 for i in range(D)), rotated)


def neighbours(D: int) -> Layout:
    """Entry 2i turns with entry 2i + 1."""
    pair, sign = tuple(i // 2 for i in range(D)), tuple(1 - 2 * (i % 2) for i in range(D))
    return Layout("neighbours", tuple(i ^ 1 for i in range(D)), pair, sign, D)


def layouts(D: int) -> list[Layout]:
    """Those that engines are known to have."""
    return [halves(D, D), neighbours(D), halves(D, D // 2), halves(D, D // 4)]


def moved(elements: Array) -> Array:
    """Which elements of a rotation, times any scale, are clearly not 0; NaN is 0."""
    size = np.abs(np.nan_to_num(elements))
    found: Array = size > MOVED * size.max()
    return found


def explaining(shown: Array, own: Array) -> Layout | None:
    """The first layout that explains all that ``shown`` [n, D] holds; None if none does.

    Row k says into which entries that which began in entry ``own`` [n] of them turned, at some distance.
    """
    rows = np.arange(len(own))
    for layout in layouts(shown.shape[-1]):
        expected = np.zeros_like(shown)
        expected[rows, own] = True
        expected[rows, np.array(layout.partner)[own]] = True
        if not (shown & ~expected).any():
            return layout
    return None


def direction(signs: Iterable[float]) -> str:
    """The name of the direction, where each pair that turned shows a sign: 1 from its first entry to its second."""
    found = frozenset(int(sign) for sign in signs)
    names = {frozenset({1}): "as the page", frozenset({-1}): "reversed"}
    return names.get(found, "mixed" if found else "still")
