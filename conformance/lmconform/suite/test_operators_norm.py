"""RMSNorm kernels by themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lmconform.adapter import Array
from lmconform.judging.operators import Answer, Call, NormCall
from lmconform.suite.dsl import decides
from lmconform.suite.kernel_expect import KernelExpect
from lmconform.suite.operators import (
    NORM,
    Kernel,
    KernelDraw,
    norm_call,
    one_of,
    widths,
)

LOUD = 512.0
"""Float16 holds it; its square is infinite there."""


def wrongly(
    *, eps: float = 1.0, outside: bool = False, centred: bool = False, summed: bool = False, narrow: bool = False
) -> Answer:
    """RMSNorm with a fault, in float64.

    eps times ``eps``, or outside of the root; the mean taken away; the sum of squares for their mean; squares beyond
    float16 infinite.
    """

    def answer(call: Call) -> Array:
        assert isinstance(call, NormCall)
        x = call.x.astype(np.float64)
        x = x - x.mean(axis=-1, keepdims=True) * centred
        power = (x * x).sum(axis=-1, keepdims=True) / (1 if summed else x.shape[-1])
        power = np.where(narrow & (np.abs(x).max(axis=-1, keepdims=True) > 255), np.inf, power)
        root = np.sqrt(power) + call.eps if outside else np.sqrt(power + call.eps * eps)
        return np.asarray(x / root * call.weight)

    return answer


@decides("PNR-7", "b4f091f9", door="operators", on=(NORM,), width=widths())
def test_a_norm_kernel_computes_the_definition(
    kernel: Kernel, expect: KernelExpect, draw: KernelDraw, width: int
) -> None:
    expect.agrees(kernel.run(norm_call(draw, width)), "normed rows", fault=wrongly(summed=True))


@decides("PNR-5", "580dcd79", door="operators", on=(NORM,), width=widths(), eps=one_of(1e-5, 1e-6))
def test_eps_of_a_kernel_stands_under_the_root(
    kernel: Kernel, expect: KernelExpect, draw: KernelDraw, width: int, eps: float
) -> None:
    """Rows so quiet that eps is as large as their mean square."""
    call = norm_call(draw, width, size=2.0 ** round(np.log2(eps) / 2), eps=eps)
    expect.agrees(kernel.run(call), f"normed quiet rows, with eps {eps:g}", fault=wrongly(outside=True))


@decides("PNR-6", "179b3c25", door="operators", on=(NORM,), width=widths())
def test_a_norm_kernel_keeps_the_mean(kernel: Kernel, expect: KernelExpect, draw: KernelDraw, width: int) -> None:
    call = norm_call(draw, width)
    call = replace(call, x=call.x + np.float32(4))
    expect.agrees(kernel.run(call), "normed rows with a mean of 4", fault=wrongly(centred=True))


@decides("PNR-4", "e2260399", door="operators", on=(NORM,), width=widths(), eps=one_of(2.0**-17, 2.0**-10))
def test_the_size_of_a_row_is_taken_out(
    kernel: Kernel, expect: KernelExpect, draw: KernelDraw, width: int, eps: float
) -> None:
    call = norm_call(draw, width, size=2.0**-5, eps=eps)
    larger = replace(call, x=4 * call.x, eps=16 * call.eps)

    def fixed(one: Call) -> Array:
        assert isinstance(one, NormCall)
        return replace(one, eps=1.0).truth()

    expect.close(got=kernel.run(larger), wanted=kernel.run(call), what="normed rows, 4 times as large", fault=fixed)


@decides("PNR-11", "299345be", door="operators", on=(NORM,), width=widths())
def test_loud_rows_are_normed(kernel: Kernel, expect: KernelExpect, draw: KernelDraw, width: int) -> None:
    call = norm_call(draw, width, size=LOUD / 4)
    call.x[:, 0] = LOUD
    expect.agrees(kernel.run(call), "normed loud rows", fault=wrongly(narrow=True))
