"""What RoPE does, read off the probe: the rotation matrix itself, at many distances.

The score of content token b for a head that looks along e_i is the matrix element R(d)[i, b], d being their distance.
Where it is not 0 beside the diagonal tells the pairing; its sign the direction; the angle over the distance each
frequency; and what is left at distance 0 an offset between queries and keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import product

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.probe import CONTENTS, NULL, Ask, Probe
from lmconform.measure.experiment import Experiment, worst
from lmconform.measure.layouts import UNKNOWN, Layout, direction, explaining, halves, layouts, moved
from lmconform.measure.observation import Observation, Value
from lmconform.measure.sheet import Entry, choice, digits, number

SECTION = "rope"
DISTANCES = (1, 2, 4, 8, 16, 32, 48, 64)
"""Each at most twice the one before, so that an angle tells which turn the next one is in."""
ROUNDED = 4 * 2.0**-24
"""How far a frequency may be off, relatively: right engines compute it in float32, by formulas that differ by units in
the last place. The legal ways know two of these formulas; a right engine used 0.85 of what they allow."""
NEAR = (1, 4)
"""Distances at which all partners that a direction may have are asked for."""


def candidates(probe: Probe, asker: str, head: int) -> set[int]:
    """Content tokens whose scores tell the layouts apart: the head's own direction, its partners, and its still one."""
    own = probe.direction(asker, head)
    return {own, still(probe, own), *(layout.partner[own] for layout in layouts(probe.shape.head_dim))}


def still(probe: Probe, own: int) -> int:
    """A direction that is no partner of ``own`` in any layout: its score is 0, and is what others stand beside."""
    D = probe.shape.head_dim
    partners = {own, *(layout.partner[own] for layout in layouts(D))}
    return next(b % D for b in range(own + 3, own + D) if b % D not in partners)


def turns(probe: Probe, rows: Array, asks: Sequence[Ask]) -> Array:
    """Scores [L, H_q, askers, D, distances] of content tokens; NaN where they were not read.

    Where the null token was not read, they stand beside the still direction of their head and distance.
    """
    scores = probe.scored(rows, asks)  # [n, L, H_q, ENTRIES]
    distances, (n, entry, asker, b, far) = _places(probe.askers, tuple(asks))
    sizes = probe.shape.num_hidden_layers, probe.shape.num_attention_heads, len(probe.askers) - 1, probe.shape.head_dim
    found = np.full((*sizes, len(distances)), np.nan)
    found[:, :, asker, b, far] = np.moveaxis(scores, 0, 2)[:, :, n, entry]  # [L, H_q, contents that were asked for]
    if not np.isnan(probe.weights(rows)[..., NULL]).all():
        return found
    for k, name in _turning(probe):
        for h in range(found.shape[1]):
            beside = still(probe, probe.direction(name, h))
            found[:, h, k] -= found[:, h, k, beside, None].copy()  # [L, D, distances]
    return found


@lru_cache(maxsize=4)
def _places(askers: tuple[str, ...], asks: tuple[Ask, ...]) -> tuple[list[int], Array]:
    """The distances of contents, and for each content asked for: row, entry, asker, b, and number of its distance."""
    contents = [
        (n, ask.asker, int(name.removeprefix("content ")), far)
        for n, ask in enumerate(asks)
        for far, name in ask.places
        if name.startswith("content")
    ]
    distances = sorted({far for *_, far in contents})
    places = [(n, b % CONTENTS, askers.index(name), b, distances.index(far)) for n, name, b, far in contents]
    return distances, np.array(places).T


def experiments(probe: Probe, alone: bool) -> list[Experiment]:
    """The turn of every pair. ``alone``: one content token a prompt, for reading from tokens alone."""
    asks = _one_by_one(probe) if alone else all_at_once(probe)
    return [Experiment(SECTION, "turn of each pair", tuple(asks), partial(_turns, probe))]


def all_at_once(probe: Probe, shifts: Iterable[int] = range(CONTENTS)) -> list[Ask]:
    """Each content token at as many distances as there are shifts: eight in a prompt, the null token among them."""
    asks = []
    for asker in probe.askers[:-1]:
        for first in range(0, probe.shape.head_dim, CONTENTS):
            for shift in shifts:
                places = [(DISTANCES[(k + shift) % CONTENTS], f"content {first + k}") for k in range(CONTENTS)]
                asks.append(Ask(asker, DISTANCES[-1] + 1, (*places, (3, "null"))))
    return asks


def _one_by_one(probe: Probe) -> list[Ask]:
    """Own direction and standard partner at each distance, the other candidates at two of them; lowest layer."""
    asks, standard = [], halves(probe.shape.head_dim, probe.shape.head_dim)
    for asker, b, far in product(probe.askers[:-1], range(probe.shape.head_dim), DISTANCES):
        cells = []
        for h in range(probe.shape.num_attention_heads):
            own = probe.direction(asker, h)
            if b in (candidates(probe, asker, h) if far in NEAR else {own, standard.partner[own], still(probe, own)}):
                cells.append((0, h, b % CONTENTS))
        if cells:
            asks.append(Ask(asker, far + 1, ((far, f"content {b}"),), tuple(cells)))
    return asks


def glance(probe: Probe) -> Experiment:
    """Pairs, direction and base from one distance for each content token: four prompts instead of 32."""
    asks = all_at_once(probe)[::CONTENTS]
    return Experiment(SECTION, "turn of each pair at one distance", tuple(asks), partial(_glanced, probe))


def _glanced(probe: Probe, seen: Observation) -> list[Entry]:
    lines, layout = _pairing(probe, seen)
    return lines if layout is None else [*lines, _Angles(probe, seen, layout).glanced()]


def _turns(probe: Probe, seen: Observation) -> list[Entry]:
    lines, layout = _pairing(probe, seen)
    return lines if layout is None else [*lines, *_Angles(probe, seen, layout).lines()]


def _pairing(probe: Probe, seen: Observation) -> tuple[list[Entry], Layout | None]:
    """Lines on which entries turn together and which way; and the layout, if it is the standard's."""
    D = probe.shape.head_dim
    got, wanted = (_layout(probe, turns(probe, rows, seen.asks)) for rows in (seen.rows, seen.truth))
    lines = [choice(SECTION, "pairs", got.name if got else UNKNOWN, wanted.name if wanted else UNKNOWN)]
    if got is None or wanted is None:
        return lines, None
    lines.append(choice(SECTION, "entries that turn", f"{got.rotated} of {D}", f"{wanted.rotated} of {D}"))
    ways = [
        _direction(probe, turns(probe, rows, seen.asks), one) for rows, one in ((seen.rows, got), (seen.truth, wanted))
    ]
    lines.append(choice(SECTION, "direction", *ways))
    return lines, wanted if got == wanted else None


class _Angles:
    """The angles by which the heads' directions turn, where they turn in the standard's pairs."""

    def __init__(self, probe: Probe, seen: Observation, layout: Layout) -> None:
        self._probe, self._seen, self._layout = probe, seen, layout
        self._distances = np.array(sorted({far for ask in seen.asks for far, name in ask.places if name != "null"}))
        shape = probe.shape
        heads = [
            (h, k, probe.direction(asker, h)) for h in range(shape.num_attention_heads) for k, asker in _turning(probe)
        ]
        self._heads = [(layer, *one) for layer in range(shape.num_hidden_layers) for one in heads]
        self._pairs = np.array([layout.pair[i] for *_, i in self._heads])
        self._names = [f"layer {layer}, head {h}" for layer, h, *_ in self._heads]

    def glanced(self) -> Entry:
        """The base, from the one distance at which each direction was seen, which is below a turn."""

        def slopes(rows: Array, asks: Sequence[Ask]) -> Array:
            angles = self._angles(rows, asks)
            with np.errstate(invalid="ignore"):  # a wrong engine may show no angle at all
                found: Array = np.nansum(angles, axis=1) / np.where(np.isnan(angles), 0, self._distances).sum(axis=1)
            return found

        return self._base(self._seen.value(slopes))

    def lines(self) -> list[Entry]:
        """Base, offset, angle error, and the frequency of each pair."""
        slopes = self._seen.value(self._slopes)
        lines = [self._base(slopes), self._offset(), self._error()]
        for pair in range(self._layout.rotated // 2):
            own = np.flatnonzero(self._pairs == pair)
            value = Value(slopes.got[own], slopes.wanted[own], slopes.bound[own])
            names = [self._names[k] for k in own]
            wanted = float(np.nanmax(value.wanted))
            lines.append(worst(value, SECTION, f"frequency of pair {pair}", names, telling=wanted / 2))
        return lines

    def _angles(self, rows: Array, asks: Sequence[Ask]) -> Array:
        """The angle [L · H_q · askers, distances] of each head's direction, within half a turn."""
        scores = turns(self._probe, rows, asks)
        layer, h, k, i = np.array(self._heads).T
        partner, sign = np.array(self._layout.partner)[i], np.array(self._layout.sign)[i]
        found: Array = np.arctan2(sign[:, None] * scores[layer, h, k, partner], scores[layer, h, k, i])
        return found

    def _read(self, rows: Array, asks: Sequence[Ask]) -> Array:
        """The same without jumps."""
        angles = self._angles(rows, asks)
        for step in range(1, angles.shape[1]):
            ahead = angles[:, step - 1] * self._distances[step] / self._distances[step - 1]
            angles[:, step] += 2 * np.pi * np.round((ahead - angles[:, step]) / 2 / np.pi)
        return angles

    def _slopes(self, rows: Array, asks: Sequence[Ask]) -> Array:
        """Radians a token, for each head's direction."""
        angles = self._read(rows, asks)
        found: Array = (angles[:, -1] - angles[:, 0]) / (self._distances[-1] - self._distances[0])
        return found

    def _base(self, slopes: Value) -> Entry:
        """From the pair that tells it best: frequency = base^(-2 pair / entries that turn)."""
        power = self._layout.rotated / 2 / np.maximum(self._pairs, 1)
        with np.errstate(all="ignore"):
            got, wanted = slopes.got**-power, slopes.wanted**-power
            own, bound = (
                np.where(self._pairs > 0, base * power * slopes.bound / np.abs(slope), np.inf)
                for base, slope in ((got, slopes.got), (wanted, slopes.wanted))
            )
        best = int(np.nanargmin(bound / wanted))
        where = f"from pair {self._pairs[best]}, {self._names[best]}"
        line = number(SECTION, "base", got[best], wanted[best], bound[best], telling=wanted[best] / 2, where=where)
        return replace(line, measured=digits(got[best], own[best]), uncertainty=f"{own[best]:.1g}")

    def _offset(self) -> Entry:
        """Positions by which queries and keys are apart, from the fastest pair."""

        def offsets(rows: Array, asks: Sequence[Ask]) -> Array:
            fast = self._pairs == 0
            with np.errstate(all="ignore"):
                found: Array = self._read(rows, asks)[fast, 0] / self._slopes(rows, asks)[fast] - self._distances[0]
            return found

        names = [name for name, pair in zip(self._names, self._pairs, strict=True) if pair == 0]
        return worst(self._seen.value(offsets), SECTION, "offset of positions", names, telling=1.0)

    def _error(self) -> Entry:
        """Angles less those of the config."""
        exact = self._probe.shape.rope_theta ** (-2 * self._pairs / self._layout.rotated)

        def errors(rows: Array, asks: Sequence[Ask]) -> Array:
            return (self._read(rows, asks) - exact[:, None] * self._distances).reshape(-1)

        names = [
            f"{name}, pair {pair}, distance {far}"
            for name, pair in zip(self._names, self._pairs, strict=True)
            for far in self._distances
        ]
        value = self._seen.value(errors)
        return worst(value, SECTION, "angle error, radians", names, telling=0.5, slack=ROUNDED * self._distances[-1])


def _turning(probe: Probe) -> list[tuple[int, str]]:
    """Number and name of the turn askers."""
    return [*enumerate(probe.askers[:-1])]


def _layout(probe: Probe, scores: Array) -> Layout | None:
    """The layout that explains all scores [L, H_q, askers, D, distances] off the diagonal; None if none does."""
    shown = moved(scores).any(axis=-1)  # [L, H_q, askers, D]; wrong scales leave them where they are
    own = [[probe.direction(asker, h) for _, asker in _turning(probe)] for h in range(shown.shape[1])]  # [H_q, askers]
    everywhere = np.broadcast_to(own, shown.shape[:-1])  # [L, H_q, askers]
    return explaining(shown.reshape(-1, shown.shape[-1]), everywhere.reshape(-1))


def _direction(probe: Probe, scores: Array, layout: Layout) -> str:
    """Which way queries turn beside keys: from the nearest distance at which each direction shows it."""
    signs, shown = set(), moved(scores)
    for layer, h in probe.groups:
        for k, asker in _turning(probe):
            own = probe.direction(asker, h)
            other = layout.partner[own]
            clear = np.flatnonzero(shown[layer, h, k, other])
            if other != own and clear.size:
                signs.add(np.sign(scores[layer, h, k, other, clear[0]]) * layout.sign[own])
    return direction(signs)
