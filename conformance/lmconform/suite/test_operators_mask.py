"""Attention kernels by themselves: which keys a query sees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lmconform.adapter import Array
from lmconform.judging.operators import AttentionCall
from lmconform.spec.causal_mask import causal_visible
from lmconform.suite.dsl import decides
from lmconform.suite.kernel_expect import KernelExpect
from lmconform.suite.operators import (
    ATTENTION,
    KEYS,
    Answered,
    Kernel,
    KernelDraw,
    Sizes,
    equal_products,
    showing,
    sizes,
)

SEVERAL = (2, 5, 16, 17)
SQUARE = (1, 2, 5, 16, 17, 64, 65)
WEIGHTS = ("head", "query", "key shown in channel")


def weights(kernel: Kernel, call: AttentionCall, keys: Array) -> Answered:
    """Weights [H_q, n, K] on the keys shown."""
    return kernel.read(lambda out: out[..., : len(keys)], call, axes=WEIGHTS)


def equal_scores(draw: KernelDraw, shape: Sizes) -> tuple[AttentionCall, Array]:
    """Queries of 0, so that every visible key weighs the same; the keys shown."""
    call = draw.attention(shape)
    return showing(draw, replace(call, q=np.zeros_like(call.q)))


@decides("CM-2", "7aa6e242", door="operators", on=(ATTENTION,), shape=sizes(keys=SQUARE, queries=SQUARE, mask="causal"))
def test_a_causal_kernel_sees_the_own_position(
    kernel: Kernel, expect: KernelExpect, draw: KernelDraw, shape: Sizes
) -> None:
    call, keys = equal_scores(draw, shape)
    own = np.arange(shape.m - shape.n, shape.m)[:, None] == keys
    expect.sees(weights(kernel, call, keys), own, "weight of a position on itself")


@decides("CM-3", "d02a68df", door="operators", on=(ATTENTION,), shape=sizes(keys=KEYS[1:], mask="causal"))
def test_a_causal_kernel_sees_all_before(kernel: Kernel, expect: KernelExpect, draw: KernelDraw, shape: Sizes) -> None:
    call, keys = equal_scores(draw, shape)
    before = np.arange(shape.m - shape.n, shape.m)[:, None] > keys
    expect.sees(weights(kernel, call, keys), before, "weight on an earlier position")


@decides("CM-4", "74e9cc30", door="operators", on=(ATTENTION,), shape=sizes(queries=SEVERAL, mask="causal"))
def test_a_causal_kernel_sees_nothing_ahead(
    kernel: Kernel, expect: KernelExpect, draw: KernelDraw, shape: Sizes
) -> None:
    call, keys = showing(draw, draw.attention(shape))
    ahead = hidden(kernel, call, keys, causal_visible(shape.n, shape.m))
    expect.zero(ahead, "weight on a later position")


@decides("CM-5", "1c6644ab", door="operators", on=(ATTENTION,), shape=sizes(mask="causal", chunk=True))
def test_a_chunk_is_aligned_at_the_lower_right(
    kernel: Kernel, expect: KernelExpect, draw: KernelDraw, shape: Sizes
) -> None:
    call, keys = equal_scores(draw, shape)
    visible = causal_visible(shape.n, shape.m)
    expect.sees(weights(kernel, call, keys), visible[:, keys], "weight on a key that a chunk over a cache sees")
    expect.zero(hidden(kernel, call, keys, visible), "weight on a key that a chunk over a cache does not see")


@decides("CM-6", "9adf5377", door="operators", on=(ATTENTION,), shape=sizes(queries=SEVERAL, mask="causal"))
def test_a_huge_score_ahead_weighs_nothing(
    kernel: Kernel, expect: KernelExpect, draw: KernelDraw, shape: Sizes
) -> None:
    """Keys up to the first query's have a huge negative product with every query, those after it a huge positive."""
    call, keys = showing(draw, draw.attention(shape))
    q, k = equal_products(kernel, shape)
    first = shape.m - shape.n  # the last key that query 0 sees
    k[:, : first + 1] *= -1
    call = replace(call, q=q, k=k)
    expect.zero(hidden(kernel, call, keys, causal_visible(shape.n, shape.m)), "weight on a later key of huge score")


@decides("CM-7", "46ad8948", door="operators", on=(ATTENTION,), shape=sizes(queries=SEVERAL, mask="given"))
def test_a_query_that_sees_nothing_leaves_the_others_alone(
    kernel: Kernel, expect: KernelExpect, draw: KernelDraw, shape: Sizes
) -> None:
    call = draw.attention(shape)
    blind = draw.integers(shape.n)
    others = np.arange(shape.n) != blind
    visible = draw.integers(2, shape.n, shape.m).astype(bool)
    visible[:, 0] = True
    masked = visible.copy()
    masked[blind] = False
    got, wanted = (
        kernel.read(lambda out: out[:, others], replace(call, given=mask), axes=call.axes) for mask in (masked, visible)
    )
    expect.close(got=got, wanted=wanted, what="output of a query beside one that sees no key")


@decides("CM-9", "79114e29", door="operators", on=(ATTENTION,), shape=sizes(keys=(1,), queries=(1,)))
def test_a_lone_key_has_all_the_weight(kernel: Kernel, expect: KernelExpect, draw: KernelDraw, shape: Sizes) -> None:
    call = draw.attention(shape)
    call = replace(call, v=np.ones_like(call.v))
    expect.zero(kernel.read(lambda out: out - 1, call, axes=call.axes), "weight of a lone token on itself, less 1")


def hidden(kernel: Kernel, call: AttentionCall, keys: Array, visible: Array) -> Answered:
    """Weights on the keys that are not visible, [H_q, pairs]."""
    query, channel = np.nonzero(~visible[:, keys])
    return kernel.read(lambda out: out[:, query, channel], call, axes=("head", "pair of query and hidden key"))
