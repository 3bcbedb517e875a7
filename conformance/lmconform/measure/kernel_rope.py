"""What a RoPE kernel does, read off its rotation matrix: heads that are one-hot show a row of it each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property, partial

import numpy as np

from lmconform.adapter import Array, Refused
from lmconform.judging.operators import RopeCall
from lmconform.measure.attempt import attempt
from lmconform.measure.experiment import worst
from lmconform.measure.kernel import answers, value
from lmconform.measure.layouts import UNKNOWN, Layout, direction, explaining, halves, moved, neighbours
from lmconform.measure.observation import Value
from lmconform.measure.rope import SECTION
from lmconform.measure.sheet import Entry, choice, number
from lmconform.spec.rope import inverse_frequencies
from lmconform.suite.kernel_expect import ANGLE_FACTOR
from lmconform.suite.operators import Kernel

BASES = (10_000.0, 500_000.0)
NEAR, FAR = 4_096, 131_072
"""Positions up to which angles are compared, and up to which frequencies are read where the kernel goes so far."""


def rope(kernel: Kernel) -> list[Entry]:
    """All lines of one RoPE kernel: each pair of the narrowest heads, and the bases of all."""
    first, *others = sorted(kernel.widths)
    interleaved = kernel.operator.layout == "interleaved"
    todo = [
        ("pairs", _declared(first, interleaved), partial(_narrowest, kernel, first)),
        *((f"pairs, D = {D}", _declared(D, interleaved), partial(_wider, kernel, D)) for D in others),
    ]
    return [line for quantity, wanted, read in todo for line in attempt(SECTION, quantity, wanted, read)]


def _narrowest(kernel: Kernel, D: int) -> list[Entry]:
    """Pairs, direction and lengths; and angles, where the pairs are the declared ones."""
    turns = _Turns(kernel, D, BASES[0])
    lines = [turns.pairs("pairs"), turns.lengths()]
    if turns.layout is None:
        return lines
    lines += [turns.count(), turns.direction()]
    if turns.layout != turns.standard:
        return lines
    bases = [turns.base(_asked(BASES[0])), _Turns(kernel, D, BASES[1]).base(_asked(BASES[1]))]
    return [*lines, *bases, turns.offset(), turns.error(), *turns.frequencies()]


def _wider(kernel: Kernel, D: int) -> list[Entry]:
    turns = _Turns(kernel, D, BASES[0])
    line = turns.pairs(f"pairs, D = {D}")
    return [line, turns.base(f"base, D = {D}")] if turns.layout == turns.standard else [line]


def _declared(D: int, interleaved: bool) -> str:
    return (neighbours(D) if interleaved else halves(D, D)).name


def _asked(base: float) -> str:
    return f"base, asked for {base:,.0f}"


class _Turns:
    """The rotation matrix of one width and base at many positions, each at most twice the one before."""

    def __init__(self, kernel: Kernel, D: int, base: float) -> None:
        """Raises Refused where the kernel takes no positions up to 4,096."""
        self._kernel, self._D, self._asked = kernel, D, base
        try:
            self._ask(FAR)
        except Refused:
            self._ask(NEAR)
        self._truth = self._elements(self._call.truth())
        self.layout, standard = _layout(self._out), _layout(self._truth)
        assert standard is not None, "the standard's own layout is known"
        self.standard = standard

    def _ask(self, most: int) -> None:
        """Powers of two, and one less: a narrow format holds the former alone."""
        powers = 2 ** np.arange(most.bit_length())
        self._positions = np.unique(np.concatenate([[0], powers, powers - 1]))
        P, D = len(self._positions), self._D
        x = np.tile(np.eye(D, dtype=np.float32), (P, 1))[None]  # [1, P · D, D]
        self._call = RopeCall(x, np.repeat(self._positions, D), self._asked, self._kernel.operator.layout)
        self._out = self._elements(answers(self._kernel, [self._call])[0])

    def _elements(self, out: Array) -> Array:
        """Elements [P, D, D] by position, the entry that was 1, and the entry that is read."""
        return out.reshape(-1, self._D, self._D)

    def pairs(self, quantity: str) -> Entry:
        """Which entries turn together."""
        return choice(SECTION, quantity, self.layout.name if self.layout else UNKNOWN, self.standard.name)

    def count(self) -> Entry:
        """How many entries turn."""
        got, wanted = (f"{one.rotated} of {self._D}" for one in (self._known, self.standard))
        return choice(SECTION, "entries that turn", got, wanted)

    def direction(self) -> Entry:
        """Which way the pairs turn."""
        got, wanted = _direction(self._out, self._known), _direction(self._truth, self.standard)
        return choice(SECTION, "direction", got, wanted)

    @property
    def _known(self) -> Layout:
        assert self.layout is not None, "only asked where the layout is known"
        return self.layout

    def lengths(self) -> Entry:
        """A turn keeps the length of every vector."""

        def length(out: Array) -> Array:
            return np.asarray(np.sqrt((self._elements(out) ** 2).sum(axis=-1)))  # [P, D]

        names = self._names(f"entry {i}" for i in range(self._D))
        found = value(self._kernel, length, [self._call])
        return worst(found, SECTION, "length after a turn", names, telling=0.05)

    @cached_property
    def _angles(self) -> Value:
        """The angle of each entry at each position, without jumps, [P · D].

        A right kernel is off by the rounding of its output, and by that of float32 products.
        """
        own, partner, sign = np.arange(self._D), np.array(self.standard.partner), np.array(self.standard.sign)

        exact = self._positions[:, None] * inverse_frequencies(self._D, self._asked)[self._pairs]  # [P, D]

        def errors(out: Array) -> Array:
            elements = self._elements(out)
            angles = np.arctan2(sign * elements[:, own, partner], elements[:, own, own])  # [P, D]
            for step in range(1, len(angles)):
                ratio = self._positions[step] / self._positions[step - 1] if step > 1 else 0.0
                ahead = angles[0] + (angles[step - 1] - angles[0]) * ratio
                angles[step] += 2 * np.pi * np.round((ahead - angles[step]) / 2 / np.pi)
            return angles - exact  # rounding does not grow with the angle

        found = value(self._kernel, errors, [replace(self._call, exact_angles=True)])
        product = ANGLE_FACTOR * 2.0**-24 * self._call.positions  # radians
        turned = exact.reshape(-1)
        return Value(found.got + turned, found.wanted + turned, found.bound + product)

    @property
    def _pairs(self) -> Array:
        """Number of each entry's pair, [D]."""
        return np.array(self.standard.pair)

    def error(self) -> Entry:
        """Angles less those of the standard, up to position 4,096."""
        angles, near = self._angles, np.repeat(self._positions, self._D) <= NEAR
        value = Value((angles.got - angles.wanted)[near], np.zeros(near.sum()), angles.bound[near])
        names = self._names(f"pair {pair}" for pair in self._pairs)
        return worst(value, SECTION, "angle error, radians", names, telling=0.5)

    def offset(self) -> Entry:
        """Positions by which the kernel is ahead, from the fastest pair, which turns by a radian a position."""
        first = self._of(0)
        fast = self._pairs == 0
        value = Value(first.got[fast], first.wanted[fast], first.bound[fast])
        names = [f"entry {i}" for i in np.flatnonzero(fast)]
        return worst(value, SECTION, "offset of positions", names, telling=1.0)

    def frequencies(self) -> list[Entry]:
        """A line for each pair."""
        slopes, lines = self._slopes(), []
        for pair in range(self._D // 2):
            own = np.flatnonzero(self._pairs == pair)
            value = Value(slopes.got[own], slopes.wanted[own], slopes.bound[own])
            names = [f"entry {i}" for i in own]
            telling = float(value.wanted.max()) / 2
            lines.append(worst(value, SECTION, f"frequency of pair {pair}", names, telling=telling))
        return lines

    def base(self, quantity: str) -> Entry:
        """From the pair that tells it best: frequency = base^(-2 pair / D)."""
        slopes = self._slopes()
        power = self._D / 2 / np.maximum(self._pairs, 1)
        with np.errstate(all="ignore"):
            got, wanted = np.abs(slopes.got) ** -power, slopes.wanted**-power  # direction has a line of its own
            bound = np.where(self._pairs > 0, wanted * power * slopes.bound / slopes.wanted, np.inf)
        best = int(np.argmin(bound / wanted))
        where = f"from pair {self._pairs[best]}"
        return number(SECTION, quantity, got[best], wanted[best], bound[best], telling=wanted[best] / 2, where=where)

    def _slopes(self) -> Value:
        """Radians a position, of each entry, [D]."""
        first, last, far = self._of(0), self._of(-1), self._positions[-1]
        return Value((last.got - first.got) / far, (last.wanted - first.wanted) / far, (last.bound + first.bound) / far)

    def _of(self, position: int) -> Value:
        """The angles at one position, [D]."""
        got, wanted, bound = (one.reshape(-1, self._D)[position] for one in vars(self._angles).values())
        return Value(got, wanted, bound)

    def _names(self, each: Iterable[str]) -> list[str]:
        entries = list(each)
        return [f"position {position}, {entry}" for position in self._positions for entry in entries]


def _layout(elements: Array) -> Layout | None:
    """The layout of a rotation's elements [P, D, D]; None if it is not known."""
    return explaining(np.asarray(moved(elements).any(axis=0)), np.arange(elements.shape[-1]))


def _direction(elements: Array, layout: Layout) -> str:
    """From the first position at which each entry shows it."""
    signs, shown = set(), moved(elements)
    for own, other in enumerate(layout.partner):
        clear = np.flatnonzero(shown[:, own, other])
        if own != other and clear.size:
            signs.add(np.sign(elements[clear[0], own, other]) * layout.sign[own])
    return direction(signs)
