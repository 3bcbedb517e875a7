"""Counts what an engine really does: the products that torch runs in this process while a call lasts.

It sees every operator of torch in the calling thread. What torch.compile has made runs uncompiled for it. Not seen are
other processes, other threads, kernels that are not torch's, and what a CUDA graph replays; an engine of that kind has
no tally, and its ratios stand alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# Operators that multiply two operands, and where these stand among the arguments.
MATRICES = {aten.mm: (0, 1), aten.addmm: (1, 2), aten.mv: (0, 1), aten.addmv: (1, 2), aten.dot: (0, 1)}
BATCHES = {aten.bmm: (0, 1), aten.baddbmm: (1, 2)}
COMPOSITE = (aten.linear, aten.matmul, aten.einsum, aten.scaled_dot_product_attention)
"""In inference mode torch shows these whole. They are taken apart, and their parts counted."""


@dataclass
class Products:
    """Floating-point operations of products, and bytes of the larger operand of each.

    In a decode step the larger operand is the matrix of weights, or all keys, or all values.
    """

    projection_flops: float = 0.0
    projection_bytes: float = 0.0
    attention_flops: float = 0.0
    attention_bytes: float = 0.0

    def __sub__(self, other: Products) -> Products:
        return Products(
            *(mine - theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True))
        )

    @property
    def flops(self) -> float:
        """All operations."""
        return self.projection_flops + self.attention_flops

    @property
    def bytes(self) -> float:
        """All bytes."""
        return self.projection_bytes + self.attention_bytes


def tally(call: Callable[[], object]) -> Products:
    """Return the products that torch ran in this thread while ``call`` lasted."""
    with torch.compiler.set_stance("force_eager"), _Watch() as watch:
        call()
    return watch.products


class _Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.products = Products()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet in COMPOSITE:
            with self:
                return func.decompose(*args, **kwargs)
        if packet in MATRICES:
            self._projection(*(args[place] for place in MATRICES[packet]))
        elif packet in BATCHES:
            a, b = (args[place] for place in BATCHES[packet])
            if a.shape[0] == 1:  # how torch multiplies [1, T, n] with a matrix that has no batch
                self._projection(a[0], b[0])
            else:
                self._attention(
                    2.0 * a.shape[0] * a.shape[1] * a.shape[2] * b.shape[2], max(map(distinct_bytes, (a, b)))
                )
        elif "scaled_dot_product" in packet.__name__ and "backward" not in packet.__name__:
            q, k, v = args[:3]  # [B, H_q, T, D], [B, H_kv, S, D] twice
            flops = 2.0 * q.shape[:-1].numel() * k.shape[-2] * (q.shape[-1] + v.shape[-1])
            self._attention(flops, distinct_bytes(k) + distinct_bytes(v))
        return func(*args, **kwargs)

    def _projection(self, a: Tensor, b: Tensor) -> None:
        """A product of [m, k] with [k, n], or with [k]."""
        columns = b.shape[1] if b.dim() == 2 else 1
        self.products.projection_flops += 2.0 * a.numel() * columns
        self.products.projection_bytes += max(map(distinct_bytes, (a, b)))

    def _attention(self, flops: float, nbytes: float) -> None:
        self.products.attention_flops += flops
        self.products.attention_bytes += nbytes


def distinct_bytes(tensor: Tensor) -> int:
    """Bytes of the elements that differ in memory: an expanded dimension has one, whatever its size."""
    sizes = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride != 0]
    return torch.Size(sizes).numel() * tensor.element_size()
