"""Attention kernels by themselves: what a query makes of the keys that it sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import ml_dtypes
import numpy as np

from lmconform.adapter import Array
from lmconform.judging.operators import Answer, AttentionCall, Call
from lmconform.spec.causal_mask import masked_softmax
from lmconform.suite.dsl import decides
from lmconform.suite.kernel_expect import KernelExpect
from lmconform.suite.operators import (
    ATTENTION,
    GRID,
    KEYS,
    Answered,
    Kernel,
    KernelDraw,
    Sizes,
    equal_products,
    needle,
    raised,
    showing,
    sizes,
)

GROUPED = ((6, 2), (8, 2), (6, 3))
SHARED = ((4, 2), (6, 2), (8, 2), (6, 3))
SHORT = tuple(m for m in KEYS if m <= 17)
LONG = tuple(m for m in KEYS if m >= 15)


def one_channel(kernel: Kernel, call: AttentionCall) -> Answered:
    """Channel 0 of the output, [1, H_q·n], of values that are equal in all channels, as are their errors."""
    return kernel.read(lambda out: out[..., 0].reshape(1, -1), call, axes=("row", "query, head after head:"))


def wrongly(
    *,
    scale: float = 1.0,
    visible: Array | None = None,
    heads: Array | None = None,
    sink: bool = False,
    values: Callable[[Array], Array] | None = None,
) -> Answer:
    """Attention with a fault, in float64.

    Scores times ``scale``; another mask; KV heads [H_q] of the query heads; a further key of score 0 without a value;
    values changed.
    """

    def answer(call: Call) -> Array:
        assert isinstance(call, AttentionCall)
        H_q, H_kv = len(call.q), len(call.k)
        read = np.arange(H_q) // (H_q // H_kv) if heads is None else heads
        q, k, v = call.q.astype(np.float64), call.k[read].astype(np.float64), call.v[read].astype(np.float64)
        scores = scale * q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])  # [H_q, n, m]
        seen = call.visible() if visible is None else visible
        if sink:
            scores, seen, v = (np.pad(one, [*[(0, 0)] * (one.ndim - 1), (0, 1)]) for one in (scores, seen, v))
            v, seen[:, -1] = np.pad(v[..., :-1], [(0, 0), (0, 1), (0, 0)]), True
        return np.asarray(masked_softmax(scores, seen) @ (v if values is None else values(v)))

    return answer


@decides("SDP-10", "f7b4c452", door="operators", on=(ATTENTION,), shape=sizes(keys=KEYS[1:]))
def test_an_attention_kernel_computes_the_definition(
    kernel: Kernel, expect: KernelExpect, draw: KernelDraw, shape: Sizes
) -> None:
    call = draw.attention(shape)
    expect.agrees(kernel.run(call), "attended values", fault=wrongly(scale=1.25))


@decides("SDP-1", "99185296", door="operators", on=(ATTENTION,), shape=sizes(keys=(2,), queries=(1,)))
def test_scores_are_divided_by_the_root_of_the_head_dimension(
    kernel: Kernel, expect: KernelExpect, draw: KernelDraw, shape: Sizes
) -> None:
    """Two keys: one gives the product 0, one a product near the root of D. The ratio of their weights is the scale."""
    signs = (2 * draw.integers(2, shape.D) - 1).astype(np.float32)
    share = 2.0 ** -round(np.log2(shape.D) / 2)
    k = np.stack([np.zeros(shape.D, np.float32), signs * np.float32(share)])  # [m, D]
    call = draw.attention(shape)
    call = replace(call, q=np.broadcast_to(signs, call.q.shape), k=np.broadcast_to(k, call.k.shape))
    call, _ = showing(draw, call)

    def scale(out: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):  # a kernel may give anything
            return np.asarray(np.log(out[..., 1] / out[..., 0]) / (shape.D * share)).T

    read = kernel.read(scale, call, axes=("query", "head"))
    expect.agrees(read, f"scale of the scores, where 1/sqrt(D) is {shape.D**-0.5:.6g}", fault=wrongly(scale=1.1))


@decides("SDP-2", "48ae0874", door="operators", on=(ATTENTION,), shape=sizes(keys=LONG))
def test_weights_of_a_kernel_sum_to_1(kernel: Kernel, expect: KernelExpect, draw: KernelDraw, shape: Sizes) -> None:
    """All scores lie far below 0, the score of a key that is not there."""
    call = raised(draw.attention(shape), np.full(shape.m, -8.0))
    call = replace(call, v=np.ones_like(call.v))
    expect.agrees(one_channel(kernel, call), "sum of the weights", fault=wrongly(sink=True))


@decides("SDP-5", "5fe73bf8", door="operators", on=(ATTENTION,), shape=sizes(keys=LONG))
def test_a_vector_added_to_all_keys_changes_nothing(
    kernel: Kernel, expect: KernelExpect, draw: KernelDraw, shape: Sizes
) -> None:
    """The vector is such that all scores move far below 0."""
    call = draw.attention(shape)
    call, moved = raised(call, np.zeros(shape.m)), raised(call, np.full(shape.m, -8.0))
    what = "output after a vector was added to all keys"
    expect.close(got=kernel.run(moved), wanted=kernel.run(call), what=what, fault=wrongly(sink=True))


@decides("SDP-4", "f4af06d0", door="operators", on=(ATTENTION,), shape=sizes(keys=LONG, queries=(1,)))
def test_the_order_of_keys_does_not_matter_to_a_kernel(
    kernel: Kernel, expect: KernelExpect, draw: KernelDraw, shape: Sizes
) -> None:
    """One query, which sees all keys under either mask."""
    call, order = needle(draw.attention(shape), shape.m - 1), draw.order(shape.m)
    moved = replace(call, k=call.k[:, order], v=call.v[:, order])
    blind = wrongly(visible=np.arange(shape.m)[None] < shape.m - 1)
    what = "output after the pairs of keys and values were put in another order"
    expect.close(got=kernel.run(moved), wanted=kernel.run(call), what=what, fault=blind)


@decides("SDP-3", "663580cd", door="operators", on=(ATTENTION,), shape=sizes())
def test_the_output_is_linear_in_the_values(
    kernel: Kernel, expect: KernelExpect, draw: KernelDraw, shape: Sizes
) -> None:
    one, v = needle(draw.attention(shape), 0), draw.numbers(shape.H_kv, shape.m, shape.D)
    other, joined = replace(one, v=v), replace(one, v=2 * one.v + v)
    expect.close(
        got=kernel.read(lambda first, second: 2 * first + second, one, other, axes=one.axes),
        wanted=kernel.run(joined),
        what="twice the output for some values plus that for others, against that for their sum",
        fault=wrongly(values=lambda v: v.astype(ml_dtypes.float8_e5m2).astype(np.float64)),
    )


@decides("SDP-2", "48ae0874", door="operators", on=(ATTENTION,), shape=sizes(keys=SHORT))
def test_the_output_lies_among_the_values(kernel: Kernel, expect: KernelExpect, draw: KernelDraw, shape: Sizes) -> None:
    call = draw.attention(shape, loud=False)
    near = 1 + draw.integers(4, *call.v.shape) * GRID
    call = replace(call, v=(np.sign(call.v[:, :1] + GRID / 2) * near).astype(np.float32))
    values = np.repeat(call.v, shape.H_q // shape.H_kv, axis=0)[:, None]  # [H_q, 1, m, D]
    seen = call.visible()[None, :, :, None]  # [1, n, m, 1]
    lower, upper = np.where(seen, values, np.inf).min(axis=2), np.where(seen, values, -np.inf).max(axis=2)
    what = "output, between the least and the greatest visible value"
    expect.inside(kernel.run(call), lower, upper, what, fault=wrongly(sink=True))


@decides("SDP-8", "585efdb7", door="operators", on=(ATTENTION,), shape=sizes(groups=((2, 2), *SHARED)))
def test_heads_do_not_touch_each_other(kernel: Kernel, expect: KernelExpect, draw: KernelDraw, shape: Sizes) -> None:
    call, other = draw.attention(shape), draw.attention(shape)
    head = int(draw.integers(shape.H_kv))
    own = np.arange(shape.H_q) // (shape.H_q // shape.H_kv) == head
    mixed = {name: getattr(call, name).copy() for name in "qkv"}
    for name, changed in (("q", own), ("k", head), ("v", head)):
        mixed[name][changed] = getattr(other, name)[changed]
    got, wanted = (kernel.read(lambda out: out[~own], one, axes=call.axes) for one in (replace(call, **mixed), call))
    turned = wrongly(heads=(np.arange(shape.H_q) // (shape.H_q // shape.H_kv) + 1) % shape.H_kv)
    expect.close(got=got, wanted=wanted, what="output of heads that did not change", fault=turned)


@decides("SDP-10", "f7b4c452", door="operators", on=(ATTENTION,), shape=sizes(keys=LONG, queries=(1, 2, 17)))
def test_keys_read_in_tiles_give_what_they_give_at_once(
    kernel: Kernel, expect: KernelExpect, draw: KernelDraw, shape: Sizes
) -> None:
    """The last key weighs as much as all others; the scores of each half of these lie at a height of their own."""
    heights = np.where(np.arange(shape.m) < shape.m // 2, 2.0, 0.0)
    heights[-1] = 3 + np.log(shape.m)
    call = raised(draw.attention(shape), heights)
    seen = call.visible().copy()
    seen[:, -1] = False
    expect.agrees(kernel.run(call), "attended values over several tiles of keys", fault=wrongly(visible=seen))


@decides("SDP-10", "f7b4c452", door="operators", on=(ATTENTION,), shape=sizes(keys=LONG, queries=(1,)))
def test_keys_given_twice_change_nothing(kernel: Kernel, expect: KernelExpect, draw: KernelDraw, shape: Sizes) -> None:
    call = raised(draw.attention(shape), np.full(shape.m, -8.0))
    twice = replace(call, k=np.tile(call.k, (1, 2, 1)), v=np.tile(call.v, (1, 2, 1)))
    what = "output after all pairs of keys and values were given twice"
    expect.close(got=kernel.run(twice), wanted=kernel.run(call), what=what, fault=wrongly(sink=True))


@decides("SDP-6", "509625e3", door="operators", on=(ATTENTION,), shape=sizes(keys=KEYS[1:]))
def test_a_query_of_0_weighs_all_keys_equally(
    kernel: Kernel, expect: KernelExpect, draw: KernelDraw, shape: Sizes
) -> None:
    call, keys = showing(draw, draw.attention(shape))
    call = replace(call, q=np.zeros_like(call.q))
    read = kernel.read(lambda out: out[..., : len(keys)], call, axes=("head", "query", "key shown in channel"))
    expect.agrees(read, "weight of a key, for a query of 0", fault=wrongly(sink=True))


@decides("SDP-7", "4349bf3d", door="operators", on=(ATTENTION,), shape=sizes(queries=(1,)))
def test_huge_scores_choose_their_key(kernel: Kernel, expect: KernelExpect, draw: KernelDraw, shape: Sizes) -> None:
    """One key has a huge positive product with every query, all others a huge negative one."""
    call, (q, k) = draw.attention(shape), equal_products(kernel, shape)
    chosen = draw.integers(shape.m)
    k[:, np.arange(shape.m) != chosen] *= -1
    expect.agrees(kernel.run(replace(call, q=q, k=k)), f"output, where key {chosen} has the only large score")


@decides("GQA-2", "7229e175", door="operators", on=(ATTENTION,), shape=sizes(groups=GROUPED))
def test_each_query_head_reads_the_values_of_its_kv_head(
    kernel: Kernel, expect: KernelExpect, draw: KernelDraw, shape: Sizes
) -> None:
    call = draw.attention(shape)
    signature = np.arange(1, shape.H_kv + 1, dtype=np.float32)[:, None, None]
    call = replace(call, v=np.broadcast_to(signature, call.v.shape))
    what = "value of the KV head, which is its number from 1"
    expect.agrees(
        one_channel(kernel, call),
        what,
        fault=wrongly(heads=np.arange(shape.H_q) % shape.H_kv),
    )


@decides("GQA-1", "5313a0d9", door="operators", on=(ATTENTION,), shape=sizes(keys=LONG, queries=(1,), groups=GROUPED))
def test_each_query_head_reads_the_keys_of_its_kv_head(
    kernel: Kernel, expect: KernelExpect, draw: KernelDraw, shape: Sizes
) -> None:
    """Key g of KV head g has the large score, and value g is the number g."""
    call = draw.attention(shape)
    q, k, v = np.zeros_like(call.q), np.zeros_like(call.k), np.zeros_like(call.v)
    q[..., 0], k[np.arange(shape.H_kv), np.arange(shape.H_kv), 0] = 32, 16 * np.sqrt(shape.D) // 1
    v[:, : shape.H_kv] = np.arange(shape.H_kv, dtype=np.float32)[None, :, None]
    out = kernel.run(replace(call, q=q, k=k, v=v))
    expect.agrees(
        out,
        "value of the key that is loud in the KV head, which is the head's number",
        fault=wrongly(heads=np.arange(shape.H_q) % shape.H_kv),
    )


@decides("GQA-3", "709b6f4b", door="operators", on=(ATTENTION,), shape=sizes(groups=GROUPED))
def test_shared_heads_give_what_copies_of_them_give(
    kernel: Kernel, expect: KernelExpect, draw: KernelDraw, shape: Sizes
) -> None:
    call = draw.attention(shape)
    group = shape.H_q // shape.H_kv
    copied = replace(call, k=np.repeat(call.k, group, axis=0), v=np.repeat(call.v, group, axis=0))
    turned = wrongly(heads=np.arange(shape.H_q) % shape.H_kv)
    expect.close(
        got=kernel.run(call),
        wanted=kernel.run(copied),
        what="output of heads that share keys and values, against copies of these",
        fault=lambda one: turned(one) if one is call else one.truth(),
    )
