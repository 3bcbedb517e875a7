"""Single operators of the engine torch-kernels on random calls."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import cycle, product
from typing import Any

import numpy as np

from lmconform.adapter import OPERATORS, AttentionOperator, Refused, RMSNormOperator, RopeOperator
from lmconform.calibrate.table import Table
from lmconform.judging.operators import AttentionCall, Call, NormCall, OperatorYardstick, RopeCall, rows
from lmconform.suite.findings import Exceeded, Tally, Unfit
from lmconform.suite.kernel_expect import KernelExpect
from lmconform.suite.operators import (
    GROUPS,
    HIDDEN_SIZES,
    KEYS,
    QUERIES,
    WIDTHS,
    Kernel,
    KernelDraw,
    Sizes,
    needle,
    norm_call,
    raised,
)
from lmconform.transport.client import Connection, EngineSpec

BASES = (10_000.0, 500_000.0, 1_000_000.0)
FAR = 131_072


def measure(table: Table, kinds: Collection[str] = OPERATORS) -> None:
    """Every operator of these kinds that runs here."""
    dtype = table.dtype
    with Connection.start(EngineSpec("torch-kernels", options={"dtype": dtype}, in_process=True)) as connection:
        yardstick = OperatorYardstick(connection.description.precision)
        for name, operator in connection.operators().items():
            if operator.kind not in kinds:
                continue
            kernel = Kernel(name, operator, yardstick)
            for what, variant, call in _calls(operator):
                with suppress(Refused):
                    got = np.asarray(operator.run(*call.inputs), np.float64)
                    wanted, budget = yardstick.budget(lambda values: values, [call])
                    use = table.at(f"{operator.kind}: {what}", f"operator {name}{variant}")
                    use.add(rows(got) - wanted, budget, dtype)
            if isinstance(operator, RopeOperator):
                _far(kernel, operator, table)


def _calls(operator: Any) -> Iterator[tuple[str, str, Call]]:
    """What is asked, the variant of the operator, and the call; the same for all operators of a kind."""
    if isinstance(operator, AttentionOperator):
        yield from _attention(operator)
    elif isinstance(operator, RopeOperator):
        yield from _rope(operator)
    elif isinstance(operator, RMSNormOperator):
        for seed, (width, size) in enumerate(product(HIDDEN_SIZES, (2.0**-8, 1.0, 128.0))):
            call: NormCall = norm_call(KernelDraw(seed), width, size=size, count=12)
            yield "quiet, plain and loud rows", "", call
            yield "rows with a mean", "", replace(call, x=call.x + np.float32(4 * size))


def _attention(operator: AttentionOperator) -> Iterator[tuple[str, str, AttentionCall]]:
    """Numbers of keys and of queries, in turn with every group and width; each with every mask and kind of scores."""
    rest = cycle(product(GROUPS, WIDTHS[:3]))
    for seed, ((m, n), ((H_q, H_kv), D)) in enumerate(zip(product(KEYS[::2], QUERIES), rest, strict=False)):
        for mask in operator.masks if n <= m else ():
            draw = KernelDraw(seed)
            call = draw.attention(Sizes(H_q, H_kv, n, m, D, mask == "causal"))
            if mask == "given":
                seen = draw.integers(2, n, m) == 1
                seen[:, 0] = True
                call = replace(call, given=seen)
            for what, one in _variants(call, draw):
                yield what, f", mask {mask}", one


def _variants(call: AttentionCall, draw: KernelDraw) -> Iterator[tuple[str, AttentionCall]]:
    m = call.k.shape[1]
    yield "loud scores", call
    yield "quiet scores", replace(call, q=call.q / np.float32(16))
    yield "scores far below 0", raised(call, np.full(m, -8.0))
    yield "one heavy key", needle(call, int(draw.integers(m)))


def _rope(operator: RopeOperator) -> Iterator[tuple[str, str, RopeCall]]:
    draw = KernelDraw(0)
    for D, base in product(WIDTHS, BASES):
        for what, positions in (("first positions", np.arange(8)), ("powers of two", 2 ** np.arange(18))):
            yield what, "", RopeCall(draw.numbers(2, len(positions), D), positions, base, operator.layout)


def _far(kernel: Kernel, operator: RopeOperator, table: Table) -> None:
    """Angles at far positions, whose bound is that of a float32 product."""
    draw = KernelDraw(1)
    for D, base in product(WIDTHS, BASES):
        tally, positions = Tally(), np.sort(np.append(draw.integers(FAR, 6), (FAR - 1, FAR)))
        call = RopeCall(draw.numbers(2, len(positions), D), positions, base, operator.layout)
        with suppress(Exceeded, Unfit):
            KernelExpect(kernel, tally).turns(kernel.run(call), "angles", fault=lambda one: one.truth())
        table.at("rope: far angles", f"operator {kernel.name}").shares.append(tally.worst)
