"""What the machine can do at best: bytes streamed from memory, and operations in a matrix product.

Both are timed again in every round beside what is held against them, so that a slow minute slows both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from statistics import median

import torch

from benchmarks.roofline import Rates

STREAM_BYTES = {"cpu": 2**29, "cuda": 2**32}
"""Size of the buffer that is streamed: many times the largest cache; on a GPU its start must not count."""
PRODUCT_SECONDS = {"cpu": 0.05, "cuda": 0.002}
"""The product that is timed is the first, in powers of two, that takes so long."""
LARGEST_PRODUCT = 16384
TRIES = 5


@dataclass(frozen=True)
class Work:
    """One call that does a known amount of work, in bytes or operations."""

    name: str
    run: Callable[[], None]
    amount: float


class Calibration:
    """The stream and the product of one device and number format. Made when they are first asked for."""

    def __init__(self, device: torch.device, dtype: torch.dtype, stream_bytes: int | None = None) -> None:
        """Allocate nothing yet. A buffer of ``stream_bytes``, on a GPU two, is kept from the first use on."""
        self.device, self.dtype = device, dtype
        self._stream_bytes = stream_bytes or STREAM_BYTES.get(device.type, STREAM_BYTES["cpu"])

    @cached_property
    def stream(self) -> Work:
        """On a CPU a read, by the faster of two of torch's; on a GPU a copy, whose bytes count twice."""
        width = 8192
        table = torch.ones(self._stream_bytes // 4 // width, width, device=self.device)
        if self.device.type == "cuda":
            target = torch.empty_like(table)
            return Work("copy", self._waited(lambda: target.copy_(table)), 2 * table.nbytes)
        vector = torch.ones(width, device=self.device)
        reads = {"sum": lambda: table.sum(), "matrix times vector": lambda: table @ vector}
        works = [Work(name, self._waited(call), table.nbytes) for name, call in reads.items()]
        return max(works, key=_rate)

    @cached_property
    def product(self) -> Work:
        """A square matrix product in the number format, of random numbers: zeros may run faster."""
        size, enough = 256, PRODUCT_SECONDS.get(self.device.type, 0.05)
        while True:
            a = torch.randn(size, size, device=self.device).to(self.dtype)
            work = Work(f"{size} x {size}", self._waited(lambda a=a: a @ a), 2.0 * size**3)  # type: ignore[misc]
            if size >= LARGEST_PRODUCT or min(_seconds(work) for _ in range(3)) >= enough:
                return work
            size *= 2

    @cached_property
    def rates(self) -> Rates:
        """Both, measured now."""
        return Rates(bandwidth=_rate(self.stream), products=_rate(self.product))

    def record(self) -> dict[str, object]:
        """What results keep of it."""
        return {
            "dtype": str(self.dtype).removeprefix("torch."),
            "stream": self.stream.name,
            "product": self.product.name,
            "bytes_per_second": self.rates.bandwidth,
            "flops_per_second": self.rates.products,
            "flops_per_byte": self.rates.flops_per_byte,
        }

    def _waited(self, call: Callable[[], object]) -> Callable[[], None]:
        """The call, and on a GPU its end."""

        def run() -> None:
            call()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)

        return run


def _rate(work: Work) -> float:
    """Amount a second: the median of a few tries, after one that is not counted."""
    work.run()
    return work.amount / median(_seconds(work) for _ in range(TRIES))


def _seconds(work: Work) -> float:
    started = time.perf_counter()
    work.run()
    return time.perf_counter() - started
