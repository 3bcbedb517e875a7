"""The least time that a machine can take for counted work, and the batch at which bandwidth and compute balance.

The roofline model (Williams, Waterman and Patterson 2009): a pass takes at least its bytes over the bandwidth, and at
least its operations over the rate of products; the larger of the two is the floor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from benchmarks.counting import Formats, Work, decode_step
from lmconform.checkpoints.layout import Shape


@dataclass(frozen=True)
class Rates:
    """What a machine was measured to do."""

    bandwidth: float
    """Bytes a second, streamed from memory."""
    products: float
    """Floating-point operations a second, in large matrix products."""

    @property
    def flops_per_byte(self) -> float:
        """Operations that fit into the time of one byte."""
        return self.products / self.bandwidth


@dataclass(frozen=True)
class Floor:
    """The least time of a pass, and what sets it."""

    seconds: float
    bound: Literal["memory", "compute"]


def floor(work: Work, rates: Rates) -> Floor:
    """Return the least time in which a machine of these rates can do ``work``."""
    reading, computing = work.bytes / rates.bandwidth, work.flops / rates.products
    return Floor(max(reading, computing), "memory" if reading >= computing else "compute")


def balance_batch(shape: Shape, rates: Rates, formats: Formats, length: float = 0) -> float | None:
    """Return the batch whose decode step takes as long to read as to compute, or None if there is none.

    Up to it further rows are nearly free. With ``length`` 0 keys and values are left out, as textbooks do: 156 for an
    A100 (312 TFLOP/s, 2 TB/s) and Llama 2 7B in float16. With it each row reads its own; where that alone takes longer
    than a row's products, no batch balances.
    """
    one = decode_step(shape, length, formats)
    spare = one.flops / rates.products - one.kv_bytes / rates.bandwidth  # seconds by which a row brings compute closer
    return one.weight_bytes / rates.bandwidth / spare if spare > 0 else None


def measured_balance(steps: Mapping[int, float]) -> float:
    """Return where the flat and the sloped part of a batch sweep would meet: seconds a step by batch size.

    The flat part is the step of the smallest batch, the slope that of the best throughput. Where throughput still grows
    at the end of the sweep, the true point lies further out.
    """
    flat = steps[min(steps)]
    return flat * max(batch / seconds for batch, seconds in steps.items())
