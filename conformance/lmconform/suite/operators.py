"""The words of tests at the door ``operators``: the kernel under test, and the inputs it is given.

A test asks the kernel with *calls*, and compares *readings* of its answers: the whole answer, or a function of it such
as the attention weights that one-hot values show. What is expected of them is said in ``kernel_expect``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from lmconform.adapter import Array, AttentionOperator, NotOffered, Operator, RMSNormOperator, RopeOperator
from lmconform.judging.operators import (
    AttentionCall,
    Call,
    NormCall,
    OperatorYardstick,
    Reading,
    RopeCall,
)
from lmconform.suite.plan import BLOCKS, block_edges
from lmconform.suite.structures import Telling

ATTENTION, ROPE, NORM = AttentionOperator.kind, RopeOperator.kind, RMSNormOperator.kind
"""Kinds of operators, for ``decides(on=...)``."""
GROUPS = ((4, 4), (6, 2), (8, 2), (4, 1), (5, 5))
"""(H_q, H_kv): every map of heads is right where they are equal, some where the group is H_kv."""
KEYS = (1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 257)
"""Numbers of keys: both sides of the edges of blocks."""
QUERIES = (1, 2, 5, 16, 17)
WIDTHS = (16, 64, 32, 128)
"""Head dimensions, where the kernel declares none."""
HIDDEN_SIZES = (64, 48, 256, 1024)
GRID = 2.0**-7
"""Inputs are multiples of it with at most 7 significant bits, which bfloat16 and float16 hold exactly."""


@dataclass(frozen=True)
class Answered:
    """A reading of the kernel's answers, and the calls that it was asked with."""

    values: Array
    reading: Reading
    calls: tuple[Call, ...]
    axes: tuple[str, ...]

    def place(self, row: int, column: int) -> str:
        """Where the element stands, in words."""
        index: tuple[Any, ...] = (*np.unravel_index(row, self.values.shape[:-1]), column)
        shape = f"a call with {', '.join(_shape(call) for call in self.calls)}"
        return ", ".join(f"{axis} {int(i)}" for axis, i in zip(self.axes, index, strict=True)) + f", in {shape}"


class Kernel:
    """One operator of the engine. Stands where a test of a model has its ``model``."""

    vocab_size = 1

    def __init__(self, name: str, operator: Operator, yardstick: OperatorYardstick) -> None:
        self.name = name
        self.operator: Any = operator
        self.yardstick = yardstick

    @property
    def widths(self) -> tuple[int, ...]:
        """Head dimensions, or hidden sizes, to use with this kernel."""
        if isinstance(self.operator, RMSNormOperator):
            return self.operator.hidden_sizes or HIDDEN_SIZES
        return tuple(self.operator.head_dims or WIDTHS)

    def answer(self, call: Call) -> Array:
        """The kernel's answer, in float64."""
        return np.asarray(self.operator.run(*call.inputs), np.float64)

    def as_input(self, values: Array) -> Array:
        """An answer as the input of another call; every format but float64 lies within float32."""
        return values if self.yardstick.precision.compute == "float64" else values.astype(np.float32)

    def run(self, call: Call) -> Answered:
        """The kernel's whole answer."""
        return self.read(lambda values: values, call, axes=call.axes)

    def read(self, reading: Reading, *calls: Call, axes: tuple[str, ...]) -> Answered:
        """A reading of the kernel's answers; ``axes`` names its dimensions."""
        return Answered(reading(*(self.answer(call) for call in calls)), reading, calls, axes)


class KernelDraw:
    """Draws the numbers of one example from its seed."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def numbers(self, *shape: int, size: float = 1.0) -> Array:
        """Normal numbers on the grid, float32; ``size`` is a power of two."""
        drawn = np.clip(self._generator.standard_normal(shape), -3.9, 3.9)
        return (np.round(drawn * 16) / 16 * size).astype(np.float32)

    def integers(self, most: int, *shape: int) -> Array:
        """Integers from 0 to ``most`` - 1."""
        return self._generator.integers(most, size=shape)

    def places(self, length: int, most: int) -> Array:
        """Up to ``most`` places in order: the first, the last two, some beside the edges of blocks, and any others.

        The last key belongs to the last query; the one before it is the surest to lie in a last block partly filled.
        """
        edges = list(dict.fromkeys((max(length - 2, 0), *block_edges(length))))[: most // 2]
        inner = [*edges, *self._generator.permutation(np.setdiff1d(np.arange(1, length - 1), edges))][: most - 2]
        return np.unique([0, length - 1, *inner])

    def order(self, length: int) -> Array:
        """A permutation."""
        return self._generator.permutation(length)

    def attention(self, sizes: Sizes, loud: bool = True) -> AttentionCall:
        """Random q, k and v: loud scores spread by about 2, quiet ones by about 1/8.

        A dot product of D numbers spreads by the root of D, which the kernel's scale takes away.
        """
        size = 2.0 if loud else 0.125
        q = self.numbers(sizes.H_q, sizes.n, sizes.D, size=size)
        k, v = self.numbers(sizes.H_kv, sizes.m, sizes.D), self.numbers(sizes.H_kv, sizes.m, sizes.D)
        return AttentionCall(q, k, v, sizes.causal)


@dataclass(frozen=True)
class Sizes:
    """Shape and mask of an attention call."""

    H_q: int
    H_kv: int
    n: int
    m: int
    D: int
    causal: bool


def sizes(
    *,
    keys: tuple[int, ...] = KEYS,
    queries: tuple[int, ...] = QUERIES,
    groups: tuple[tuple[int, int], ...] = GROUPS,
    mask: str | None = None,
    chunk: bool = False,
) -> Telling:
    """Shapes that the kernel takes, n <= m; ``mask`` is ``none``, ``causal``, ``given``, or either of the first two.

    ``chunk`` asks for n < m. The most keys come first, with most queries and with fewer, which begin inside a block;
    then the most that fill all blocks, or lack one to do so. The structure raises NotOffered if the kernel takes no
    such shape.
    """

    def choices(kernel: Kernel) -> Choices:
        operator = kernel.operator
        masks = [one for one in ((mask,) if mask else ("none", "causal")) if one in operator.masks]
        if not masks:
            raise NotOffered(f"attention with the mask {mask or 'none, or causal'}")
        heads = [(H_q, H_kv) for H_q, H_kv in groups if operator.grouped or H_q == H_kv]
        if not heads:
            raise NotOffered("attention with fewer KV heads than query heads")
        most = operator.max_queries or max(keys)
        shapes = [(n, m) for m in keys for n in queries if n <= min(m - chunk, most)]
        if not shapes:
            raise NotOffered(f"attention with {min(queries)} queries")
        return shapes, heads, kernel.widths[:2], masks

    def strategy(kernel: Kernel) -> st.SearchStrategy[Sizes]:
        return st.builds(_sized, *(st.sampled_from(some) for some in choices(kernel)))

    def telling(kernel: Kernel) -> list[Sizes]:
        shapes, heads, widths, masks = choices(kernel)
        over = ([one for one in shapes if one[1] % BLOCKS[-1] == beyond] for beyond in (0, BLOCKS[-1] - 1))
        longest = [max(some, key=_keys_first) for some in (shapes, *over) if some]
        few = sorted(one for one in shapes if one[1] == longest[0][1])  # of the most keys, by their queries
        first = dict.fromkeys((longest[0], few[len(few) // 2], *longest[1:]))
        return [_sized(shape, heads[len(heads) // 2], widths[0], masks[-1]) for shape in first]

    return Telling(strategy, telling)


Choices = tuple[Sequence[tuple[int, int]], Sequence[tuple[int, int]], Sequence[int], Sequence[str]]
"""(n, m), (H_q, H_kv), D and masks to choose from."""


def _sized(shape: tuple[int, int], group: tuple[int, int], D: int, mask: str) -> Sizes:
    return Sizes(*group, *shape, D, mask == "causal")


def _keys_first(shape: tuple[int, int]) -> tuple[int, int]:
    return shape[::-1]


def widths() -> Callable[[Kernel], st.SearchStrategy[int]]:
    """Head dimensions, or hidden sizes, that the kernel takes."""
    return lambda kernel: st.sampled_from(kernel.widths)


def one_of(*values: Any) -> Callable[[Kernel], st.SearchStrategy[Any]]:
    """One of these."""
    return lambda kernel: st.sampled_from(values)


def norm_call(draw: KernelDraw, hidden_size: int, *, size: float = 1.0, eps: float = 1e-5, count: int = 3) -> NormCall:
    """Random rows and weights."""
    return NormCall(draw.numbers(count, hidden_size, size=size), draw.numbers(hidden_size) + np.float32(0.5), eps)


def showing(draw: KernelDraw, call: AttentionCall) -> tuple[AttentionCall, Array]:
    """The call with values that are one-hot at some keys, one a channel, and 0 elsewhere; and these keys, [K].

    Channel c of the output is the weight on key c of those returned; further channels are 0.
    """
    H_kv, m, D = call.v.shape
    keys = draw.places(m, D)
    v = np.zeros((H_kv, m, D), np.float32)
    v[:, keys, np.arange(len(keys))] = 1
    return replace(call, v=v), keys


def raised(call: AttentionCall, heights: Array) -> AttentionCall:
    """The call with ``heights`` [m] added to the scores of the keys; rounded, so that inputs stay on the grid."""
    q, k = call.q.copy(), call.k.copy()
    q[..., 0], k[..., 0] = 4, np.round(heights * np.sqrt(q.shape[-1]))[None] / 4
    return replace(call, q=q, k=k)


def needle(call: AttentionCall, key: int) -> AttentionCall:
    """The call with a key that has about as much weight as all others together."""
    heights = np.zeros(call.k.shape[1])
    heights[key] = 2 + np.log(len(heights))  # scores spread by 2, so that the mean of their powers is e^2
    return raised(call, heights)


def equal_products(kernel: Kernel, shape: Sizes) -> tuple[Array, Array]:
    """q and k whose every product is a quarter of the compute format's largest number."""
    half = 2.0**7 if kernel.yardstick.precision.compute == "float16" else 2.0**63
    q, k = np.zeros((shape.H_q, shape.n, shape.D), np.float32), np.zeros((shape.H_kv, shape.m, shape.D), np.float32)
    q[..., 0] = k[..., 0] = half
    return q, k


def _shape(call: Call) -> str:
    if isinstance(call, AttentionCall):
        (H_q, n, D), (H_kv, m, _) = call.q.shape, call.k.shape
        mask = "a mask" if call.given is not None else "causal" if call.causal else "no mask"
        return f"H_q {H_q}, H_kv {H_kv}, n {n}, m {m}, D {D}, {mask}"
    if isinstance(call, RopeCall):
        return f"D {call.x.shape[-1]}, base {call.base:g}, positions to {int(call.positions.max())}"
    return f"hidden_size {call.x.shape[-1]}, eps {call.eps:g}"
