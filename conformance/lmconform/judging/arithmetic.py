"""Number formats, and ways of computing in them that are all legal.

An ``Arithmetic`` says how one simulated engine rounds and orders its operations. ``variants`` lists eight naive ones
and four noise runs for a declared precision; their errors set the budget (``budgets.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from math import erf, pi, sqrt

import ml_dtypes
import numpy as np

from lmconform.adapter import Array, DType, Precision

UNIT_ROUNDOFF: dict[str, float] = {
    "float64": 2.0**-53,
    "float32": 2.0**-24,
    "tf32": 2.0**-11,
    "bfloat16": 2.0**-8,
    "float16": 2.0**-11,
    "fp8_e4m3": 2.0**-4,
    "fp8_e5m2": 2.0**-3,
    "q8_0": 2.0**-8,
    "int8": 2.0**-8,
}
"""Half the distance from 1 to the next number. For block formats, relative to the block's largest value."""

NAIVE_VARIANTS = 8
NOISE_RUNS = 4
_STORED = {
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
}


def unrounded(x: Array) -> Array:
    """What rounds nothing: ``x`` is in the format already, or in a wider one that is wanted."""
    return x


def rounder(dtype: DType) -> Callable[[Array], Array]:
    """The function that rounds an array to ``dtype`` and returns it in the format it came in."""
    if dtype == "float64":
        return unrounded
    if dtype == "float32":
        return lambda x: x if x.dtype == np.float32 else x.astype(np.float32).astype(x.dtype)
    if dtype == "tf32":
        return _round_tf32
    if dtype in ("q8_0", "int8"):
        return _round_block
    stored = _STORED[dtype]
    return lambda x: x.astype(stored).astype(x.dtype)


def _round_tf32(x: Array) -> Array:
    """Keep ten bits of the significand, round half to even."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    bits = (bits + 0xFFF + ((bits >> 13) & 1)) & np.uint32(0xFFFFE000)
    return bits.view(np.float32).astype(x.dtype)


def _round_block(x: Array) -> Array:
    """Eight-bit integers with one scale for the last axis: the coarsest form of these formats."""
    scale = np.abs(x).max(-1, keepdims=True) / 127
    return np.where(scale > 0, np.round(x / np.where(scale > 0, scale, 1)) * scale, 0).astype(x.dtype)


@dataclass(frozen=True)
class Arithmetic:
    """One legal way to compute: where results are rounded, in which order sums run."""

    working: type[np.floating]
    """NumPy format in which operations run before their results are rounded."""
    store: Callable[[Array], Array]
    """Rounds the result of an operation."""
    operand: Callable[[Array], Array]
    """Rounds what enters a product (tf32 rounds only there)."""
    cache: Callable[[Array], Array]
    """Rounds keys and values as they are cached."""
    scores: Callable[[Array], Array]
    """Rounds the final scores."""
    logprobs: Callable[[Array], Array]
    """Rounds log-probabilities."""
    split: bool = False
    """Sum products and softmax in two parts, the later part first; RoPE angles by repeated multiplication."""
    narrow_softmax: bool = False
    """Round between the steps of a softmax, and of a GELU by tanh."""
    weight_last: bool = False
    """A norm rounds before it multiplies by its weight."""
    angle: Callable[[Array], Array] = unrounded
    """Rounds the angles of RoPE, which are in float32 at least, whatever the compute format."""
    exact: bool = False
    """``working`` is the format that ``store`` rounds to, so that rounding more often changes nothing."""
    runs: int = 1
    """Simulated engines that differ by their noise alone; a decoder computes them side by side."""

    def repeated(self, x: Array) -> Array:
        """x [...] once a run, [runs, ...]."""
        return np.broadcast_to(x, (self.runs, *x.shape))

    def matmul(self, a: Array, b: Array) -> Array:
        """a [..., n, k] times b [..., k, m], rounded once, or once a part."""
        a, b = self.operand(a), self.operand(b)
        if not self.split:
            return self.store(a @ b)
        half = a.shape[-1] // 2
        later = self.store(a[..., half:] @ b[..., half:, :])
        return self.store(later + self.store(a[..., :half] @ b[..., :half, :]))

    def softmax(self, scores: Array) -> Array:
        """Softmax over the last axis."""
        shifted = scores - scores.max(-1, keepdims=True)
        if self.narrow_softmax:
            powers = self.store(np.exp(self.store(shifted)))
            return self.store(powers / self.store(powers.sum(-1, keepdims=True)))
        powers = np.exp(shifted)
        return self.store(powers / powers.sum(-1, keepdims=True))

    def norm(self, x: Array, weight: Array, eps: float) -> Array:
        """RMSNorm over the last axis; statistics in the working format."""
        scaled = x / np.sqrt((x * x).mean(-1, keepdims=True) + self.working(eps))
        return self.store(self.store(scaled) * weight) if self.weight_last else self.store(scaled * weight)

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        """LayerNorm over the last axis; statistics in the working format."""
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + self.working(eps))
        return self.store((self.store(scaled * weight) if self.weight_last else scaled * weight) + bias)

    def activate(self, name: str, x: Array) -> Array:
        """The activation that config.json calls ``name``, rounded once or, for a GELU by tanh, maybe step by step."""
        if name == "relu":
            return np.maximum(x, 0)
        with np.errstate(over="ignore"):  # exp and cubes of large entries, whose limits are right
            if name == "silu":
                return self.store(x / (1 + np.exp(-x)))
            if name == "gelu":
                normal = np.vectorize(erf, otypes=[float])(x / sqrt(2)).astype(x.dtype)
                return self.store(x * (1 + normal) / 2)
            step = self.store if self.narrow_softmax else lambda result: result
            inner = step(step(step(x**3) * self.working(0.044715)) + x)
            tanh = step(np.tanh(step(inner * self.working(sqrt(2 / pi)))))
            return self.store(x / 2 * step(1 + tanh))


def variants(precision: Precision) -> list[Arithmetic]:
    """Eight naive variants in this precision, then the noise runs."""
    plain = Arithmetic(
        working=np.float64 if precision.compute == "float64" else np.float32,
        store=rounder("float32" if precision.compute == "tf32" else precision.compute),
        operand=rounder(precision.compute),
        cache=_narrower(precision.kv_cache, precision.compute),
        scores=rounder(precision.scores),
        logprobs=rounder(precision.logprobs),
        exact=precision.compute in ("float64", "float32", "tf32"),
    )
    naive = [
        replace(plain, split=split, narrow_softmax=narrow, weight_last=last)
        for split, narrow, last in product((False, True), repeat=3)
    ]
    return naive + [noise(precision, run) for run in range(NOISE_RUNS)]


def _narrower(cache: DType, compute: DType) -> Callable[[Array], Array]:
    return rounder(cache) if UNIT_ROUNDOFF[cache] > UNIT_ROUNDOFF[compute] else unrounded


def noise(precision: Precision, seed: int = 0, runs: int = 1) -> Arithmetic:
    """float64 arithmetic whose every rounding multiplies by 1 + u·U(-1, 1)."""
    generator = np.random.Generator(np.random.SFC64(seed))

    def jitter(dtype: DType) -> Callable[[Array], Array]:
        width = np.float32(2 * UNIT_ROUNDOFF[dtype])

        def rounded(x: Array) -> Array:
            share = generator.random(x.shape, np.float32)  # in place from here on: most of a noise run is spent here
            share -= np.float32(0.5)
            share *= width
            return x + x * share

        return rounded

    store = jitter("float32" if precision.compute == "tf32" else precision.compute)
    operand = jitter("tf32") if precision.compute == "tf32" else unrounded
    cache = _narrower(precision.kv_cache, precision.compute)
    # Naive variants round angles in their own format. In float64 they round them as the oracle does, so that no error
    # is seen, although an engine's two results at different positions differ by it.
    angle = jitter("float64") if precision.compute == "float64" else unrounded
    scores, logprobs = jitter(precision.scores), jitter(precision.logprobs)
    return Arithmetic(np.float64, store, operand, cache, scores, logprobs, angle=angle, runs=runs)
