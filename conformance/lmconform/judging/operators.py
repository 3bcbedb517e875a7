"""What single operators must return, what right ones may return, and the budget between the two.

A *call* is one question to a kernel, and holds the oracle's answer (the pages) and a naive answer in any
``Arithmetic``. A *reading* is what a test compares: a function of the answers to one call or several. Legal errors of
a reading are those of the naive variants and noise runs, by the rule of ``spec/numerics.md``; nothing is centred.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from math import hypot, prod
from typing import Any

import numpy as np

from lmconform.adapter import Array, Precision
from lmconform.judging.arithmetic import Arithmetic, variants
from lmconform.judging.budgets import Budget, bounds
from lmconform.spec.causal_mask import causal_visible
from lmconform.spec.grouped_query_attention import grouped_attention
from lmconform.spec.pre_norm_residual import rms_norm
from lmconform.spec.rope import angles, inverse_frequencies, rotate, rotate_interleaved

TILE = 16
"""Keys that a tiled variant of attention takes at a time."""
REMEMBERED = 400
"""Calls whose legal errors are kept: each kernel of an engine is asked the same ones."""


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """q [H_q, n, D], k and v [H_kv, m, D]; all keys visible, or those of the causal mask, or those of ``given``."""

    q: Array
    k: Array
    v: Array
    causal: bool = False
    given: Array | None = None

    axes = ("head", "query", "channel")
    kind = "attention"

    @property
    def inputs(self) -> tuple[Any, ...]:
        return self.q, self.k, self.v, self.causal, self.given

    def visible(self) -> Array:
        """Which keys each query sees, bool [n, m]."""
        n, m = self.q.shape[1], self.k.shape[1]
        if self.given is not None:
            return self.given
        return causal_visible(n, m) if self.causal else np.ones((n, m), bool)

    def truth(self) -> Array:
        """The oracle's answer, [H_q, n, D]."""
        q, k, v = (one.astype(np.float64) for one in (self.q, self.k, self.v))
        return np.asarray(grouped_attention(q, k, v, self.visible()))

    def simulated(self, how: Arithmetic) -> Array:
        """A right kernel's answer in the arithmetic ``how``, [H_q, n, D]."""
        group = len(self.q) // len(self.k)
        q = self.q.astype(how.working)
        k, v = (np.repeat(how.cache(one.astype(how.working)), group, axis=0) for one in (self.k, self.v))
        scores = _scaled(q, k, how)  # [H_q, n, m]
        blind = ~self.visible().any(axis=1, keepdims=True)  # nobody reads these rows; as if they saw all
        scores = np.where(self.visible() | blind, scores, -np.inf)
        if how.split:
            return _key_by_key(scores, v, how) if how.narrow_softmax else _in_tiles(scores, v, how)
        return how.matmul(how.softmax(scores), v)


def _scaled(q: Array, k: Array, how: Arithmetic) -> Array:
    """Scores [H_q, n, m]; the scale multiplies the product, or its root each side before, as in torch's math form."""
    scale = q.shape[-1] ** -0.5
    if how.weight_last:
        root = how.working(scale**0.5)
        return how.matmul(how.store(q * root), how.store(k * root).swapaxes(1, 2))
    return how.store(how.matmul(q, k.swapaxes(1, 2)) * how.working(scale))


def _key_by_key(scores: Array, v: Array, how: Arithmetic) -> Array:
    """Softmax, then one key after the other into the sum, which loses the most of all orders, [H_q, n, D]."""
    weights = how.softmax(scores)
    mixed = np.zeros((*scores.shape[:2], v.shape[-1]), how.working)
    for key in range(scores.shape[-1]):
        mixed = mixed + weights[..., key, None] * v[:, None, key]
    return how.store(mixed)


def _in_tiles(scores: Array, v: Array, how: Arithmetic) -> Array:
    """Softmax and weighted values in one pass over tiles of keys, as fused kernels compute them, [H_q, n, D]."""
    highest = np.full((*scores.shape[:2], 1), -np.inf, how.working)
    total, mixed = np.zeros_like(highest), np.zeros((*scores.shape[:2], v.shape[-1]), how.working)
    for start in range(0, scores.shape[-1], TILE):
        tile = scores[..., start : start + TILE]
        raised = np.maximum(highest, tile.max(axis=-1, keepdims=True))
        level = np.where(np.isfinite(raised), raised, 0)  # a tile may be hidden from a query
        shrink, powers = np.exp(highest - level), how.store(np.exp(tile - level))
        total = total * shrink + powers.sum(axis=-1, keepdims=True)
        mixed = mixed * shrink + powers @ v[:, start : start + TILE]
        highest = raised
    return how.store(mixed / total)


@dataclass(frozen=True, eq=False)
class RopeCall:
    """x [H, T, D] at ``positions`` [T]. ``layout`` is the one that the kernel declares."""

    x: Array
    positions: Array
    base: float
    layout: str = "half-split"
    exact_angles: bool = False
    """Legal errors are those of the rotation alone."""

    axes = ("head", "token", "channel")
    kind = "rope"

    @property
    def inputs(self) -> tuple[Any, ...]:
        return self.x, self.positions, self.base

    def truth(self) -> Array:
        """The oracle's answer, [H, T, D]."""
        turn = rotate if self.layout == "half-split" else rotate_interleaved
        frequencies = inverse_frequencies(self.x.shape[-1], self.base)
        return np.asarray(turn(self.x.astype(np.float64), angles(self.positions, frequencies)))

    def simulated(self, how: Arithmetic) -> Array:
        """A right kernel's answer in the arithmetic ``how``, [H, T, D]."""
        first, second = self.pairs(self.x.astype(how.working))
        angle = self._angles(how)  # [T, D/2]
        cos, sin = (how.store(table.astype(how.working)) for table in (np.cos(angle), np.sin(angle)))
        a, b = how.store(first * cos - second * sin), how.store(second * cos + first * sin)
        return self.joined(a, b)

    def pairs(self, x: Array) -> tuple[Array, Array]:
        """First and second entries of the pairs of x [..., D], each [..., D/2]."""
        if self.layout == "half-split":
            first, second = np.split(x, 2, axis=-1)
            return first, second
        return x[..., 0::2], x[..., 1::2]

    def joined(self, first: Array, second: Array) -> Array:
        """The opposite of ``pairs``."""
        if self.layout == "half-split":
            return np.concatenate([first, second], axis=-1)
        return np.stack([first, second], axis=-1).reshape(*first.shape[:-1], -1)  # [..., D/2, 2] to [..., D]

    def _angles(self, how: Arithmetic) -> Array:
        """Angles [T, D/2] in float32 at least."""
        if self.exact_angles:
            return np.asarray(angles(self.positions, inverse_frequencies(self.x.shape[-1], self.base)))
        return how.angle(self.positions.astype(how.working)[:, None] * self._frequencies(how))

    def _frequencies(self, how: Arithmetic) -> Array:
        """Frequencies [D/2]: the exact ones rounded, powers or exponentials in the format, or one from the other."""
        D = self.x.shape[-1]
        exponents = (np.arange(0, D, 2) / D).astype(how.working)
        rounded = inverse_frequencies(D, self.base).astype(how.working)
        if how.split and D > 2:
            steps = np.full(D // 2, rounded[1], how.working)
            return np.asarray(np.cumprod(steps, dtype=how.working) / steps)
        if how.narrow_softmax and how.weight_last:
            return np.asarray(np.exp(-exponents * np.log(how.working(self.base))))
        return np.asarray(1 / how.working(self.base) ** exponents) if how.narrow_softmax else rounded


@dataclass(frozen=True, eq=False)
class NormCall:
    """x [n, hidden_size], weight [hidden_size]."""

    x: Array
    weight: Array
    eps: float

    axes = ("row", "channel")
    kind = "rms_norm"

    @property
    def inputs(self) -> tuple[Any, ...]:
        return self.x, self.weight, self.eps

    def truth(self) -> Array:
        """The oracle's answer, [n, hidden_size]."""
        return np.asarray(rms_norm(self.x.astype(np.float64), self.weight.astype(np.float64), self.eps))

    def simulated(self, how: Arithmetic) -> Array:
        """A right kernel's answer in the arithmetic ``how``, [n, hidden_size]."""
        return how.norm(self.x.astype(how.working), self.weight.astype(how.working), self.eps)


Call = AttentionCall | RopeCall | NormCall
Reading = Callable[..., Array]
Answer = Callable[[Call], Array]


class OperatorYardstick:
    """Oracle and legal errors of calls in one precision, computed once a call."""

    def __init__(self, precision: Precision) -> None:
        self.precision = precision
        self._remembered: OrderedDict[bytes, tuple[Array, list[Array]]] = OrderedDict()

    def budget(self, reading: Reading, calls: Sequence[Call]) -> tuple[Array, Budget]:
        """What ``reading`` of the oracle's answers gives, and the budget of an error against it."""
        answers = [self._answers(call) for call in calls]
        wanted = rows(reading(*(truth for truth, _ in answers)))
        legal = [rows(reading(*found)) for found in zip(*(simulated for _, simulated in answers), strict=True)]
        found = bounds(np.array(legal) - wanted, wanted, self.precision)
        return wanted, replace(found, spread=float(np.sqrt((wanted**2).mean())))  # nothing is centred

    def _answers(self, call: Call) -> tuple[Array, list[Array]]:
        """The oracle's answer, and those of the naive variants and noise runs."""
        key = _digest(call)
        if key not in self._remembered:
            simulated = [call.simulated(how).astype(np.float64) for how in variants(self.precision)]
            self._remembered[key] = call.truth(), simulated
            while len(self._remembered) > REMEMBERED:
                self._remembered.popitem(last=False)
        return self._remembered[key]


def rows(values: Array) -> Array:
    """Values of any shape as rows of their last axis, [n, K]."""
    return values.reshape(prod(values.shape[:-1]), values.shape[-1])


def both(one: Budget, other: Budget) -> Budget:
    """The budget of a difference of two results with these budgets."""
    return Budget(
        size=hypot(one.size, other.size),
        spread=max(one.spread, other.spread),
        overall=hypot(one.overall, other.overall),
        rows=np.hypot(one.rows, other.rows),
        largest=hypot(one.largest, other.largest),
        reading=np.hypot(one.reading, other.reading),
    )


def _digest(call: Call) -> bytes:
    found = hashlib.blake2b(call.kind.encode())
    for one in fields(call):
        value = getattr(call, one.name)
        if isinstance(value, np.ndarray):
            found.update(repr((value.shape, value.dtype.str)).encode() + np.ascontiguousarray(value).tobytes())
        else:
            found.update(repr(value).encode())
    return found.digest()
