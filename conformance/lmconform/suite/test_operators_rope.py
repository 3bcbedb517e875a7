"""RoPE kernels by themselves, at positions that no prompt reaches."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np

from lmconform.adapter import Array
from lmconform.judging.operators import Answer, Call, RopeCall
from lmconform.spec.rope import inverse_frequencies
from lmconform.suite.dsl import decides
from lmconform.suite.kernel_expect import KernelExpect
from lmconform.suite.operators import (
    ROPE,
    Kernel,
    KernelDraw,
    one_of,
    widths,
)

BASES = (10_000.0, 500_000.0, 1_000_000.0)
FAR = 131_072
TOKENS = 8


def rope_call(kernel: Kernel, draw: KernelDraw, width: int, base: float, positions: Array | None = None) -> RopeCall:
    """Random heads at the first positions, or at ``positions`` [T]."""
    where = np.arange(TOKENS) if positions is None else np.asarray(positions)
    return RopeCall(draw.numbers(2, len(where), width), where, base, kernel.operator.layout)


def wrongly(*, base: float = 1.0, sign: float = 1.0, swapped: bool = False, narrow: bool = False) -> Answer:
    """RoPE with a fault, in float64: base times ``base``; the other direction; the other layout; bfloat16 angles."""

    def answer(call: Call) -> Array:
        assert isinstance(call, RopeCall)
        if swapped:
            call = replace(call, layout="interleaved" if call.layout == "half-split" else "half-split")
        angle = call.positions[:, None] * inverse_frequencies(call.x.shape[-1], call.base * base) * sign
        if narrow:
            angle = angle.astype(ml_dtypes.bfloat16).astype(np.float64)
        first, second = call.pairs(call.x.astype(np.float64))
        cos, sin = np.cos(angle), np.sin(angle)
        return call.joined(first * cos - second * sin, second * cos + first * sin)

    return answer


@decides("ROPE-2", "c483d0e0", door="operators", on=(ROPE,), width=widths(), base=one_of(*BASES))
def test_a_kernel_turns_each_pair_by_its_frequency(
    kernel: Kernel, expect: KernelExpect, draw: KernelDraw, width: int, base: float
) -> None:
    """Powers of two as positions, so that each frequency is read where its angle is near 1."""
    call = rope_call(kernel, draw, width, base, 2 ** np.arange(18))
    expect.agrees(kernel.run(call), "rotated heads", fault=wrongly(base=1.1))


@decides("ROPE-13", "d74bd200", door="operators", on=(ROPE,), width=widths())
def test_pairs_are_those_of_the_layout(kernel: Kernel, expect: KernelExpect, draw: KernelDraw, width: int) -> None:
    call = rope_call(kernel, draw, width, 10_000.0)
    expect.agrees(kernel.run(call), f"heads rotated in the {call.layout} layout", fault=wrongly(swapped=True))


@decides("ROPE-4", "6f105e36", door="operators", on=(ROPE,), width=widths())
def test_pairs_turn_from_first_to_second(kernel: Kernel, expect: KernelExpect, draw: KernelDraw, width: int) -> None:
    call = rope_call(kernel, draw, width, 10_000.0)
    x = call.joined(np.ones_like(call.pairs(call.x)[0]), np.zeros_like(call.pairs(call.x)[0]))
    read = kernel.read(lambda out: call.pairs(out)[1], replace(call, x=x), axes=("head", "token", "pair"))
    expect.agrees(read, "second entry of pairs that began as (1, 0): sine of the angle", fault=wrongly(sign=-1))


@decides("ROPE-15", "25707713", door="operators", on=(ROPE,), width=widths(), base=one_of(*BASES))
def test_position_0_turns_nothing(
    kernel: Kernel, expect: KernelExpect, draw: KernelDraw, width: int, base: float
) -> None:
    call = rope_call(kernel, draw, width, base, np.zeros(TOKENS, np.int64))
    expect.zero(kernel.read(lambda out: out - call.x, call, axes=call.axes), "change of heads at position 0")


@decides("ROPE-14", "860243a8", door="operators", on=(ROPE,), width=widths(), base=one_of(*BASES))
def test_a_turn_keeps_the_length_of_each_pair(
    kernel: Kernel, expect: KernelExpect, draw: KernelDraw, width: int, base: float
) -> None:
    call = rope_call(kernel, draw, width, base, draw.integers(FAR, TOKENS))
    read = kernel.read(lambda out: np.hypot(*call.pairs(out)), call, axes=("head", "token", "pair"))
    expect.agrees(read, "length of a pair", fault=wrongly(swapped=True))


@decides(
    "ROPE-1", "529456f4", door="operators", on=(ROPE,), width=widths(), base=one_of(*BASES), shift=one_of(1, 17, 1000)
)
def test_products_depend_on_the_difference_of_positions(
    kernel: Kernel, expect: KernelExpect, draw: KernelDraw, width: int, base: float, shift: int
) -> None:
    """Heads 0 and 1 as query and key: every token of one with every token of the other."""
    call = rope_call(kernel, draw, width, base)

    def products(out: Array) -> Array:
        return out[:1] @ out[1:].swapaxes(1, 2)  # [1, T, T]

    axes = ("pair of heads", "query", "key")
    got = kernel.read(products, replace(call, positions=call.positions + shift), axes=axes)
    wanted = kernel.read(products, call, axes=axes)
    expect.close(got=got, wanted=wanted, what=f"products of queries and keys {shift} positions on", fault=_absolute)


@decides("ROPE-15", "25707713", door="operators", on=(ROPE,), width=widths(), base=one_of(*BASES))
def test_two_turns_are_one(kernel: Kernel, expect: KernelExpect, draw: KernelDraw, width: int, base: float) -> None:
    one, other = draw.integers(1000, 2, TOKENS)
    call = rope_call(kernel, draw, width, base, one)
    again = replace(call, x=kernel.as_input(kernel.answer(call)), positions=other)
    once = replace(call, positions=one + other)
    got = kernel.read(lambda first, second: second, call, again, axes=call.axes)
    expect.close(got=got, wanted=kernel.run(once), what="heads turned twice, against once", fault=wrongly(narrow=True))


@decides("ROPE-16", "e61e1fc2", door="operators", on=(ROPE,), width=widths(), base=one_of(*BASES))
def test_angles_far_out_are_right(
    kernel: Kernel, expect: KernelExpect, draw: KernelDraw, width: int, base: float
) -> None:
    positions = np.sort(np.append(draw.integers(FAR, TOKENS - 2), (FAR - 1, FAR)))
    call = rope_call(kernel, draw, width, base, positions)
    expect.turns(kernel.run(call), "rotated heads at far positions", fault=wrongly(narrow=True))


def _absolute(call: Call) -> Array:
    """A kernel that adds 1 to every position beyond the first 5 of a call's range."""
    assert isinstance(call, RopeCall)
    beyond = np.where(call.positions > 5, call.positions + 1, call.positions)
    return replace(call, positions=beyond).truth()
