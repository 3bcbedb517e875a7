"""What a norm kernel does, read off crafted rows: its eps and where it stands, the mean, the weight and its order."""

from __future__ import annotations

from functools import partial

import numpy as np

from lmconform.adapter import Array
from lmconform.judging.operators import NormCall
from lmconform.measure.attempt import attempt
from lmconform.measure.experiment import worst
from lmconform.measure.kernel import named, value
from lmconform.measure.layouts import UNKNOWN
from lmconform.measure.sheet import Entry
from lmconform.suite.operators import Kernel, KernelDraw

SECTION = "norms"
EPS = (1e-5, 1e-6)
MEAN = 4.0
"""What is added to a row of normal numbers."""
QUIETEST = (2.0**-12, 2.0**-14)
"""Sizes of rows whose mean square is far below eps; the smallest that float16 holds with all its digits."""
SIZES = (64.0, 512.0)
"""Beside which eps is nothing, wherever it stands; the square of the last is infinite in float16."""
GAINS = (-3.0, -1.0, 0.0, 0.5, 2.0, 4.0)
NEAR = 0.15
"""Parts of a gain that a choice may be off: its values are at least twice as far apart."""


def norm(kernel: Kernel) -> list[Entry]:
    """All lines of one norm kernel."""
    todo = [
        *((f"eps, asked for {eps:g}", f"{eps:g}", partial(_eps, kernel, eps)) for eps in EPS),
        ("place of eps", "under the root", partial(_place, kernel)),
        ("norm", "RMSNorm", partial(_kind, kernel)),
        ("part of the mean taken away", "0", partial(_mean, kernel)),
        ("mean square of normed rows", "1", partial(_power, kernel)),
        ("weight", "plain", partial(_weight, kernel)),
        ("order", "norm, then weight", partial(_order, kernel)),
        ("gain of a weight", "", partial(_gain, kernel)),
    ]
    return [line for quantity, wanted, read in todo for line in attempt(SECTION, quantity, wanted, read)]


def _signs(kernel: Kernel, width: int | None = None) -> Array:
    """A row of 1 and -1, as many of each."""
    chosen = width or min(kernel.widths)
    return np.random.default_rng(0).permutation(np.repeat([-1.0, 1.0], chosen // 2)).astype(np.float32)


def _row(x: Array, eps: float = EPS[0], weight: Array | None = None) -> NormCall:
    row = x[None].astype(np.float32)
    return NormCall(row, (np.ones_like(x) if weight is None else weight).astype(np.float32), eps)


def _eps(kernel: Kernel, eps: float) -> list[Entry]:
    """A row whose mean square is about eps: what it is divided by tells eps."""
    size = 2.0 ** round(np.log2(eps) / 2)
    found = value(kernel, lambda out: size**2 / (out**2).mean(axis=-1) - size**2, [_row(size * _signs(kernel), eps)])
    return [worst(found, SECTION, f"eps, asked for {eps:g}", [f"rows of size {size:g}"], telling=eps / 2)]


def _place(kernel: Kernel) -> list[Entry]:
    """Rows far below eps are divided by its root, whatever their size; outside the root it leaves the size in."""

    def place(one: Array, other: Array) -> str:
        larger, smaller = (size / np.sqrt((out**2).mean()) for size, out in zip(QUIETEST, (one, other), strict=True))
        return "under the root" if larger / smaller < 2 else "not under the root"

    return [named(kernel, SECTION, "place of eps", place, [_row(size * _signs(kernel)) for size in QUIETEST])]


def _uneven(kernel: Kernel) -> Array:
    """A row of many different numbers, so that their roundings do not add up."""
    return MEAN + KernelDraw(0).numbers(min(kernel.widths)).astype(np.float64)


def _taken(row: Array, out: Array) -> Array:
    """The part of the mean of ``row`` that is gone, beside what its spread became."""
    centred = row - row.mean()
    gain = (out * centred).mean(axis=-1) / (centred**2).mean()
    return np.asarray(1 - out.mean(axis=-1) / gain / row.mean())


def _mean(kernel: Kernel) -> list[Entry]:
    row = _uneven(kernel)
    found = value(kernel, partial(_taken, row), [_row(row)])
    where = [f"a row with a mean near {MEAN:g}"]
    return [worst(found, SECTION, "part of the mean taken away", where, telling=1.0)]


def _kind(kernel: Kernel) -> list[Entry]:
    row = _uneven(kernel)

    def kind(out: Array) -> str:
        part = float(_taken(row, out)[0])
        return {0: "RMSNorm", 1: "LayerNorm"}.get(round(part), UNKNOWN) if np.isfinite(part) else UNKNOWN

    return [named(kernel, SECTION, "norm", kind, [_row(row)])]


def _power(kernel: Kernel) -> list[Entry]:
    """At every width and size; a mean is part of the mean square."""
    asked = [(width, size, mean) for width in kernel.widths for size in SIZES for mean in (0.0, 0.5)]
    calls = [_row(size * (mean + _signs(kernel, width))) for width, size, mean in asked]
    found = value(kernel, lambda *outputs: np.array([(out**2).mean() for out in outputs]), calls)
    names = [f"hidden_size {width}, rows of size {size:g}, mean {mean * size:g}" for width, size, mean in asked]
    return [worst(found, SECTION, "mean square of normed rows", names, telling=0.25)]


def _weighted(kernel: Kernel) -> tuple[Array, Array, NormCall]:
    signs = _signs(kernel)
    weight = np.resize(GAINS, len(signs))
    return signs, weight, _row(SIZES[0] * signs, weight=weight)


def _gains(kernel: Kernel, out: Array) -> tuple[str, str]:
    """How the weight enters, and whether before or after the norm."""
    signs, weight, _ = _weighted(kernel)
    gains = out[0] * signs
    for name, full in (("plain", weight), ("1 + weight", 1 + weight)):
        factor = float(gains @ full / (full @ full))
        if np.abs(gains - factor * full).max() < NEAR * abs(factor) and factor:
            orders = {"norm, then weight": 1.0, "weight, then norm": 1 / np.sqrt((full**2).mean())}
            near = (order for order, expected in orders.items() if abs(factor - expected) < NEAR * expected)
            return name, next(near, UNKNOWN)
    return UNKNOWN, UNKNOWN


def _weight(kernel: Kernel) -> list[Entry]:
    return [named(kernel, SECTION, "weight", lambda out: _gains(kernel, out)[0], [_weighted(kernel)[2]])]


def _order(kernel: Kernel) -> list[Entry]:
    return [named(kernel, SECTION, "order", lambda out: _gains(kernel, out)[1], [_weighted(kernel)[2]])]


def _gain(kernel: Kernel) -> list[Entry]:
    signs, weight, call = _weighted(kernel)
    found = value(kernel, lambda out: out[0] * signs, [call])
    names = [f"channel {c}, weight {one:g}" for c, one in enumerate(weight)]
    return [worst(found, SECTION, "gain of a weight", names, telling=0.25)]
